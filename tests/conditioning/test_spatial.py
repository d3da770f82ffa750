"""Maps and images: their channels one by one, in the published orders."""

import pytest
import torch

from ldm.conditioning.base import Compose
from ldm.conditioning.rescalers import LearnedRescaler, MaxPoolMask, Resize
from ldm.conditioning.spatial import LatentImage, MapTokens, Mask, ScalarMap, SemanticMap
from ldm.errors import UserError

MAP = torch.tensor([[[0, 1, 2, 255], [1, 1, 2, 3]]], dtype=torch.uint8)


def semantic(**options):
    return SemanticMap(4, 0.1, 2, **options)


def test_a_label_is_a_channel_and_255_is_none():
    x = semantic(rescaler=Resize(4, "area")).channels(MAP)
    assert x.shape == (1, 4, 2, 4) and x[0].sum(0).tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert x[0, 2].tolist() == [[0, 0, 1, 0], [0, 0, 1, 0]]


def test_the_switch_of_figure_3_is_either_or_both():
    rescaler, tokens = LearnedRescaler(4, 3), MapTokens(4, 8, 2, 2)
    beside, heard = semantic(rescaler=rescaler)(MAP), semantic(tokens=tokens)(MAP)
    both = semantic(rescaler=rescaler, tokens=tokens)(MAP)
    assert beside.context is None and heard.concat is None
    assert torch.equal(both.concat, beside.concat) and torch.equal(both.context, heard.context)
    assert both.concat.shape == (1, 3, 1, 2) and both.context.shape == (1, 2, 8)
    with pytest.raises(ValueError, match="segmentation needs a rescaler, tokens, or both"):
        semantic()


def test_tokens_know_their_place_at_every_size():
    tokens = MapTokens(1, 8, 2, 2)
    flat = tokens(torch.ones(1, 1, 4, 4))[0]
    assert len({tuple(row) for row in flat.tolist()}) == 4, "the same patch elsewhere is another token"
    assert tokens(torch.ones(1, 1, 8, 4)).shape == (1, 8, 8) and tokens.count(8, 4) == 8
    with pytest.raises(ValueError, match="3x4 does not divide into patches of 2"):
        tokens(torch.ones(1, 1, 3, 4))


def test_the_null_follows_the_latent():
    part = semantic(rescaler=LearnedRescaler(4, 3), tokens=MapTokens(4, 8, 2, 2))
    for size, tokens in (((2, 2), 4), ((4, 6), 24)):
        null = part.null(2, size)
        assert null.concat.shape == (2, 3, *size) and null.context.shape == (2, tokens, 8)
        assert not null.concat.any() and not null.context.any()
    with pytest.raises(ValueError, match="null of segmentation needs the latent's size"):
        part.null(2)
    with pytest.raises(ValueError, match="null of masked needs the latent's size"):
        LatentImage(4, 0.1, 4).null(2)


def test_a_map_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="the segmentation of 3x4 does not divide by 2"):
        semantic(rescaler=Resize(4, "area")).latent_size({"segmentation": torch.zeros(1, 3, 4)})


def test_numbers_stand_as_they_are():
    depth = torch.rand(2, 1, 4, 4) * 2 - 1
    assert torch.equal(ScalarMap("depth", 0.0, 1, Resize(1, "bicubic"))(depth).concat, depth)


def half_masked():
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    mask[..., 4:] = 255
    return mask


@pytest.mark.parametrize("low", [0, -1])
def test_a_mask_is_one_where_the_image_is_drawn(background):
    mask = Mask(background, 0.0, 4, Resize(1, "nearest"))
    assert mask(half_masked()).concat[0, 0].tolist() == [[background, 1], [background, 1]]
    assert mask.null(1, (2, 2)).concat.unique().tolist() == [1], "without a mask all is drawn"
    touched = torch.zeros_like(half_masked())
    touched[..., 1, 1] = 255
    assert Mask(background, 0.0, 4, MaxPoolMask())(touched).concat[0, 0].tolist() == [
        [1, background],
        [background, background],
    ]


def encode(x):
    """A first stage of factor 4 with 4 channels."""
    mean = torch.nn.functional.avg_pool2d(x, 4)
    return torch.cat([mean, -mean[:, :1]], dim=1)


@pytest.mark.parametrize(
    ("low", "names"), [(-1, ("masked", "mask")), (0, ("mask", "masked"))], ids=["ldm", "sd"]
)
def test_the_published_orders_channel_by_channel(background, names):
    parts = {"masked": LatentImage(4, 0.0, 4), "mask": Mask(background, 0.0, 4, Resize(1, "nearest"))}
    compose = Compose({name: parts[name] for name in names})
    masked = torch.rand(1, 3, 8, 8) * 2 - 1
    concat = compose({"masked": masked, "mask": half_masked()}, encode=encode).concat
    latent, mask = encode(masked), torch.tensor([[[[background, 1.0], [background, 1.0]]]])
    expected = {"masked": latent, "mask": mask}
    assert torch.equal(concat, torch.cat([expected[name] for name in names], dim=1))


def test_bytes_and_numbers_are_the_same_image():
    read = LatentImage(4, 0.0, 4, key="image").read
    whole = torch.randint(0, 256, (1, 3, 4, 4)).byte()
    torch.testing.assert_close(read({"image": whole}, None), read({"image": whole / 127.5 - 1}, None))

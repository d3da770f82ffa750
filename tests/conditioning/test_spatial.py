"""Maps and images: their channels, in the published orders."""

import pytest
import torch

from ldm.conditioning.base import Compose
from ldm.conditioning.rescalers import LearnedRescaler, MaxPoolMask, Resize
from ldm.conditioning.spatial import LatentImage, MapTokens, Mask, ScalarMap, SemanticMap
from ldm.errors import UserError

MAP = torch.tensor([[[0, 1, 2, 255], [1, 1, 2, 3]]], dtype=torch.uint8)


def semantic(**options):
    return SemanticMap(4, 0.1, 2, **options)


def test_each_label_is_a_channel_and_255_is_unlabelled():
    x = semantic(rescaler=Resize(4, "area")).channels(MAP)
    assert x.shape == (1, 4, 2, 4) and x[0].sum(0).tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert x[0, 2].tolist() == [[0, 0, 1, 0], [0, 0, 1, 0]]


def test_concatenation_and_cross_attention_are_either_or_both():
    rescaler, tokens = LearnedRescaler(4, 3), MapTokens(4, 8, 2, 2)
    concatenated, attended = semantic(rescaler=rescaler)(MAP), semantic(tokens=tokens)(MAP)
    both = semantic(rescaler=rescaler, tokens=tokens)(MAP)
    assert concatenated.context is None and attended.concat is None
    assert torch.equal(both.concat, concatenated.concat) and torch.equal(both.context, attended.context)
    assert both.concat.shape == (1, 3, 1, 2) and both.context.shape == (1, 2, 8)
    with pytest.raises(ValueError, match="segmentation needs a rescaler, tokens, or both"):
        semantic()


def test_tokens_depend_on_their_position_at_every_size():
    tokens = MapTokens(1, 8, 2, 2)
    constant = tokens(torch.ones(1, 1, 4, 4))[0]
    assert len({tuple(row) for row in constant.tolist()}) == 4, (
        "the same patch at another position is another token"
    )
    assert tokens(torch.ones(1, 1, 8, 4)).shape == (1, 8, 8) and tokens.count(8, 4) == 8
    with pytest.raises(ValueError, match="3x4 does not divide into patches of 2"):
        tokens(torch.ones(1, 1, 3, 4))


def test_the_null_has_the_latents_size():
    conditioner = semantic(rescaler=LearnedRescaler(4, 3), tokens=MapTokens(4, 8, 2, 2))
    for size, tokens in (((2, 2), 4), ((4, 6), 24)):
        null = conditioner.null(2, size)
        assert null.concat.shape == (2, 3, *size) and null.context.shape == (2, tokens, 8)
        assert not null.concat.any() and not null.context.any()
    with pytest.raises(ValueError, match="null of segmentation needs the latent's size"):
        conditioner.null(2)
    with pytest.raises(ValueError, match="null of masked needs the latent's size"):
        LatentImage(4, 0.1, 4).null(2)


def test_a_map_whose_size_is_not_divisible_is_refused():
    with pytest.raises(UserError, match="segmentation is 3x4, .* factor 2"):
        semantic(rescaler=Resize(4, "area")).latent_size({"segmentation": torch.zeros(1, 3, 4)})


def test_scalar_maps_are_unchanged():
    depth = torch.rand(2, 1, 4, 4) * 2 - 1
    assert torch.equal(ScalarMap("depth", 0.0, 1, Resize(1, "bicubic"))(depth).concat, depth)


def half_masked():
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    mask[..., 4:] = 255
    return mask


@pytest.mark.parametrize("background", [0, -1])
def test_a_mask_is_one_where_the_image_is_generated(background):
    mask = Mask(background, 0.0, 4, Resize(1, "nearest"))
    assert mask(half_masked()).concat[0, 0].tolist() == [[background, 1], [background, 1]]
    assert mask.null(1, (2, 2)).concat.unique().tolist() == [1], "the null masks the whole image"
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
    ("background", "names"), [(-1, ("masked", "mask")), (0, ("mask", "masked"))], ids=["ldm", "sd"]
)
def test_the_published_orders_channel_by_channel(background, names):
    parts = {"masked": LatentImage(4, 0.0, 4), "mask": Mask(background, 0.0, 4, Resize(1, "nearest"))}
    compose = Compose({name: parts[name] for name in names})
    masked = torch.rand(1, 3, 8, 8) * 2 - 1
    concat = compose({"masked": masked, "mask": half_masked()}, encode=encode).concat
    latent, mask = encode(masked), torch.tensor([[[[background, 1.0], [background, 1.0]]]])
    expected = {"masked": latent, "mask": mask}
    assert torch.equal(concat, torch.cat([expected[name] for name in names], dim=1))


def test_uint8_and_float_images_are_equivalent():
    read = LatentImage(4, 0.0, 4, batch_key="image").read
    image = torch.randint(0, 256, (1, 3, 4, 4)).byte()
    torch.testing.assert_close(read({"image": image}, None), read({"image": image / 127.5 - 1}, None))

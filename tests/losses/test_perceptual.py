"""Perceptual distances: LPIPS against its formula, and the two without pretrained weights."""

import copy
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import instantiate
from torch.nn.functional import conv2d, cosine_similarity, interpolate, max_pool2d, normalize, relu
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from ldm import pretrained
from ldm.errors import UserError
from ldm.losses.perceptual import HEADS, LPIPS, MultiScaleSSIM, Perceptual, RandomVGG

CONFIGS = Path(__file__).parents[2] / "configs" / "perceptual"
BLOCKS = {64: (0, 2), 128: (5, 7), 256: (10, 12, 14), 512: (17, 19, 21), 513: (24, 26, 28)}
"""VGG-16's convolutions by torchvision's numbering; 513 is the second block of 512."""


def images(size: int = 64, n: int = 2) -> torch.Tensor:
    """Return images of coloured blocks, in [-1, 1]."""
    return interpolate(2 * torch.rand(n, 3, 8, 8) - 1, (size, size))


@pytest.fixture(scope="module")
def vgg() -> dict[str, torch.Tensor]:
    """Return random weights under torchvision's names, without the classifier."""
    state, inputs = {}, 3
    for width, layers in BLOCKS.items():
        for layer in layers:
            outputs = min(width, 512)
            state[f"features.{layer}.weight"] = torch.randn(outputs, inputs, 3, 3) * (2 / (9 * inputs)) ** 0.5
            state[f"features.{layer}.bias"] = 0.1 * torch.randn(outputs)
            inputs = outputs
    return state


@pytest.fixture(scope="module")
def heads() -> dict[str, torch.Tensor]:
    return torch.load(HEADS, map_location="cpu", weights_only=True)


def naive_lpips(
    vgg: dict[str, torch.Tensor], heads: dict[str, torch.Tensor], x_hat: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    """Return LPIPS by the paper's equation."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    both = (torch.cat([x_hat, x]) - shift.view(3, 1, 1)) / scale.view(3, 1, 1)
    distance = torch.zeros(len(x))
    for i, layers in enumerate(BLOCKS.values()):
        both = max_pool2d(both, 2) if i else both
        for layer in layers:
            weight, bias = vgg[f"features.{layer}.weight"], vgg[f"features.{layer}.bias"]
            both = relu(conv2d(both, weight, bias, padding=1))
        a, b = normalize(both).chunk(2)
        distance += ((a - b).square() * heads[f"lin{i}.model.1.weight"]).sum(1).mean((1, 2))
    return distance


@pytest.fixture(scope="module")
def lpips(vgg: dict[str, torch.Tensor], heads: dict[str, torch.Tensor]) -> LPIPS:
    loss = LPIPS()
    loss.load_weights(vgg, heads)
    return loss


def test_lpips_equals_its_formula(
    lpips: LPIPS, vgg: dict[str, torch.Tensor], heads: dict[str, torch.Tensor]
) -> None:
    x, x_hat = images(32), 1.5 * images(32)  # beyond [-1, 1], as decoder outputs may be
    torch.testing.assert_close(lpips(x_hat, x), naive_lpips(vgg, heads, x_hat, x), rtol=1e-4, atol=1e-6)
    assert lpips(x, x).tolist() == [0.0, 0.0]


def test_lpips_needs_every_weight(
    lpips: LPIPS, vgg: dict[str, torch.Tensor], heads: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(KeyError, match="features.28.bias"):
        lpips.load_weights({k: v for k, v in vgg.items() if k != "features.28.bias"}, heads)
    with pytest.raises(RuntimeError, match="lin4.model.1.weight"):
        lpips.load_weights(vgg, {k: v for k, v in heads.items() if not k.startswith("lin4")})


def test_lpips_loads_pretrained_weights(
    lpips: LPIPS, vgg: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({**vgg, "classifier.0.weight": torch.zeros(1)}, tmp_path / "vgg.pth")
    monkeypatch.setattr(pretrained, "find_or_download", {"vgg16": tmp_path / "vgg.pth"}.__getitem__)
    loss, x, x_hat = copy.deepcopy(lpips), images(32), images(32)
    for parameter in loss.parameters():
        parameter.zero_()
    loss.load_pretrained()
    assert torch.equal(loss(x_hat, x), lpips(x_hat, x))


def test_lpips_is_frozen_and_stays_out_of_checkpoints(lpips: LPIPS) -> None:
    assert not any(p.requires_grad for p in lpips.parameters())
    assert not any(part.training for part in lpips.train().network.modules())
    assert lpips.state_dict() == {}
    lpips.load_state_dict({})


@pytest.mark.parametrize("loss", [RandomVGG((8, 16), (1, 2)), MultiScaleSSIM(3)])
def test_without_weights_distances_are_per_image_and_grow_with_noise(loss: Perceptual) -> None:
    x, noise = images(n=3), torch.randn(3, 3, 64, 64)
    assert loss(x, x).abs().max() < 1e-3
    distances = [loss(x + level * noise, x) for level in (0.02, 0.1, 0.5)]
    assert all((near < far).all() for near, far in zip(distances, distances[1:], strict=False))
    torch.testing.assert_close(distances[1][:1], loss(x[:1] + 0.1 * noise[:1], x[:1]))
    assert list(loss.parameters()) == [] and loss.state_dict() == {}


@pytest.mark.parametrize("loss", [RandomVGG((8, 16), (1, 2)), MultiScaleSSIM(3)])
def test_without_weights_a_gradient_step_reduces_the_distance(loss: Perceptual) -> None:
    x = images()
    x_hat = (x + 0.3 * torch.randn_like(x)).requires_grad_()
    loss(x_hat, x).sum().backward()
    step = x_hat - 100 * x_hat.grad
    assert (loss(step, x) < loss(x_hat, x)).all()


def test_random_vgg_depends_on_its_seed_and_not_on_the_device() -> None:
    x, x_hat = images(), images()
    with torch.device("meta"):
        meta = RandomVGG((8, 16), (1, 2))
    cpu, other_seed = RandomVGG((8, 16), (1, 2)), RandomVGG((8, 16), (1, 2), seed=1)
    assert torch.equal(meta(x_hat, x), cpu(x_hat, x))
    assert not torch.allclose(other_seed(x_hat, x), cpu(x_hat, x), rtol=1e-2)


def test_random_vgg_compares_the_directions_of_features() -> None:
    loss, x, x_hat = RandomVGG((8, 16), (1, 2)), images(), images()
    pairs = zip(loss._features(x_hat), loss._features(x), strict=True)
    expected = [2 - 2 * cosine_similarity(a, b).mean((1, 2)) for a, b in pairs]
    torch.testing.assert_close(loss(x_hat, x), torch.stack(expected).mean(0), rtol=1e-3, atol=1e-4)


def test_random_vgg_is_sensitive_to_brightness_and_uses_every_block() -> None:
    grey = torch.ones(1, 3, 16, 16)
    assert RandomVGG((8,), (1,))(0.8 * grey, 0.2 * grey) > 1e-2
    assert [tuple(f.shape) for f in RandomVGG((8, 16), (1, 2))._features(grey)] == [
        (1, 8, 16, 16),
        (1, 16, 8, 8),
    ]
    with pytest.raises(ValueError, match="channels has 2 .* convs has 1"):
        RandomVGG((8, 16), (1,))


def test_one_scale_of_ms_ssim_is_ssim() -> None:
    x, x_hat = images(), images()
    expected = 1 - ssim((x_hat + 1) / 2, (x + 1) / 2, data_range=1.0, reduction="none")
    torch.testing.assert_close(MultiScaleSSIM(1)(x_hat, x), expected.clamp(max=1))


def test_ms_ssim_ignores_autocast() -> None:
    x, x_hat = images(), images()
    expected = MultiScaleSSIM(3)(x_hat, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(MultiScaleSSIM(3)(x_hat, x), expected)


def test_ms_ssim_of_a_negative_has_a_finite_gradient() -> None:
    x = images()
    x_hat = (-x).requires_grad_()
    MultiScaleSSIM(3)(x_hat, x).sum().backward()
    assert x_hat.grad.isfinite().all()


@pytest.mark.parametrize(("scales", "min_size"), [(1, 11), (3, 44), (5, 176)])
def test_ms_ssim_refuses_images_that_are_too_small(scales: int, min_size: int) -> None:
    loss, x = MultiScaleSSIM(scales), images(min_size, 1)
    assert loss(x, x).abs().max() < 1e-3
    with pytest.raises(ValueError, match=f"{scales} scales of MS-SSIM need {min_size} pixels"):
        loss(x[..., 1:], x[..., 1:])


def test_ms_ssim_has_at_most_five_scales() -> None:
    with pytest.raises(ValueError, match=r"num_scales=6: use 1\.\.5"):
        MultiScaleSSIM(6)


@pytest.mark.parametrize("name", ["lpips", "random_vgg", "ms_ssim"])
def test_shipped_configs_build_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        loss = instantiate(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()))
    assert isinstance(loss, Perceptual) and not any(p.requires_grad for p in loss.parameters())


def test_grey_is_repeated_and_bands_select_three_channels() -> None:
    x, x_hat = torch.rand(2, 5, 16, 16), torch.rand(2, 5, 16, 16)
    rgb, selected = RandomVGG([4], [1]), RandomVGG([4], [1], bands=[4, 0, 2])
    grey = rgb(x_hat[:, :1], x[:, :1])
    torch.testing.assert_close(grey, rgb(x_hat[:, :1].repeat(1, 3, 1, 1), x[:, :1].repeat(1, 3, 1, 1)))
    torch.testing.assert_close(selected(x_hat, x), rgb(x_hat[:, [4, 0, 2]], x[:, [4, 0, 2]]))
    with pytest.raises(UserError, match=r"the images have 5: .* perceptual\.bands"):
        rgb(x_hat, x)
    with pytest.raises(UserError, match=r"perceptual.bands=\[4, 0, 2\]: .* 0\.\.2"):
        selected(x_hat[:, :3], x[:, :3])
    with pytest.raises(UserError, match="the images have 2"):
        with torch.device("meta"):
            LPIPS()(torch.rand(1, 2, 32, 32), torch.rand(1, 2, 32, 32))

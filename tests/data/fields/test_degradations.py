"""Low-resolution images, noise augmentation, and edges."""

import pytest
import torch

from ldm.data.fields.degradations import (
    BSRGANDegradation,
    Downsampled,
    Edges,
    NoiseAugmentation,
    blur,
    compress_jpeg,
)


def image(seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 255
    smooth = torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic").clamp(0, 255)
    return smooth[0].to(torch.uint8)


def test_downsampling_keeps_the_mean() -> None:
    x = image()
    small = Downsampled(4)({"image": x}, 0)["small"]
    assert small.shape == (3, 16, 16) and small.dtype == torch.uint8
    assert abs(small.float().mean() - x.float().mean()) < 1
    with pytest.raises(ValueError, match="factor=5"):
        Downsampled(5)({"image": x}, 0)


def test_degradation_is_keyed_and_stronger_than_downsampling() -> None:
    x, degrade = image(), BSRGANDegradation(4, seed=1)
    plain = Downsampled(4)({"image": x}, 0)["small"].float()
    smalls = [degrade({"image": x}, position)["small"] for position in range(12)]
    assert all(torch.equal(small, degrade({"image": x}, i)["small"]) for i, small in enumerate(smalls))
    errors = [float((small.float() - plain).square().mean().sqrt()) for small in smalls]
    assert len(set(errors)) == 12 and min(errors) > 0.5 and max(errors) < 60


def test_a_blur_keeps_the_mean_and_widens_along_its_angle() -> None:
    dot = torch.zeros(1, 41, 41)
    dot[0, 20, 20] = 1
    out = blur(dot, 4.0, 1.0, 0.0)[0]
    offset = torch.arange(41.0) - 20
    assert out.sum() == pytest.approx(1, abs=1e-5)
    assert (out.sum(0) * offset.square()).sum().sqrt() == pytest.approx(4, rel=0.05)
    assert (out.sum(1) * offset.square()).sum().sqrt() == pytest.approx(1, rel=0.05)


def test_jpeg_is_worse_at_lower_quality() -> None:
    x = image()
    errors = [float((compress_jpeg(x, q).float() - x.float()).abs().mean()) for q in (20, 60, 95)]
    assert errors[0] > errors[1] > errors[2]


def test_noise_levels_cover_their_range() -> None:
    row = {"small": torch.zeros(3, 16, 16, dtype=torch.uint8)}
    augmented = [NoiseAugmentation(5, seed=0)(row, position) for position in range(200)]
    levels = {int(fields["noise_level"]) for fields in augmented}
    assert levels == {1, 2, 3, 4, 5}, "not 0: the network would receive the same time for 0 and 1"
    noise = torch.stack([fields["noise"] for fields in augmented])
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    assert torch.equal(noise[7], NoiseAugmentation(5, seed=0)(row, 7)["noise"])


def test_edges_lie_where_the_image_steps() -> None:
    x = torch.zeros(3, 32, 32, dtype=torch.uint8)
    x[:, :, 16:] = 255
    edges = Edges()({"image": x}, 0)["edges"][0]
    assert torch.allclose(edges[:, :15], torch.tensor(-1.0)) and torch.allclose(
        edges[:, 17:], torch.tensor(-1.0)
    )
    assert torch.allclose(edges[:, 15:17], torch.tensor(1.0), atol=1e-5)

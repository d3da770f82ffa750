"""Resizing is what it was for ordinary images; of long ones only the crop is resized, to the same values."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from ldm.data.fields import resize
from ldm.data.fields.decode import to_tensor
from ldm.data.fields.resize import Crop, covering_size, resize_and_crop, resize_short_side, resize_to_cover
from tests.data.fields.test_decode import wave


def noise(height: int, width: int, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, channels, height, max(width // 4, 1), generator=generator) * 255
    return interpolate(coarse, (height, width), mode="bilinear")[0].to(torch.uint8)


@pytest.mark.parametrize(("interpolation", "antialias"), [("bicubic", True), ("nearest-exact", False)])
@pytest.mark.parametrize("size", [(40, 60), (60, 40), (16, 200), (7, 5), (1, 1), (2, 3)])
def test_an_ordinary_image_is_resized_as_a_whole_and_then_cropped(size, interpolation, antialias) -> None:
    x, shape = noise(*size), (16, 24)
    resized = covering_size(*size, *shape)
    crop = Crop(resized, (resized[0] - 16) // 2, (resized[1] - 24) // 3, shape, flip=False)
    whole = interpolate(x[None], resized, mode=interpolation, antialias=antialias)[0]
    expected = whole[:, crop.top : crop.top + 16, crop.left : crop.left + 24]
    assert torch.equal(resize_and_crop(x, crop, interpolation), expected)
    assert torch.equal(resize_and_crop(x, crop._replace(flip=True), interpolation), expected.flip(2))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest-exact"])
@pytest.mark.parametrize("is_tall", [False, True])
@pytest.mark.parametrize("start", [0.0, 0.31, 1.0])
@pytest.mark.parametrize("height", [5, 23])
def test_the_crop_of_a_long_image_has_the_values_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, interpolation, is_tall: bool, start: float, height: int
) -> None:
    x, shape = noise(height, 40 * height), (16, 16)
    if interpolation == "bilinear":
        x = x[:1].float() / 255
    if is_tall:
        x = x.transpose(1, 2)
    resized = covering_size(*x.shape[1:], *shape)
    top, left = (int(start * (side - 16)) for side in resized)
    crop = Crop(resized, top, left, shape, flip=False)
    part = resize_and_crop(x, crop, interpolation)
    monkeypatch.setattr(resize, "MAX_ASPECT", 1000)
    whole = resize_and_crop(x, crop, interpolation)
    assert part.shape == whole.shape == (len(x), 16, 16) and part.dtype == whole.dtype
    tolerance = {"bicubic": 1.0, "bilinear": 1e-3, "nearest-exact": 0.0}[interpolation]
    assert (part.double() - whole.double()).abs().max() <= tolerance


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1), (1, 3_000_000)])
def test_an_image_of_one_row_takes_no_more_memory_than_its_crop(size: tuple[int, int]) -> None:
    x = torch.arange(max(size)).remainder(200).to(torch.uint8).reshape(1, *size)
    resized = covering_size(*size, 512, 512)
    assert max(resized) == 512 * max(size)  # 12 GiB and more
    top, left = (max(0, 512 * 77 if side > 512 else 0) for side in resized)
    part = resize_and_crop(x, Crop(resized, top, left, (512, 512), flip=False), "nearest-exact")
    assert part.shape == (1, 512, 512) and (part == 77).all()


def test_a_long_image_of_the_right_size_is_only_cropped() -> None:
    x = noise(16, 640)
    crop = Crop((16, 640), 0, 123, (16, 16), flip=False)
    assert torch.equal(resize_and_crop(x, crop, "bicubic"), x[:, :, 123:139])


def test_resize_is_antialiased_and_never_too_small() -> None:
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (99, 50)))
    small = np.asarray(resize_short_side(stripes, 33), int)
    assert small.shape == (33, 33) and abs(small[:, 3:-3] - 127).max() < 30
    assert resize_short_side(Image.new("RGB", (1001, 333)), 64).size == (192, 64)
    assert resize_short_side(Image.new("RGB", (10, 31)), 64).size == (64, 198)


@pytest.mark.parametrize("size,expected", [((33, 33), (33, 66)), ((20, 50), (25, 50)), ((99, 10), (99, 198))])
def test_resize_to_cover_matches_pillow_and_is_never_too_small(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    image = wave(400, 200)
    ours = resize_to_cover(to_tensor(image), *size)
    theirs = image.resize(expected[::-1], Image.Resampling.BICUBIC)
    assert ours.shape[1:] == expected
    assert np.abs(ours.permute(1, 2, 0).numpy().astype(int) - np.asarray(theirs, int)).max() <= 1


def test_resize_to_cover_keeps_what_already_fits() -> None:
    pixels = to_tensor(wave(50, 30))
    assert resize_to_cover(pixels, 30, 20) is pixels and resize_to_cover(pixels, 10, 50) is pixels

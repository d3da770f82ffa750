from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.fields.decode import to_tensor
from ldm.data.fields.image import ImageField
from ldm.data.shards.reader import BadSample, Sample
from tests.data.fields.test_decode import encoded


def ramp() -> Image.Image:
    """Pixel (x, y) is (x, y, 0)."""
    y, x = np.mgrid[:8, :20]
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


def corner(field: ImageField, position: int) -> tuple[int, int]:
    x, y, _ = field.transform(to_tensor(ramp()), position)[:, 0, 0].tolist()
    return x, y


def test_the_centre_is_cropped_by_default() -> None:
    assert corner(ImageField(size=8, seed=0), 3) == (6, 0)
    tall = to_tensor(ramp()).transpose(1, 2)
    x, y, _ = ImageField(size=8, seed=0).transform(tall, 3)[:, 0, 0].tolist()
    assert (x, y) == (6, 0)  # of the transposed ramp: row 6, column 0


def test_crop_and_flip_depend_only_on_seed_and_position() -> None:
    def corners(seed: int) -> list[tuple[int, int]]:
        return [corner(ImageField(8, seed, random_crop=True, flip=True), position) for position in range(200)]

    assert corners(1) == corners(1) != corners(2)
    starts = [corner(ImageField(8, 1, random_crop=True), position)[0] for position in range(400)]
    assert set(starts) == set(range(13))


def test_half_of_the_images_are_flipped() -> None:
    flipped = sum(corner(ImageField(8, 1, flip=True), position) == (13, 0) for position in range(400))
    assert 160 < flipped < 240


def test_a_rectangle_is_covered_and_cropped() -> None:
    pixels = ImageField((8, 4), 0).transform(to_tensor(ramp()), 0)
    assert pixels.shape == (3, 8, 4) and pixels[:, 0, 0].tolist() == [8, 0, 0] and pixels.is_contiguous()


def test_the_format_is_detected_from_the_content_and_a_bad_image_is_named() -> None:
    data = encoded(ramp(), "PNG")
    sample = Sample(Path("0.tar"), "7", {"jpg": data, "txt": b""})
    assert torch.equal(ImageField(8, 0)(sample, 0), ImageField(8, 0).transform(to_tensor(ramp()), 0))
    for members in ({"jpg": b"<html>"}, {"txt": b""}):
        with pytest.raises(BadSample, match="sample 7 in 0.tar cannot|no .jpg for sample 7"):
            ImageField(8, 0)(Sample(Path("0.tar"), "7", members), 0)

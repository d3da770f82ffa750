"""Conditions are shown at the size of their image, captions in full."""

import numpy as np
import pytest
import torch

from ldm.data.demo.drawing import COLOURS
from ldm.data.demo.scenes import caption, every_scene
from ldm.evaluation.demo import show_condition
from ldm.typing import Batch

LONGEST = max(map(caption, every_scene(False)), key=len)
IMAGE = (torch.arange(2 * 3 * 64 * 64) % 251).view(2, 3, 64, 64).to(torch.uint8)
BATCH: Batch = {
    "image": IMAGE,
    "caption": [LONGEST, "a small red circle on a white background"],
    "label": torch.tensor([0, 11]),
    "segmentation": torch.tensor([0, 5]).repeat(2, 64, 32).to(torch.uint8),
    "boxes": torch.tensor([[3.0, 0.25, 0.25, 0.75, 0.5], [-1, 0, 0, 0, 0]]).repeat(2, 1, 1),
    "depth": torch.linspace(-1, 1, 64).expand(2, 1, 64, 64),
    "small": IMAGE[:, :, ::4, ::4],
}
ALL = [
    show_condition.ShowCaption(),
    show_condition.ShowClass(),
    show_condition.ShowNothing(),
    show_condition.ShowImage(),
    show_condition.ShowLowResolution(),
    show_condition.ShowMap("depth"),
    show_condition.ShowSegmentation(),
    show_condition.ShowBoxes(),
]


def arrays(show: show_condition.ShowCondition) -> list[np.ndarray]:
    return [np.asarray(image) for image in show(BATCH)]


@pytest.mark.parametrize("show", ALL, ids=lambda show: type(show).__name__)
def test_one_image_per_sample_of_its_size(show: show_condition.ShowCondition) -> None:
    images = arrays(show)
    assert [image.shape for image in images] == [(64, 64, 3)] * 2
    assert all(image.std() > 0 for image in images), "none is blank"


def test_images_and_maps_are_shown_unchanged() -> None:
    assert np.array_equal(arrays(show_condition.ShowImage())[1], IMAGE[1].permute(1, 2, 0).numpy())
    assert np.array_equal(
        arrays(show_condition.ShowLowResolution())[1][1::4, 2::4], IMAGE[1, :, ::4, ::4].permute(1, 2, 0)
    )
    assert arrays(show_condition.ShowMap("depth"))[0][5, :, 0].tolist() == sorted(
        arrays(show_condition.ShowMap("depth"))[0][9, :, 1]
    )
    assert arrays(show_condition.ShowSegmentation())[0][0, :2].tolist() == [
        [255, 255, 255],
        list(COLOURS["green"]),
    ]
    assert arrays(show_condition.ShowBoxes())[0][16, 40].tolist() == list(COLOURS["green"])


def test_the_longest_caption_fits() -> None:
    ink = arrays(show_condition.ShowCaption())[0].min(2) < 200
    assert ink[-10:-1].any() and not ink[-1].any() and not ink[:, -1].any()
    whole = np.asarray(show_condition.draw_text(LONGEST, (64, 128))).min(2) < 200
    assert np.array_equal(whole[:64], ink) and not whole[64:].any(), "a taller image shows no more"


def test_classes_are_shown_by_name() -> None:
    first, last = arrays(show_condition.ShowClass())
    assert not np.array_equal(first, last)
    assert np.array_equal(last, np.asarray(show_condition.draw_text("yellow triangle", (64, 64))))

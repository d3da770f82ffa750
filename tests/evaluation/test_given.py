"""What a picture was drawn from is shown in its own size, and all words of it."""

import numpy as np
import pytest
import torch

from ldm.data.demo.drawing import COLOURS
from ldm.data.demo.scenes import caption, every_scene
from ldm.evaluation import given
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
    given.Caption(),
    given.ClassName(),
    given.Nothing(),
    given.Picture(),
    given.SmallPicture(),
    given.Map("depth"),
    given.Labels(),
    given.Boxes(),
]


def arrays(way: given.Given) -> list[np.ndarray]:
    return [np.asarray(picture) for picture in way(BATCH)]


@pytest.mark.parametrize("way", ALL, ids=lambda way: type(way).__name__)
def test_one_picture_a_sample_of_its_size(way: given.Given) -> None:
    shown = arrays(way)
    assert [picture.shape for picture in shown] == [(64, 64, 3)] * 2
    assert all(picture.std() > 0 for picture in shown), "and something on it"


def test_pictures_and_maps_are_as_they_are() -> None:
    assert np.array_equal(arrays(given.Picture())[1], IMAGE[1].permute(1, 2, 0).numpy())
    assert np.array_equal(arrays(given.SmallPicture())[1][1::4, 2::4], IMAGE[1, :, ::4, ::4].permute(1, 2, 0))
    assert arrays(given.Map("depth"))[0][5, :, 0].tolist() == sorted(arrays(given.Map("depth"))[0][9, :, 1])
    assert arrays(given.Labels())[0][0, :2].tolist() == [[255, 255, 255], list(COLOURS["green"])]
    assert arrays(given.Boxes())[0][16, 40].tolist() == list(COLOURS["green"])


def test_the_longest_caption_has_room() -> None:
    ink = arrays(given.Caption())[0].min(2) < 200
    assert ink[-10:-1].any() and not ink[-1].any() and not ink[:, -1].any()
    whole = np.asarray(given.worded(LONGEST, (64, 128))).min(2) < 200
    assert np.array_equal(whole[:64], ink) and not whole[64:].any(), "a higher picture shows no more"


def test_words_say_which() -> None:
    first, last = arrays(given.ClassName())
    assert not np.array_equal(first, last)
    assert np.array_equal(last, np.asarray(given.worded("yellow triangle", (64, 64))))

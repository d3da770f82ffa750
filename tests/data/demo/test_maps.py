"""A scene's maps agree with its image, pixel by pixel."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ldm.data.demo.drawing import BACKGROUNDS, COLOURS
from ldm.data.demo.maps import DEPTHS, KINDS, SCORES, boxes, depth, kind, mask, segmentation
from ldm.data.demo.scenes import DemoScenes

SCENES = DemoScenes("train", 40)


@pytest.mark.parametrize("index", range(0, 40, 4))
@pytest.mark.parametrize("size", [64, 128])
def test_labels_are_the_colours_of_the_image(index: int, size: int) -> None:
    scene, places = SCENES.scene(index)
    picture = np.asarray(DemoScenes("train", 40, size=size)[index].image).astype(int)
    labels = segmentation(scene, places, size)
    palette = np.array([BACKGROUNDS[scene.background], *COLOURS.values()])
    nearest = np.abs(picture[:, :, None] - palette).sum(-1).argmin(-1)
    told = np.array([0, *(1 + i // 3 for i in range(len(KINDS)))])[labels]
    inner = (np.abs(picture - palette[told]).sum(-1) == 0) | (nearest != told)
    assert (nearest == told).mean() > 0.985  # all but pixels that an edge halves
    assert set(np.unique(labels)) == {0, *(1 + kind(thing) for thing in scene.things)}
    assert inner[told == 0].mean() > 0.9


def test_depth_tells_the_sizes_apart() -> None:
    for index in range(40):
        scene, places = SCENES.scene(index)
        labels, found = segmentation(scene, places), depth(scene, places)
        assert ((found > 0) == (labels > 0)).all()
        for thing in scene.things:
            assert set(np.unique(found[labels == 1 + kind(thing)])) <= {DEPTHS[t.size] for t in scene.things}


@pytest.mark.parametrize("size", [64, 128])
def test_a_mask_is_a_box_of_its_own_scene(size: int) -> None:
    masks = [mask(*SCENES.scene(index), size) for index in range(40)]
    for index, found in enumerate(masks):
        rows, columns = (np.flatnonzero(found.any(axis)) for axis in (1, 0))
        sides = [len(rows), len(columns)]
        assert size / 4 <= min(sides) and max(sides) <= size / 2
        assert (found == 255).sum() == len(rows) * len(columns) and set(np.unique(found)) == {0, 255}
        assert (found == mask(*SCENES.scene(index), size)).all()
    covered = np.mean([found > 0 for found in masks], axis=0)
    assert covered.max() < 0.6 and (covered > 0).mean() > 0.8, "they lie all over the image"


def test_boxes_are_the_extent_of_their_labels() -> None:
    for index in range(40):
        scene, places = SCENES.scene(index)
        labels = segmentation(scene, places)
        if len({kind(thing) for thing in scene.things}) < len(scene.things):
            continue
        for number, *corners in boxes(scene, places):
            y, x = np.nonzero(labels == 1 + number)
            assert np.abs(np.array(corners) * 64 - [x.min(), y.min(), x.max() + 1, y.max() + 1]).max() <= 1


def test_a_record_carries_all_of_it() -> None:
    record = SCENES[3]
    scene, places = SCENES.scene(3)
    assert int(record.members["cls"]) == kind(scene.things[0])
    assert record.metadata["boxes"] == boxes(scene, places)
    assert record.metadata["aesthetic"] == sum(SCORES[t.size] for t in scene.things) / len(scene.things)
    for name, made in (("seg.png", segmentation), ("depth.png", depth), ("mask.png", mask)):
        stored = np.asarray(Image.open(BytesIO(record.members[name])))
        assert (stored == made(scene, places)).all()

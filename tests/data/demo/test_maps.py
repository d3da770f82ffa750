"""A scene's maps agree with its image, pixel by pixel."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ldm.data.demo.drawing import BACKGROUNDS, COLOURS
from ldm.data.demo.maps import DEPTHS, KINDS, SCORES, boxes, depth, kind_index, mask, segmentation
from ldm.data.demo.scenes import DemoScenes

SCENES = DemoScenes("train", 40)


@pytest.mark.parametrize("index", range(0, 40, 4))
@pytest.mark.parametrize("size", [64, 128])
def test_labels_are_the_colours_of_the_image(index: int, size: int) -> None:
    scene, places = SCENES.scene(index)
    image = np.asarray(DemoScenes("train", 40, size=size)[index].image).astype(int)
    labels = segmentation(scene, places, size)
    palette = np.array([BACKGROUNDS[scene.background], *COLOURS.values()])
    nearest = np.abs(image[:, :, None] - palette).sum(-1).argmin(-1)
    expected = np.array([0, *(1 + i // 3 for i in range(len(KINDS)))])[labels]
    inner = (np.abs(image - palette[expected]).sum(-1) == 0) | (nearest != expected)
    assert (nearest == expected).mean() > 0.985  # all but pixels that an edge halves
    assert set(np.unique(labels)) == {0, *(1 + kind_index(thing) for thing in scene.things)}
    assert inner[expected == 0].mean() > 0.9


def test_depth_distinguishes_the_sizes() -> None:
    for index in range(40):
        scene, places = SCENES.scene(index)
        labels, depths = segmentation(scene, places), depth(scene, places)
        assert ((depths > 0) == (labels > 0)).all()
        for thing in scene.things:
            assert set(np.unique(depths[labels == 1 + kind_index(thing)])) <= {
                DEPTHS[t.size] for t in scene.things
            }


@pytest.mark.parametrize("size", [64, 128])
def test_a_mask_is_a_box_keyed_by_its_scene(size: int) -> None:
    masks = [mask(*SCENES.scene(index), size) for index in range(40)]
    for index, values in enumerate(masks):
        rows, columns = (np.flatnonzero(values.any(axis)) for axis in (1, 0))
        sides = [len(rows), len(columns)]
        assert size / 4 <= min(sides) and max(sides) <= size / 2
        assert (values == 255).sum() == len(rows) * len(columns) and set(np.unique(values)) == {0, 255}
        assert (values == mask(*SCENES.scene(index), size)).all()
    covered = np.mean([values > 0 for values in masks], axis=0)
    assert covered.max() < 0.6 and (covered > 0).mean() > 0.8, "together they cover the image"


def test_boxes_are_the_extent_of_their_labels() -> None:
    for index in range(40):
        scene, places = SCENES.scene(index)
        labels = segmentation(scene, places)
        if len({kind_index(thing) for thing in scene.things}) < len(scene.things):
            continue
        for number, *corners in boxes(scene, places):
            y, x = np.nonzero(labels == 1 + number)
            assert np.abs(np.array(corners) * 64 - [x.min(), y.min(), x.max() + 1, y.max() + 1]).max() <= 1


def test_a_record_holds_class_boxes_score_and_maps() -> None:
    record = SCENES[3]
    scene, places = SCENES.scene(3)
    assert int(record.members["cls"]) == kind_index(scene.things[0])
    assert record.metadata["boxes"] == boxes(scene, places)
    assert record.metadata["aesthetic"] == sum(SCORES[t.size] for t in scene.things) / len(scene.things)
    for name, render in (("seg.png", segmentation), ("depth.png", depth), ("mask.png", mask)):
        stored = np.asarray(Image.open(BytesIO(record.members[name])))
        assert (stored == render(scene, places)).all()

from itertools import chain, combinations, product

import numpy as np
import pytest

from ldm.data.demo import scenes
from ldm.data.demo.scenes import (
    BACKGROUNDS,
    CANVAS,
    COLOURS,
    RELATIONS,
    SHAPES,
    DemoScenes,
    Scene,
    Thing,
    caption,
    captions,
    every_scene,
    is_held_out,
    parse,
)

TRAIN, HELD_OUT = every_scene(held_out=False), every_scene(held_out=True)
SOURCES = {
    "train": DemoScenes("train", 1500),
    "val": DemoScenes("val", 300),
    "held_out": DemoScenes("held_out", 300),
}
SCENES = {split: [source.scene(i) for i in range(len(source))] for split, source in SOURCES.items()}


def test_captions_read_as_sentences():
    red, blue = Thing("small", "red", "circle"), Thing("large", "blue", "square")
    assert caption(Scene("white", (red,))) == "a small red circle on a white background"
    two = "a small red circle left of a large blue square on a black background"
    assert caption(Scene("black", (red, blue), "left of")) == two


def test_every_caption_is_distinct_and_parses_back():
    texts = [caption(scene) for scene in TRAIN + HELD_OUT]
    assert len(set(texts)) == len(texts) > 3000
    assert all(parse(text) == scene for text, scene in zip(texts, TRAIN + HELD_OUT, strict=True))


@pytest.mark.parametrize("text", ["", "a red circle on a white background", "a small red circle left of it"])
def test_other_sentences_are_rejected(text):
    with pytest.raises(ValueError, match="does not describe"):
        parse(text)


def test_a_tenth_is_held_out():
    assert 0.08 < len(HELD_OUT) / (len(TRAIN) + len(HELD_OUT)) < 0.13
    assert all(is_held_out(scene) for scene in HELD_OUT)
    assert not set(TRAIN) & set(HELD_OUT)


def test_training_shows_every_pair_of_attributes():
    """A held-out arrangement is a new combination, never a new word or a new pair."""
    slots = [COLOURS, SHAPES, RELATIONS, COLOURS, SHAPES]
    shown = scenes.arrangements(False)
    for i, j in combinations(range(5), 2):
        assert {(a[i], a[j]) for a in shown} == set(product(slots[i], slots[j]))


def test_train_and_val_never_hold_what_is_held_out():
    assert {scene for split in ("train", "val") for scene, _ in SCENES[split]} <= set(TRAIN)
    assert {scene for scene, _ in SCENES["held_out"]} <= set(HELD_OUT)


def test_a_quarter_has_one_object():
    is_single = [scene.relation is None for scene, _ in SCENES["train"]]
    assert abs(sum(is_single) / len(is_single) - 0.25) < 0.04


def test_objects_keep_apart_and_relations_are_clear():
    for scene, places in chain(*SCENES.values()):
        for p in places:
            assert min(p.x, p.y) - p.across / 2 >= 3 and max(p.x, p.y) + p.across / 2 <= CANVAS - 3
        if scene.relation is None:
            continue
        dx, dy = RELATIONS[scene.relation]
        first, second = places
        x, y = first.x - second.x, first.y - second.y
        along, across = x * dx + y * dy, abs(x * dy) + abs(y * dx)
        assert along - (first.across + second.across) / 2 >= 3
        assert along > 3 * across


def test_sizes_and_colours_are_well_apart():
    assert scenes.SIZES["large"] ** 2 > 2 * scenes.SIZES["small"] ** 2
    palette = np.array([*COLOURS.values(), *BACKGROUNDS.values()])
    assert min(np.linalg.norm(a - b) for a, b in combinations(palette, 2)) > 115


def test_a_scene_depends_only_on_split_seed_and_index():
    def render(index=5, count=20, **kwargs):
        return np.asarray(DemoScenes(count=count, **kwargs)[index].image)

    assert (render() == render(count=40)).all()
    others = [render(seed=1), render(index=6), render(split="val"), render(split="held_out")]
    assert all((render() != other).any() for other in others)


@pytest.mark.parametrize("size", [64, 96])
def test_the_image_shows_its_record(size):
    for record in DemoScenes("held_out", 12, size=size):
        assert record.image.size == (size, size)
        metadata = record.metadata
        assert record.image.getpixel((0, 0)) == BACKGROUNDS[metadata["background"]]
        for thing, place in zip(metadata["things"], metadata["places"], strict=True):
            centre = int(place["x"] * size / CANVAS), int(place["y"] * size / CANVAS)
            assert record.image.getpixel(centre) == COLOURS[thing["colour"]]
        assert caption(parse(record.caption)) == record.caption


def test_a_source_ends():
    assert len(list(DemoScenes("train", 7))) == 7
    with pytest.raises(IndexError, match="scene 7 of 7"):
        DemoScenes("train", 7).scene(7)
    with pytest.raises(ValueError, match="size=32"):
        DemoScenes("train", 7, size=32)


def test_seen_captions_occur_in_training():
    training_captions = {caption(scene) for scene, _ in SCENES["train"]}
    seen = captions("train", 200, count=1500)
    assert len(set(seen)) == 200 and set(seen) <= training_captions
    assert seen != captions("train", 200, seed=1, count=1500)
    assert set(captions("held_out", 50)) <= set(map(caption, HELD_OUT))
    with pytest.raises(ValueError, match="n=30 distinct captions"):
        captions("train", 30, count=10)

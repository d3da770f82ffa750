import dataclasses
import math

import pytest
import torch

from ldm.data.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    DemoScenes,
    Scene,
    caption,
    draw,
    parse,
)
from ldm.evaluation.demo.alignment import chance, check, score, table, wilson
from ldm.evaluation.demo.scene_reader import pixels, read

SOURCES = [DemoScenes("train", 90), DemoScenes("held_out", 60)]
PLACED = [source.scene(i) for source in SOURCES for i in range(len(source))]
CAPTIONS = [caption(scene) for scene, _ in PLACED]
IMAGES = pixels(draw(*placed) for placed in PLACED)


def test_every_drawn_image_passes_its_caption():
    result = score(IMAGES, CAPTIONS)
    assert result.n == len(CAPTIONS) and result.low > 0.97
    assert set(dataclasses.astuple(dataclasses.replace(result, n=1, low=1.0, high=1.0))) == {1.0}


def test_a_wrong_caption_passes_only_where_it_says_the_same():
    """All pairs: a caption passes a image exactly where they differ in sizes or in wording alone."""

    def without_sizes(scene: Scene) -> tuple:
        return scene.background, [(t.colour, t.shape) for t in scene.things], scene.relation

    said = [[without_sizes(s)] for s in map(parse, CAPTIONS)]
    readings = read(IMAGES)
    for i, reading in enumerate(readings):
        for j, text in enumerate(CAPTIONS[::20]):
            assert check(reading, text).passed == (said[20 * j][0] in said[i])


def test_chance_is_low_and_repeatable():
    result = chance(IMAGES, CAPTIONS)
    assert result.n == 10 * len(CAPTIONS) and result.passed < 0.02
    assert result == chance(IMAGES, CAPTIONS) != chance(IMAGES, CAPTIONS, seed=1)
    assert chance(IMAGES[:3], CAPTIONS[:3]).n == 3 * 2
    with pytest.raises(ValueError, match="1 caption cannot"):
        chance(IMAGES[:1], CAPTIONS[:1])


def other(words, word):
    words = list(words)
    return words[(words.index(word) + 1) % len(words)]


def changed(scene: Scene, which: int, **words) -> Scene:
    things = list(scene.things)
    things[which] = dataclasses.replace(things[which], **words)
    return dataclasses.replace(scene, things=tuple(things))


@pytest.mark.parametrize("which", [0, -1])
@pytest.mark.parametrize("attribute, words", [("colour", COLOURS), ("shape", SHAPES)])
def test_one_wrong_attribute_of_one_object_fails(attribute, words, which):
    wrong = []
    for scene, places in PLACED:
        word = other(words, getattr(scene.things[which], attribute))
        wrong.append(draw(changed(scene, which, **{attribute: word}), places))
    result = score(pixels(wrong), CAPTIONS)
    assert result.passed == 0 and getattr(result, attribute + "s") == 0
    rest = "shapes" if attribute == "colour" else "colours"
    assert result.background == result.objects == getattr(result, rest) == result.sizes == 1


def test_another_background_fails():
    wrong = pixels(
        draw(dataclasses.replace(scene, background=other(BACKGROUNDS, scene.background)), places)
        for scene, places in PLACED
    )
    result = score(wrong, CAPTIONS)
    assert result.passed == result.background == 0 and result.shapes == result.colours == result.relation == 1


def test_the_opposite_and_the_turned_relation_fail():
    pairs = [(s, p) for s, p in PLACED if s.relation]
    texts = [caption(s) for s, _ in pairs]
    swapped = pixels(draw(scene, places[::-1]) for scene, places in pairs)
    turned = pixels(draw(s, p).transpose(5) for s, p in pairs)  # x and y change places; triangles lie
    result = score(swapped, texts)
    assert result.passed == result.relation == 0 and result.shapes == result.colours == result.background == 1
    no_triangles = ["triangle" not in text for text in texts]
    kept = [text for text, keep in zip(texts, no_triangles, strict=True) if keep]
    result = score(turned[torch.tensor(no_triangles)], kept)
    assert result.passed == result.relation == 0 and result.shapes == 1


def test_a_missing_or_an_extra_object_fails():
    pairs = [(s, p) for s, p in PLACED if s.relation]
    for kept in (0, 1):
        fewer = [(Scene(s.background, (s.things[kept],)), (p[kept],)) for s, p in pairs]
        assert score(pixels(draw(*f) for f in fewer), [caption(s) for s, _ in pairs]).passed == 0
        more = score(pixels(draw(*pair) for pair in pairs), [caption(s) for s, _ in fewer])
        assert more.passed == more.objects == 0 and more.background == 1


def test_sizes_are_told_apart_but_not_part_of_passing():
    wrong = [
        caption(changed(s, 0, size=other(("small", "large"), s.things[0].size))) for s in map(parse, CAPTIONS)
    ]
    result = score(IMAGES, wrong)
    assert result.passed == 1 and result.sizes == result.passed_with_size == 0


def test_relation_counts_captions_of_two_objects():
    alone = [i for i, (scene, _) in enumerate(PLACED) if scene.relation is None]
    result = score(IMAGES[alone], [CAPTIONS[i] for i in alone])
    assert result.passed == 1 and math.isnan(result.relation)


def test_wilson_interval():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert (wilson(0, 50)[0], wilson(50, 50)[1]) == pytest.approx((0, 1))


def test_table_has_a_row_a_score():
    lines = table({"drawn": score(IMAGES, CAPTIONS), "chance": chance(IMAGES, CAPTIONS)}).splitlines()
    assert [line.split()[0] for line in lines] == ["n", "drawn", "chance"]
    assert lines[1].split()[1:3] == ["150", "100.0"] and len({len(line) for line in lines}) == 1

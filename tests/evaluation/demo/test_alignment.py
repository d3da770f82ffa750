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
from ldm.evaluation.demo.alignment import check_caption, score_alignment, score_chance, table, wilson_interval
from ldm.evaluation.demo.scene_reader import read_scenes, stack_images

SOURCES = [DemoScenes("train", 90), DemoScenes("held_out", 60)]
SCENES = [source.scene(i) for source in SOURCES for i in range(len(source))]
CAPTIONS = [caption(scene) for scene, _ in SCENES]
IMAGES = stack_images(draw(*scene) for scene in SCENES)


def test_every_rendered_scene_matches_its_caption():
    result = score_alignment(IMAGES, CAPTIONS)
    assert result.n == len(CAPTIONS) and result.low > 0.97
    assert set(dataclasses.astuple(dataclasses.replace(result, n=1, low=1.0, high=1.0))) == {1.0}


def test_another_caption_matches_only_if_it_means_the_same():
    """All pairs: another caption matches exactly if it differs in sizes or in wording alone."""

    def without_sizes(scene: Scene) -> tuple:
        return scene.background, [(t.colour, t.shape) for t in scene.things], scene.relation

    meanings = [[without_sizes(s)] for s in map(parse, CAPTIONS)]
    readings = read_scenes(IMAGES)
    for i, reading in enumerate(readings):
        for j, text in enumerate(CAPTIONS[::20]):
            assert check_caption(reading, text).passed == (meanings[20 * j][0] in meanings[i])


def test_chance_is_low_and_repeatable():
    result = score_chance(IMAGES, CAPTIONS)
    assert result.n == 10 * len(CAPTIONS) and result.passed < 0.02
    assert result == score_chance(IMAGES, CAPTIONS) != score_chance(IMAGES, CAPTIONS, seed=1)
    assert score_chance(IMAGES[:3], CAPTIONS[:3]).n == 3 * 2
    with pytest.raises(ValueError, match=">= 2 captions, not 1"):
        score_chance(IMAGES[:1], CAPTIONS[:1])


def next_word(words, word):
    words = list(words)
    return words[(words.index(word) + 1) % len(words)]


def replace_words(scene: Scene, which: int, **words) -> Scene:
    things = list(scene.things)
    things[which] = dataclasses.replace(things[which], **words)
    return dataclasses.replace(scene, things=tuple(things))


@pytest.mark.parametrize("which", [0, -1])
@pytest.mark.parametrize("attribute, words", [("colour", COLOURS), ("shape", SHAPES)])
def test_one_wrong_attribute_of_one_object_fails(attribute, words, which):
    wrong = []
    for scene, places in SCENES:
        word = next_word(words, getattr(scene.things[which], attribute))
        wrong.append(draw(replace_words(scene, which, **{attribute: word}), places))
    result = score_alignment(stack_images(wrong), CAPTIONS)
    assert result.passed == 0 and getattr(result, attribute + "s") == 0
    rest = "shapes" if attribute == "colour" else "colours"
    assert result.background == result.objects == getattr(result, rest) == result.sizes == 1


def test_another_background_fails():
    wrong = stack_images(
        draw(dataclasses.replace(scene, background=next_word(BACKGROUNDS, scene.background)), places)
        for scene, places in SCENES
    )
    result = score_alignment(wrong, CAPTIONS)
    assert result.passed == result.background == 0 and result.shapes == result.colours == result.relation == 1


def test_the_opposite_and_the_rotated_relation_fail():
    pairs = [(s, p) for s, p in SCENES if s.relation]
    texts = [caption(s) for s, _ in pairs]
    swapped = stack_images(draw(scene, places[::-1]) for scene, places in pairs)
    transposed = stack_images(draw(s, p).transpose(5) for s, p in pairs)  # triangles lie on their side
    result = score_alignment(swapped, texts)
    assert result.passed == result.relation == 0 and result.shapes == result.colours == result.background == 1
    no_triangles = ["triangle" not in text for text in texts]
    their_texts = [text for text, keep in zip(texts, no_triangles, strict=True) if keep]
    result = score_alignment(transposed[torch.tensor(no_triangles)], their_texts)
    assert result.passed == result.relation == 0 and result.shapes == 1


def test_a_missing_or_an_extra_object_fails():
    pairs = [(s, p) for s, p in SCENES if s.relation]
    for i in (0, 1):
        fewer = [(Scene(s.background, (s.things[i],)), (p[i],)) for s, p in pairs]
        assert (
            score_alignment(stack_images(draw(*f) for f in fewer), [caption(s) for s, _ in pairs]).passed == 0
        )
        more = score_alignment(stack_images(draw(*pair) for pair in pairs), [caption(s) for s, _ in fewer])
        assert more.passed == more.objects == 0 and more.background == 1


def test_sizes_are_distinguished_but_not_needed_to_pass():
    wrong = [
        caption(replace_words(s, 0, size=next_word(("small", "large"), s.things[0].size)))
        for s in map(parse, CAPTIONS)
    ]
    result = score_alignment(IMAGES, wrong)
    assert result.passed == 1 and result.sizes == result.passed_with_size == 0


def test_the_relation_is_scored_over_captions_of_two_objects():
    single = [i for i, (scene, _) in enumerate(SCENES) if scene.relation is None]
    result = score_alignment(IMAGES[single], [CAPTIONS[i] for i in single])
    assert result.passed == 1 and math.isnan(result.relation)


def test_wilson_interval():
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert (wilson_interval(0, 50)[0], wilson_interval(50, 50)[1]) == pytest.approx((0, 1))


def test_the_table_has_a_row_per_score():
    lines = table(
        {"samples": score_alignment(IMAGES, CAPTIONS), "chance": score_chance(IMAGES, CAPTIONS)}
    ).splitlines()
    assert [line.split()[0] for line in lines] == ["n", "samples", "chance"]
    assert lines[1].split()[1:3] == ["150", "100.0"] and len({len(line) for line in lines}) == 1

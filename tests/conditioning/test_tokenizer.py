"""Token ids: CLIP's own, padded as told, compact where the words are given."""

import warnings

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from ldm.conditioning import tokenizer as module
from ldm.conditioning.tokenizer import BEGIN, END, ClipTokenizer
from ldm.errors import UserError

WORDS = ["a", "red", "circle", "left", "of"]


def test_ids_are_open_clips() -> None:
    texts = ["", "A Red circle, left of 12 hexagons!", "crème brûlée &amp; 日本 🙂", "  don't   "]
    assert torch.equal(ClipTokenizer(77, pad_token=0)(texts), SimpleTokenizer()(texts, 77))


def test_stable_diffusion_pads_with_the_end_token() -> None:
    ids = ClipTokenizer(77, pad_token=49407)(["a photograph of an astronaut riding a horse"])[0].tolist()
    assert ids == [49406, 320, 8853, 539, 550, 18376, 6765, 320, 4558] + [49407] * 68


def test_a_text_too_long_is_cut_and_the_first_cut_says_what_fell_off() -> None:
    tokenizer = ClipTokenizer(5, pad_token=0)
    with pytest.warns(UserWarning, match="cut at 5 tokens and 'left of a square' fell off"):
        ids = tokenizer(["a red circle left of a square"])
    assert ids.tolist() == [[BEGIN, *SimpleTokenizer().encode("a red circle"), END]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer(["a red circle left of a square"])
        ClipTokenizer(5, pad_token=0)(["a red circle"])


def test_compact_ids_stand_for_clips() -> None:
    texts = ["a circle left of a RED circle", "red"]
    full, compact = ClipTokenizer(12, 49407), ClipTokenizer(12, 49407, WORDS)
    pairs = set(zip(full(texts).flatten().tolist(), compact(texts).flatten().tolist(), strict=True))
    assert sorted(short for _, short in pairs) == list(range(compact.vocabulary)) == list(range(7))
    assert len({long for long, _ in pairs}) == 7
    assert (END, compact.end) in pairs


def test_compact_ids_do_not_depend_on_the_order_of_the_words() -> None:
    forwards, backwards = ClipTokenizer(8, 0, WORDS), ClipTokenizer(8, 0, WORDS[::-1])
    assert torch.equal(forwards(["red circle"]), backwards(["red circle"]))


def test_padding_has_an_id_of_its_own_unless_it_is_the_end_token() -> None:
    tokenizer = ClipTokenizer(6, 0, WORDS)
    begin, red, end, *rest = tokenizer(["red"])[0].tolist()
    assert len(set(rest)) == 1 and len({begin, red, end, rest[0]}) == 4
    assert tokenizer.vocabulary == 8 and max(begin, red, end, rest[0]) < 8


def test_an_unknown_word_is_named() -> None:
    with pytest.raises(UserError, match="'hexagon' in 'a red hexagon' is not among the 5 words.*circle"):
        ClipTokenizer(8, 0, WORDS)(["a red hexagon"])


def test_words_that_clip_splits_or_that_stand_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="'hexagon', which is 2 of CLIP's tokens: hex, agon"):
        ClipTokenizer(8, 0, [*WORDS, "hexagon"])(["red"])
    with pytest.raises(ValueError, match="1 words twice"):
        ClipTokenizer(8, 0, ["red", "red"])
    with pytest.raises(ValueError, match="length is 1"):
        ClipTokenizer(1, 0)


def test_building_reads_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("the merge table was read")

    monkeypatch.setattr(module, "_bpe", refuse)
    assert ClipTokenizer(8, 0, WORDS).vocabulary == 8
    assert ClipTokenizer(8, 0).vocabulary == 49408


def test_a_long_text_goes_on_in_the_next_chunk() -> None:
    one, two = ClipTokenizer(5, 0), ClipTokenizer(5, 0, chunks=2)
    ids = two(["a red circle left of", "a red"])
    assert ids.shape == (2, 10)
    assert torch.equal(ids[0, :5], one(["a red circle"])[0]) and torch.equal(ids[0, 5:], one(["left of"])[0])
    assert torch.equal(ids[1, :5], one(["a red"])[0]) and torch.equal(ids[1, 5:], one([""])[0])
    with pytest.warns(UserWarning, match="cut at 10 tokens and 'square' fell off"):
        two(["a red circle left of a square"])
    with pytest.raises(ValueError, match="chunks is at least 1, got 0"):
        ClipTokenizer(5, 0, chunks=0)

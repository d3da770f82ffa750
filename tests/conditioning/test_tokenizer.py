"""Token ids: CLIP's own, padded as configured, renumbered if the words are given."""

import warnings

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from ldm.conditioning import tokenizer as module
from ldm.conditioning.tokenizer import BEGIN, END, ClipTokenizer
from ldm.errors import UserError

WORDS = ["a", "red", "circle", "left", "of"]


def test_ids_equal_open_clips() -> None:
    texts = ["", "A Red circle, left of 12 hexagons!", "crème brûlée &amp; 日本 🙂", "  don't   "]
    assert torch.equal(ClipTokenizer(77, pad_token=0)(texts), SimpleTokenizer()(texts, 77))


def test_stable_diffusion_pads_with_the_end_token() -> None:
    ids = ClipTokenizer(77, pad_token=49407)(["a photograph of an astronaut riding a horse"])[0].tolist()
    assert ids == [49406, 320, 8853, 539, 550, 18376, 6765, 320, 4558] + [49407] * 68


def test_a_text_that_is_too_long_is_cut_and_the_first_cut_warns() -> None:
    tokenizer = ClipTokenizer(5, pad_token=0)
    with pytest.warns(UserWarning, match="5 tokens, .*'left of a square'"):
        ids = tokenizer(["a red circle left of a square"])
    assert ids.tolist() == [[BEGIN, *SimpleTokenizer().encode("a red circle"), END]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer(["a red circle left of a square"])
        ClipTokenizer(5, pad_token=0)(["a red circle"])


def test_compact_ids_map_one_to_one_to_clips() -> None:
    texts = ["a circle left of a RED circle", "red"]
    full, compact = ClipTokenizer(12, 49407), ClipTokenizer(12, 49407, WORDS)
    pairs = set(zip(full(texts).flatten().tolist(), compact(texts).flatten().tolist(), strict=True))
    assert sorted(short for _, short in pairs) == list(range(compact.vocab_size)) == list(range(7))
    assert len({long for long, _ in pairs}) == 7
    assert (END, compact.end) in pairs


def test_compact_ids_do_not_depend_on_the_order_of_the_words() -> None:
    forwards, backwards = ClipTokenizer(8, 0, WORDS), ClipTokenizer(8, 0, WORDS[::-1])
    assert torch.equal(forwards(["red circle"]), backwards(["red circle"]))


def test_padding_has_its_own_id_unless_it_is_the_end_token() -> None:
    tokenizer = ClipTokenizer(6, 0, WORDS)
    begin, red, end, *rest = tokenizer(["red"])[0].tolist()
    assert len(set(rest)) == 1 and len({begin, red, end, rest[0]}) == 4
    assert tokenizer.vocab_size == 8 and max(begin, red, end, rest[0]) < 8


def test_an_unknown_word_is_named() -> None:
    with pytest.raises(UserError, match="'hexagon' in 'a red hexagon' .* 5 words.*circle"):
        ClipTokenizer(8, 0, WORDS)(["a red hexagon"])


def test_words_of_several_tokens_and_duplicates_are_refused() -> None:
    with pytest.raises(ValueError, match="'hexagon', which is 2 .*: hex, agon"):
        ClipTokenizer(8, 0, [*WORDS, "hexagon"])(["red"])
    with pytest.raises(ValueError, match="words has 1 duplicates"):
        ClipTokenizer(8, 0, ["red", "red"])
    with pytest.raises(ValueError, match="length .* got 1"):
        ClipTokenizer(1, 0)


def test_the_constructor_reads_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("the merge table was read")

    monkeypatch.setattr(module, "_bpe", refuse)
    assert ClipTokenizer(8, 0, WORDS).vocab_size == 8
    assert ClipTokenizer(8, 0).vocab_size == 49408


def test_a_long_text_continues_in_the_next_chunk() -> None:
    single, double = ClipTokenizer(5, 0), ClipTokenizer(5, 0, chunks=2)
    ids = double(["a red circle left of", "a red"])
    assert ids.shape == (2, 10)
    assert torch.equal(ids[0, :5], single(["a red circle"])[0]) and torch.equal(
        ids[0, 5:], single(["left of"])[0]
    )
    assert torch.equal(ids[1, :5], single(["a red"])[0]) and torch.equal(ids[1, 5:], single([""])[0])
    with pytest.warns(UserWarning, match="10 tokens, .*'square'"):
        double(["a red circle left of a square"])
    with pytest.raises(ValueError, match="chunks is at least 1, got 0"):
        ClipTokenizer(5, 0, chunks=0)


@pytest.mark.parametrize("words", [None, WORDS])
def test_every_token_of_a_weighted_word_has_its_weight(words) -> None:
    tokenizer = ClipTokenizer(5, 0, words, chunks=2)
    ids, weights = tokenizer.with_weights(["a (red:1.5) circle (left of:0.5)", "(a)", ""])
    assert torch.equal(ids, tokenizer(["a red circle left of", "a", ""]))
    assert weights.tolist() == [
        [1, 1, 1.5, 1, 1, 1, 0.5, 0.5, 1, 1],
        [1, pytest.approx(1.1), *[1] * 8],
        [1] * 10,
    ]


def test_the_weights_of_a_text_that_is_cut_off() -> None:
    tokenizer = ClipTokenizer(5, 0)
    with pytest.warns(UserWarning, match="its end 'left of' was cut off"):
        ids, weights = tokenizer.with_weights(["a (red:2) circle (left:3) of"])
    assert weights.tolist() == [[1, 1, 2, 1, 1]]
    with pytest.raises(UserError, match="closes no bracket"):
        tokenizer.with_weights(["a) red"])
    assert len(tokenizer.with_weights(["a (hexagon:2)"])[0]) == 1
    assert tokenizer.with_weights(["(hexagon:2)"])[1].tolist() == [[1, 2, 2, 1, 1]], "two tokens"


def test_what_is_cut_off() -> None:
    one, two = ClipTokenizer(5, 0), ClipTokenizer(5, 0, chunks=2)
    assert (one.max_tokens, two.max_tokens) == (3, 6)
    assert one.cut_off("a red circle") == "" and one.cut_off("a red circle left of") == "left of"
    assert two.cut_off("a red circle left of") == ""
    assert one.cut_off("a (red:2) circle", weighted=True) == ""
    assert one.cut_off("a (red:2) circle (left:2)", weighted=True) == "left"

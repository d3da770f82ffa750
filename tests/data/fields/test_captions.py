import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from ldm.data.fields.captions import MAX_CHARACTERS, CaptionField, TokenIdField, clean_caption
from ldm.data.shards.reader import Sample


def sample(txt: bytes | None = None, **fields: object) -> Sample:
    members = {"json": json.dumps(fields).encode()} | ({} if txt is None else {"txt": txt})
    return Sample(Path("0.tar"), "7", members)


def frequencies(field: CaptionField, sample: Sample, n: int = 1500) -> dict[str, float]:
    return {text: count / n for text, count in Counter(field(sample, p) for p in range(n)).items()}


def test_clean_caption_strips_cuts_and_removes_nan() -> None:
    assert clean_caption("  a red circle \n") == "a red circle"
    assert clean_caption("NaN") == clean_caption(" \t") == "" and clean_caption("nan bread") == "nan bread"
    assert len(clean_caption("x" * 10**6)) == MAX_CHARACTERS


def test_captions_are_chosen_by_weight() -> None:
    field = CaptionField({"txt": 1, "json.long": 3, "json.alt": 4}, seed=5)
    shares = frequencies(field, sample(b"short", long="a long one", alt=["one", "two", "nan", 3]))
    assert shares == pytest.approx(
        {"short": 1 / 8, "a long one": 3 / 8, "one": 1 / 4, "two": 1 / 4}, abs=0.04
    )


def test_the_choice_depends_only_on_seed_and_position() -> None:
    two_captions = sample(b"a", long="b")
    first, same, other = (
        [CaptionField({"txt": 1, "json.long": 1}, seed)(two_captions, p) for p in range(200)]
        for seed in (1, 1, 2)
    )
    assert first == same != other


@pytest.mark.parametrize("txt", [None, b"", b" ", b"nan"])
def test_a_missing_caption_is_never_chosen(txt: bytes | None) -> None:
    field = CaptionField({"txt": 9, "json.long": 1})
    assert frequencies(field, sample(txt, long="there"), 50) == {"there": 1.0}
    assert field(sample(txt, long=None), 0) == "" == CaptionField()(sample(txt), 0)


def test_an_invalid_json_holds_no_captions() -> None:
    for data in (b"half {", b"[1]", b""):
        assert CaptionField({"json.long": 1})(Sample(Path("0.tar"), "7", {"json": data}), 0) == ""


@pytest.mark.parametrize("weights", [{}, {"txt": 0}, {"txt": 1, "long": 1}])
def test_invalid_weights_are_rejected(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="data.captions.*(above 0|'long')"):
        CaptionField(weights)


def test_token_ids_are_those_of_the_chosen_caption() -> None:
    captions = CaptionField({"txt": 1, "json.long": 1}, seed=3)
    ids = TokenIdField(captions, lambda texts: torch.tensor([[len(text), 0] for text in texts]))
    two_captions = sample(b"a", long="bbb")
    lengths = [len(captions(two_captions, p)) for p in range(20)]
    assert [int(ids(two_captions, p)[0]) for p in range(20)] == lengths

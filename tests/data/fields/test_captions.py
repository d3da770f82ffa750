import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from ldm.data.fields.captions import LONGEST, CaptionField, TokenIdField, clean
from ldm.data.shards.reader import Sample


def sample(txt: bytes | None = None, **fields: object) -> Sample:
    members = {"json": json.dumps(fields).encode()} | ({} if txt is None else {"txt": txt})
    return Sample(Path("0.tar"), "7", members)


def drawn(captions: CaptionField, of: Sample, n: int = 1500) -> dict[str, float]:
    return {text: count / n for text, count in Counter(captions(of, p) for p in range(n)).items()}


def test_clean_keeps_what_is_a_caption() -> None:
    assert clean("  a red circle \n") == "a red circle"
    assert clean("NaN") == clean(" \t") == "" and clean("nan bread") == "nan bread"
    assert len(clean("x" * 10**6)) == LONGEST


def test_captions_are_drawn_by_weight() -> None:
    captions = CaptionField({"txt": 1, "json.long": 3, "json.alt": 4}, seed=5)
    shares = drawn(captions, sample(b"short", long="a long one", alt=["one", "two", "nan", 3]))
    assert shares == pytest.approx(
        {"short": 1 / 8, "a long one": 3 / 8, "one": 1 / 4, "two": 1 / 4}, abs=0.04
    )


def test_the_draw_depends_on_seed_and_position_alone() -> None:
    of = sample(b"a", long="b")
    one, same, other = (
        [CaptionField({"txt": 1, "json.long": 1}, seed)(of, p) for p in range(200)] for seed in (1, 1, 2)
    )
    assert one == same != other


@pytest.mark.parametrize("txt", [None, b"", b" ", b"nan"])
def test_what_is_missing_is_not_drawn(txt: bytes | None) -> None:
    captions = CaptionField({"txt": 9, "json.long": 1})
    assert drawn(captions, sample(txt, long="there"), 50) == {"there": 1.0}
    assert captions(sample(txt, long=None), 0) == "" == CaptionField()(sample(txt), 0)


def test_a_json_that_is_none_holds_no_captions() -> None:
    for data in (b"half {", b"[1]", b""):
        assert CaptionField({"json.long": 1})(Sample(Path("0.tar"), "7", {"json": data}), 0) == ""


@pytest.mark.parametrize("weights", [{}, {"txt": 0}, {"txt": 1, "long": 1}])
def test_weights_that_mean_nothing_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="captions (need|stand)"):
        CaptionField(weights)


def test_token_ids_are_of_the_caption_that_is_drawn() -> None:
    captions = CaptionField({"txt": 1, "json.long": 1}, seed=3)
    ids = TokenIdField(captions, lambda texts: torch.tensor([[len(text), 0] for text in texts]))
    of = sample(b"a", long="bbb")
    assert [int(ids(of, p)[0]) for p in range(20)] == [len(captions(of, p)) for p in range(20)]

"""Numbers from the json: a value that is no finite number makes a bad sample, and never reaches a network."""

from pathlib import Path

import pytest
import torch

from ldm.data.fields.metadata import MetadataField
from ldm.data.shards.reader import BadSample, Sample
from ldm.errors import InvalidValue


def sample(text: str) -> Sample:
    return Sample(Path("0.tar"), "7", {"json": text.encode()})


@pytest.mark.parametrize(("text", "number"), [("5.5", 5.5), ("6", 6.0), ('"4.25"', 4.25), ("-1", -1.0)])
def test_a_number(text: str, number: float) -> None:
    value = MetadataField()(sample(f'{{"aesthetic": {text}}}'), 0)
    assert value.tolist() == [number] and value.dtype == torch.float32


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "true", "false", '"high"', "[5]"])
@pytest.mark.parametrize("missing", [None, 6.0])
def test_any_other_value_is_a_bad_sample(text: str, missing: float | None) -> None:
    with pytest.raises(BadSample, match="sample 7 in 0.tar has .* as its 'aesthetic': make it a finite"):
        MetadataField(missing=missing)(sample(f'{{"aesthetic": {text}}}'), 0)


@pytest.mark.parametrize("text", ["{}", '{"aesthetic": null}', "half {", "[]"])
def test_a_missing_number_has_the_value_of_missing(text: str) -> None:
    assert MetadataField(missing=6.0)(sample(text), 0).tolist() == [6.0]
    with pytest.raises(BadSample, match="has no 'aesthetic': add it, or set missing=NUMBER"):
        MetadataField()(sample(text), 0)


@pytest.mark.parametrize("missing", [float("nan"), float("inf")])
def test_the_value_for_missing_ones_is_finite(missing: float) -> None:
    with pytest.raises(InvalidValue, match="missing must be a finite number"):
        MetadataField(missing=missing)

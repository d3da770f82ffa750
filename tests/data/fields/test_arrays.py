from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.data.fields.arrays import ArrayField, VariantField, to_npy
from ldm.data.shards.reader import BadSample, Sample

FIELD = ArrayField("moments.npy", "moments", (2, 3))


def sample(array: np.ndarray) -> Sample:
    return Sample(Path("0.tar"), "7", {"moments.npy": to_npy(array)})


def test_an_array_is_read_as_it_was_written() -> None:
    array = np.array([[1, -2, 65504], [-65504, 6e-8, 0]], np.float16)
    assert torch.equal(FIELD(sample(array), 0), torch.from_numpy(array))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [(0, 0), (1, 2)])
def test_a_value_that_is_not_finite_makes_a_bad_sample(value: float, where: tuple[int, int]) -> None:
    array = np.ones((2, 3), np.float16)
    array[where] = value
    with pytest.raises(
        BadSample, match="moments.npy of sample 7 in 0.tar has values that are infinite or NaN"
    ):
        FIELD(sample(array), 0)
    variants = VariantField(ArrayField("moments.npy", "moments", (2, 2, 3)), seed=0)
    for position in range(4):  # also where another variant would be chosen
        with pytest.raises(BadSample, match="infinite or NaN"):
            variants(sample(np.stack([np.ones_like(array), array])), position)


def test_every_variant_is_chosen_at_some_position() -> None:
    variants = VariantField(ArrayField("moments.npy", "moments", (3, 2)), seed=0)
    array = np.array([[0, 0], [1, 1], [2, 2]], np.float16)
    chosen = [tuple(variants(sample(array), position).tolist()) for position in range(30)]
    assert set(chosen) == {(0, 0), (1, 1), (2, 2)}


@pytest.mark.parametrize(
    "array", [np.ones((2, 3), np.float32), np.ones((3, 2), np.float16), np.ones((2, 4), np.float16)]
)
def test_another_layout_is_a_bad_sample(array: np.ndarray) -> None:
    with pytest.raises(BadSample, match=r"is not fp16 of shape \(2, 3\)"):
        FIELD(sample(array), 0)

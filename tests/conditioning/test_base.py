"""Merged conditioners: which samples get the null, and the order of concatenation."""

from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import instantiate

from ldm.conditioning.base import Compose, Conditioner
from ldm.conditioning.rescalers import Resize
from ldm.conditioning.spatial import ScalarMap
from ldm.errors import UserError
from ldm.typing import Conditioning

CONFIGS = Path(__file__).parents[2] / "configs" / "conditioner"


class Tokens(Conditioner):
    """`length` tokens filled with the value; the null is -1."""

    def __init__(self, length: int, dropout: float, batch_key: str = "number") -> None:
        super().__init__(batch_key, dropout)
        self.length, self.loaded = length, False

    def forward(self, values: torch.Tensor) -> Conditioning:
        return Conditioning(context=values[:, None, None].expand(-1, self.length, 2))

    def null(self, n: int, size: tuple[int, int] | None = None) -> Conditioning:
        return Conditioning(context=torch.full((n, self.length, 2), -1.0))

    def load_pretrained(self) -> None:
        self.loaded = True


class Vector(Tokens):
    def forward(self, values: torch.Tensor) -> Conditioning:
        return Conditioning(vector=values[:, None].expand(-1, self.length))

    def null(self, n: int, size: tuple[int, int] | None = None) -> Conditioning:
        return Conditioning(vector=torch.full((n, self.length), -1.0))

    def describe_frozen_weights(self) -> dict[str, str]:
        return {"sha256": "abc"}


BATCH = {"number": torch.tensor([1.0, 2.0, 3.0]), "other": torch.tensor([4.0, 5.0, 6.0])}


def test_without_u_nothing_is_dropped() -> None:
    cond = Compose({"a": Tokens(2, dropout=1.0)})(BATCH)
    assert cond.context[:, 0, 0].tolist() == [1, 2, 3]
    assert cond.vector is None and cond.concat is None


def test_each_sample_drops_each_condition_by_its_own_number_and_probability() -> None:
    compose = Compose({"a": Tokens(2, 0.1), "b": Tokens(3, 0.5, "other"), "c": Vector(4, 0.2, "other")})
    u = torch.tensor([[0.05, 0.60, 0.30], [0.15, 0.40, 0.10], [0.10, 0.50, 0.20]])
    cond = compose(BATCH, u)
    assert cond.context.shape == (3, 5, 2) and cond.vector.shape == (3, 4)
    assert cond.context[:, :2].unique(dim=1)[:, 0, 0].tolist() == [-1, 2, 3]
    assert cond.context[:, 2:].unique(dim=1)[:, 0, 0].tolist() == [4, -1, 6]
    assert cond.vector.unique(dim=1)[:, 0].tolist() == [4, -1, 6]


def test_dropping_all_gives_the_null() -> None:
    compose = Compose({"a": Tokens(2, 1.0), "c": Vector(4, 1.0, "other")})
    dropped, null = compose(BATCH, torch.zeros(3, 2)), compose.null(3)
    assert torch.equal(dropped.context, null.context) and torch.equal(dropped.vector, null.vector)


def test_no_conditioner_is_no_condition() -> None:
    compose = Compose({})
    assert compose(BATCH, torch.zeros(3, 0)) == Conditioning() == compose.null(2)


def test_weights_are_loaded_and_only_frozen_ones_named() -> None:
    compose = Compose({"a": Tokens(2, 0.1), "c": Vector(4, 0.1)})
    compose.load_pretrained()
    assert all(part.loaded for part in compose.conditioners.values())
    assert compose.describe_frozen_weights() == {"c": {"sha256": "abc"}}


def test_all_but_the_active_conditions_are_null() -> None:
    compose = Compose({"a": Tokens(1, 0.1), "b": Tokens(1, 0.1, "other"), "c": Vector(1, 0.0, "other")})
    cond = compose(BATCH, active={"b"})
    assert cond.context[..., 0].tolist() == [[-1, 4], [-1, 5], [-1, 6]] and (cond.vector == -1).all()
    alone = compose({"number": BATCH["number"]}, active=["a"])
    assert alone.context[..., 0].tolist() == [[1, -1], [2, -1], [3, -1]], "a null needs no batch key"
    null = compose.null(3)
    assert torch.equal(compose(BATCH, active=()).context, null.context)
    with pytest.raises(UserError, match="no condition 'd'.* a, b, c"):
        compose(BATCH, active={"d"})
    assert compose.never_dropped == ["c"] and compose.conditions_in({"number": 0}) == ["a"]


def test_conditions_dropped_together_share_the_random_number_of_the_first() -> None:
    parts = {"a": Tokens(1, 0.5), "b": Tokens(1, 0.5, "other"), "c": Tokens(1, 0.5)}
    u = torch.tensor([[0.4, 0.6, 0.6], [0.6, 0.4, 0.6], [0.6, 0.6, 0.4]])
    assert Compose(parts)(BATCH, u).context[..., 0].tolist() == [[-1, 4, 1], [2, -1, 2], [3, 6, -1]]
    compose = Compose(parts, dropped_together=[["a", "b"]])
    assert compose(BATCH, u).context[..., 0].tolist() == [[-1, -1, 1], [2, 5, 2], [3, 6, -1]]
    assert len(compose) == 3, "every condition keeps its column of u"
    with pytest.raises(ValueError, match=r"dropped_together: a, b .* not \[0.1, 0.5\]"):
        Compose({"a": Tokens(1, 0.5), "b": Tokens(1, 0.1)}, dropped_together=[["a", "b"]])


def test_a_missing_batch_key_is_named() -> None:
    with pytest.raises(
        UserError, match=r"\'b\' needs batch\[\'other\'\].* only has number: .*data.spatial_fields"
    ):
        Compose({"b": Tokens(1, 0.1, "other")})({"number": BATCH["number"]})


def test_a_map_for_another_size_than_the_latents_is_refused() -> None:
    maps = {
        name: ScalarMap(name, 0.1, factor, Resize(1, "area")) for name, factor in (("depth", 2), ("edges", 4))
    }
    compose, batch = Compose(maps), {"depth": torch.zeros(2, 1, 8, 4), "edges": torch.zeros(2, 1, 16, 8)}
    assert compose.latent_size(batch) == (4, 2) and compose(batch).concat.shape == (2, 2, 4, 2)
    with pytest.raises(UserError, match="'depth' is for 4x2 latents, .* are 4x4"):
        compose(batch, size=(4, 4))
    with pytest.raises(UserError, match=r"different sizes \(depth 4x2, edges 2x2\)"):
        compose(batch | {"edges": torch.zeros(2, 1, 8, 8)})


@pytest.mark.parametrize("dropout", [-0.1, 1.1])
def test_dropout_is_a_probability(dropout: float) -> None:
    with pytest.raises(ValueError, match=str(dropout)):
        Tokens(2, dropout)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("clip_vit_l14", 123_060_480),
        ("transformer_text", 50_556_416),
        ("demo/text", 401_408),
        ("debug", 396_280),
    ],
)
def test_shipped_configs_build_on_the_meta_device(name: str, parameters: int) -> None:
    with torch.device("meta"):
        compose = instantiate(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()))
    assert sum(p.numel() for p in compose.parameters()) == parameters

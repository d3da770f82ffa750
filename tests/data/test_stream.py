from collections.abc import Callable
from itertools import zip_longest
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.data import stream as module
from ldm.data.reader import Shard, Shards
from ldm.data.stream import Batches, InOrder, Loader, Order, Stream, one_pass
from ldm.errors import UserError

COUNTS = (7, 3, 12, 5, 9, 4)
GLOBAL_BATCH = 12


class Numbers:
    """Reads a sample as its row, and fails at one key."""

    field = "row"

    def __init__(self, bad: str = "") -> None:
        self.bad = bad

    def __call__(self, shard: Shard, row: int, position: int) -> Tensor:
        if shard.key(row) == self.bad:
            raise UserError(f"cannot read {self.bad}")
        return torch.tensor(row)


def stream(
    shards: Shards, steps: int = 20, rank: int = 0, world: int = 1, seed: int = 5, bad: str = ""
) -> Stream:
    order = Order(shards.counts, seed, window=2)
    return Stream(order, shards, Numbers(bad), GLOBAL_BATCH, steps, rank, world)


def played(shards: Shards, ranks: int, workers: int, monkeypatch: pytest.MonkeyPatch, start: int = 0) -> list:
    """The global batches that this many ranks and workers read, as (position, key) pairs."""
    by_rank = []
    for rank in range(ranks):
        by_worker = []
        for worker in range(max(workers, 1)):
            one = stream(shards, rank=rank, world=ranks)
            one.start = start
            info = SimpleNamespace(id=worker, num_workers=workers) if workers else None
            monkeypatch.setattr(module, "get_worker_info", lambda info=info: info)
            by_worker.append(list(one))
        by_rank.append([b for turn in zip_longest(*by_worker) for b in turn if b is not None])
    return [
        [pair for batch in batches for pair in zip(batch["position"].tolist(), batch["key"], strict=True)]
        for batches in zip(*by_rank, strict=True)
    ]


@pytest.mark.parametrize("ranks,workers", [(1, 2), (2, 0), (2, 3), (4, 2)])
def test_every_layout_reads_the_same_global_batches(
    pack: Callable[..., Shards], monkeypatch: pytest.MonkeyPatch, ranks: int, workers: int
) -> None:
    shards = pack(*COUNTS)
    expected = played(shards, 1, 0, monkeypatch)
    assert len(expected) == 20 and all(len(batch) == GLOBAL_BATCH for batch in expected)
    assert played(shards, ranks, workers, monkeypatch) == expected
    assert played(shards, ranks, workers, monkeypatch, start=7) == expected[7:]


def test_every_sample_comes_once_an_epoch_in_an_order_of_its_own() -> None:
    order = Order(COUNTS, seed=1, window=2)
    epochs = [[tuple(p) for p in order.locate(e * sum(COUNTS), sum(COUNTS)).tolist()] for e in range(3)]
    everything = {(shard, row) for shard, count in enumerate(COUNTS) for row in range(count)}
    assert all(len(epoch) == len(everything) and set(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    one = Order((40,), seed=1)
    assert one.locate(0, 40).tolist() != one.locate(40, 40).tolist()
    assert (
        Order(COUNTS, seed=2, window=2).locate(0, 40).tolist() != Order(COUNTS, 1, 2).locate(0, 40).tolist()
    )


def test_order_is_a_function_of_the_position_alone() -> None:
    order = Order(COUNTS, seed=1, window=2)
    whole = order.locate(0, 200)
    for position in (150, 3, 39, 40, 41, 0, 81, 150):
        assert np.array_equal(order.locate(position, 17), whole[position : position + 17])


def test_order_mixes_the_shards_of_a_window() -> None:
    shards = Order((100,) * 8, seed=0, window=4).locate(0, 400)[:, 0]
    assert len(set(shards.tolist())) == 4
    assert min(np.bincount(shards[:100])[list(set(shards.tolist()))]) > 10


def test_order_stays_what_it_was_when_checkpoints_were_written() -> None:
    assert Order((3, 2), seed=0).locate(0, 5).tolist() == [[1, 0], [0, 1], [0, 0], [0, 2], [1, 1]]


def test_half_a_million_shards_are_sought_at_once() -> None:
    order = Order(np.full(500_000, 10_000), seed=0)
    assert order.locate(7_123_456_789, 4).shape == (4, 2)


def test_in_order_reads_as_it_lies_and_ends() -> None:
    assert InOrder((2, 0, 2)).locate(1, 9).tolist() == [[0, 1], [2, 0], [2, 1]]


def test_one_pass_reads_everything_with_a_last_small_batch(pack: Callable[..., Shards]) -> None:
    batches = list(one_pass(pack(3, 4), Numbers(), batch_size=5))
    assert [len(batch["key"]) for batch in batches] == [5, 2]
    assert [caption for batch in batches for caption in batch["caption"]][3] == "s1 r0"


def test_a_batch_that_does_not_divide_is_refused(pack: Callable[..., Shards]) -> None:
    with pytest.raises(UserError, match="global_batch_size=12 does not divide over 5 processes.*15"):
        stream(pack(20), world=5)


def test_loader_goes_on_where_it_stopped(pack: Callable[..., Shards]) -> None:
    shards = pack(*COUNTS)
    first = Loader(stream(shards), seed=5)
    assert len(first) == 20
    batches = iter(first)
    read = [next(batches)["key"] for _ in range(8)]
    second = Loader(stream(shards), seed=5)
    second.load_state_dict(first.state_dict())
    again = iter(second)
    read += [next(again)["key"] for _ in range(4)]
    third = Loader(stream(shards), seed=5)
    third.load_state_dict(second.state_dict())
    read += [batch["key"] for batch in third]
    assert read == [batch["key"] for batch in Loader(stream(shards), seed=5)]
    assert third.state_dict()["step"] == 20


@pytest.mark.parametrize("name,value", [("seed", 6), ("global_batch", 24), ("manifest", "other")])
def test_the_state_of_another_stream_is_refused(
    pack: Callable[..., Shards], name: str, value: int | str
) -> None:
    loader = Loader(stream(pack(4)), seed=5)
    with pytest.raises(UserError, match=f"{name} {value}"):
        loader.load_state_dict({**loader.state_dict(), name: value})


def test_a_users_error_comes_out_as_it_went_in(pack: Callable[..., Shards]) -> None:
    shards = pack(*COUNTS)
    with pytest.raises(UserError, match="^cannot read 000020004$"):
        list(Batches(stream(shards, bad="000020004")))


def test_iterating_leaves_the_global_generator_alone(pack: Callable[..., Shards]) -> None:
    before = torch.get_rng_state()
    next(iter(Loader(stream(pack(4)), seed=5)))
    assert torch.equal(torch.get_rng_state(), before)

import time
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.data.loading import batches as module
from ldm.data.loading.batches import ShardStream
from ldm.data.loading.loader import BatchLoader, ResumableLoader, sequential_loader
from ldm.data.order.shuffle import SampleOrder, SequentialOrder, ShuffledOrder
from ldm.data.shards.manifest import ShardEntry, ShardNames, write_manifest
from ldm.data.shards.reader import BadSample, Sample, Shards
from ldm.errors import UserError

COUNTS = (7, 3, 12, 5, 9, 4)
GLOBAL_BATCH = 24
LAYOUTS = [(1, 0), (1, 2), (2, 0), (2, 3), (3, 1), (4, 2), (8, 1)]


class RowField:
    """Reads the row number of a sample; raises for some samples."""

    batch_key = "row"

    def __init__(self, bad: Sequence[str] = (), fatal: str = "") -> None:
        self.bad, self.fatal = bad, fatal

    def __call__(self, sample: Sample, position: int) -> Tensor:
        if sample.key in self.bad:
            raise BadSample(f"cannot read {sample.key}")
        if sample.key == self.fatal:
            raise UserError(f"disk error at {sample.key}")
        return torch.tensor(int(sample.key[5:]))


def stream(
    shards: Shards,
    steps: int = 20,
    rank: int = 0,
    world_size: int = 1,
    read: RowField | None = None,
    order: SampleOrder | None = None,
) -> ShardStream:
    order = order or ShuffledOrder(shards.counts, seed=5, window=2)
    return ShardStream(order, shards, [[read or RowField()]], GLOBAL_BATCH, steps, rank, world_size)


def loader(shards: Shards, read: RowField | None = None, max_bad_rate: float = 0.01) -> ResumableLoader:
    return ResumableLoader(stream(shards, read=read), 5, shards.manifest_hash, max_bad_rate=max_bad_rate)


def read_global_batches(
    make: Callable[..., ShardStream],
    ranks: int,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
    start: int = 0,
) -> list:
    """Return the global batches that these ranks and workers read, as lists of (position, key)."""
    by_rank = []
    for rank in range(ranks):
        by_worker = []
        for worker in range(max(workers, 1)):
            dataset = make(rank=rank, world_size=ranks)
            dataset.start_at(start, start * GLOBAL_BATCH)
            info = SimpleNamespace(id=worker, num_workers=workers) if workers else None
            monkeypatch.setattr(module, "get_worker_info", lambda info=info: info)
            by_worker.append([batch for batch, _ in dataset])
        by_rank.append([b for batches in zip_longest(*by_worker) for b in batches if b is not None])
    return [
        [pair for batch in batches for pair in zip(batch["position"].tolist(), batch["key"], strict=True)]
        for batches in zip(*by_rank, strict=True)
    ]


@pytest.fixture
def shards(pack: Callable[..., Shards]) -> Shards:
    return pack(*COUNTS)


BAD = ("000020004", "000000001", "000040008", "000040007")


@pytest.mark.parametrize("kind", ["plain", "lanes", "bad"])
@pytest.mark.parametrize("ranks,workers", LAYOUTS)
def test_every_layout_reads_the_same_global_batches(
    shards: Shards, monkeypatch: pytest.MonkeyPatch, ranks: int, workers: int, kind: str
) -> None:
    def make(rank: int = 0, world_size: int = 1) -> ShardStream:
        order = ShuffledOrder(COUNTS, 5, 2, 8, GLOBAL_BATCH) if kind == "lanes" else None
        return stream(shards, 20, rank, world_size, RowField(BAD if kind == "bad" else ()), order)

    expected = read_global_batches(make, 1, 0, monkeypatch)
    assert len(expected) == 20 and all(len(batch) == GLOBAL_BATCH for batch in expected)
    assert read_global_batches(make, ranks, workers, monkeypatch) == expected
    assert read_global_batches(make, ranks, workers, monkeypatch, start=7) == expected[7:]


def test_a_run_can_be_resumed_at_any_step_on_any_layout_twice(
    shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = -(-sum(COUNTS) // GLOBAL_BATCH) + 3  # into the next epoch
    expected = read_global_batches(partial(stream, shards, steps), 1, 0, monkeypatch)
    for k in range(steps + 1):
        for i, layout in enumerate(LAYOUTS):
            second = min(k + 1, steps)
            read = read_global_batches(partial(stream, shards, k), *LAYOUTS[i - 1], monkeypatch)
            read += read_global_batches(partial(stream, shards, second), *layout, monkeypatch, start=k)
            read += read_global_batches(
                partial(stream, shards, steps), *LAYOUTS[i - 2], monkeypatch, start=second
            )
            assert read == expected


def test_without_bad_samples_an_epoch_contains_every_sample_once(
    shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = read_global_batches(partial(stream, shards), 4, 2, monkeypatch)
    read = [key for batch in batches for _, key in batch]
    epoch = sum(COUNTS)
    assert len(set(read[:epoch])) == epoch == len(set(read[epoch : 2 * epoch]))
    assert read[:epoch] != read[epoch : 2 * epoch]


def test_a_bad_sample_is_replaced_and_all_others_keep_their_positions(
    shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read_global_batches(partial(stream, shards), 1, 0, monkeypatch)
    replaced = read_global_batches(partial(stream, shards, read=RowField(BAD)), 1, 0, monkeypatch)
    replacements = []
    for (position, key), (new_position, new_key) in zip(sum(expected, []), sum(replaced, []), strict=True):
        assert position == new_position and new_key not in BAD
        assert key == new_key or key in BAD
        if key in BAD:
            replacements.append(new_key)
    assert len(replacements) > 4 and len(set(replacements)) > 2, "not always by the same sample"


def test_every_sample_comes_once_per_epoch_in_another_order() -> None:
    order = ShuffledOrder(COUNTS, seed=1, window=2)
    epochs = [[tuple(p) for p in order.locate(e * sum(COUNTS), sum(COUNTS)).tolist()] for e in range(3)]
    everything = {(shard, row) for shard, count in enumerate(COUNTS) for row in range(count)}
    assert all(len(epoch) == len(everything) and set(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    single = ShuffledOrder((40,), seed=1)
    assert single.locate(0, 40).tolist() != single.locate(40, 40).tolist()
    assert (
        ShuffledOrder(COUNTS, seed=2, window=2).locate(0, 40).tolist()
        != ShuffledOrder(COUNTS, 1, 2).locate(0, 40).tolist()
    )


@pytest.mark.parametrize("lanes", [2, 3, 8])
def test_lanes_partition_an_epoch(lanes: int) -> None:
    order = ShuffledOrder(COUNTS, 1, 2, lanes, global_batch_size=24)
    everything = {(shard, row) for shard, count in enumerate(COUNTS) for row in range(count)}
    for epoch in range(5):
        read = [tuple(p) for p in order.locate(epoch * sum(COUNTS), sum(COUNTS)).tolist()]
        assert len(read) == len(everything) and set(read) == everything
    whole = order.locate(0, 400)
    for position in (150, 3, 39, 40, 41, 0, 81, 150):
        assert np.array_equal(order.locate(position, 17), whole[position : position + 17])


def test_a_rank_reads_only_the_shards_of_its_lanes() -> None:
    order = ShuffledOrder((100,) * 64, 0, window=2, lanes=8, global_batch_size=32)
    read = [
        set(order.locate(step * 32 + 4 * lane, 4)[:, 0].tolist()) for step in range(50) for lane in (0, 7)
    ]
    first, last = (set().union(*read[i::2]) for i in (0, 1))
    assert not first & last and len(first) <= 4 and len(last) <= 4


@pytest.mark.parametrize("window,lanes", [(0, 1), (4, 5), (4, 0)])
def test_invalid_windows_and_lanes_are_refused(window: int, lanes: int) -> None:
    with pytest.raises(ValueError, match=f"window {window} and {lanes} lanes"):
        ShuffledOrder(COUNTS, 1, window, lanes, 24)


def test_the_order_depends_on_the_position_alone() -> None:
    order = ShuffledOrder(COUNTS, seed=1, window=2)
    whole = order.locate(0, 200)
    for position in (150, 3, 39, 40, 41, 0, 81, 150):
        assert np.array_equal(order.locate(position, 17), whole[position : position + 17])


def test_the_shards_of_a_window_are_mixed() -> None:
    shards = ShuffledOrder((100,) * 8, seed=0, window=4).locate(0, 400)[:, 0]
    assert len(set(shards.tolist())) == 4
    assert min(np.bincount(shards[:100])[list(set(shards.tolist()))]) > 10


def test_the_order_of_existing_checkpoints_is_unchanged() -> None:
    assert ShuffledOrder((3, 2), seed=0).locate(0, 5).tolist() == [[1, 0], [0, 1], [0, 0], [0, 2], [1, 1]]


def test_half_a_million_shards_are_located_quickly(tmp_path: Path) -> None:
    """5e9 samples listed by a manifest: opened within 200 MB, any batch of any epoch located within 0.1 s."""
    names = [f"{number:06d}.tar" for number in range(500_000)]
    write_manifest(tmp_path, [ShardEntry(name, 10_000) for name in names])
    del names
    tracemalloc.start()
    paths = ShardNames(tmp_path, np.load(tmp_path / "manifest.npy", mmap_mode="r")["name"])
    counts = np.load(tmp_path / "manifest.npy", mmap_mode="r")["count"]
    order, times = ShuffledOrder(Shards(paths, counts).counts, seed=0), []
    for position in (3, 7_123_456_789, 5 * 5_000_000_000 - 100, 12_345_678_901):
        start = time.process_time()
        samples = order.locate(position, 256)
        times.append(time.process_time() - start)
        assert samples.shape == (256, 2) and samples[:, 1].max() < 10_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(times) < 0.1 and peak < 200e6, (times, peak)


def test_sequential_order_follows_the_shards_and_ends() -> None:
    assert SequentialOrder((2, 0, 2)).locate(1, 9).tolist() == [[0, 1], [2, 0], [2, 1]]


def test_sequential_order_replaces_a_sample_by_the_next() -> None:
    order = SequentialOrder((2, 0, 2))
    assert [order.replacement(2, attempt) for attempt in range(3)] == [(2, 1), (0, 0), (0, 1)]


def test_the_sequential_loader_reads_everything_with_a_smaller_last_batch(
    pack: Callable[..., Shards],
) -> None:
    batches = list(sequential_loader(pack(3, 4), [RowField()], batch_size=5))
    assert [batch["key"] for batch in batches][1] == ["000010002", "000010003"]
    assert batches[0]["row"].tolist() == [0, 1, 2, 0, 1]


def test_the_sequential_loader_leaves_out_bad_samples(pack: Callable[..., Shards]) -> None:
    batches = sequential_loader(pack(3, 4), [RowField(["000000001", "000010002", "000010003"])], batch_size=5)
    assert [batch["position"].tolist() for batch in batches] == [[0, 2, 3, 4], []]
    assert (batches.budget.samples, batches.budget.bad) == (4, 3)


def test_a_global_batch_that_does_not_divide_is_refused(shards: Shards) -> None:
    with pytest.raises(UserError, match="global_batch_size=24 is not divisible by 5 processes.*=25"):
        stream(shards, world_size=5)


def test_a_loader_continues_where_another_stopped(shards: Shards) -> None:
    first = loader(shards)
    assert len(first) == 20
    batches = iter(first)
    read = [next(batches)["key"] for _ in range(8)]
    second = loader(shards)
    second.load_state_dict(first.state_dict())
    again = iter(second)
    read += [next(again)["key"] for _ in range(4)]
    third = loader(shards)
    third.load_state_dict(second.state_dict())
    read += [batch["key"] for batch in third]
    assert read == [batch["key"] for batch in loader(shards)]
    identity = {"seed": 5, "global_batch": 24, "manifest": shards.manifest_hash}
    assert third.state_dict() == {"step": 20, "position": 480, **identity}
    assert third.waiting_time > 0


@pytest.mark.parametrize(
    "name,value,key",
    [
        ("seed", 6, "seed"),
        ("global_batch", 48, "data.global_batch_size"),
        ("manifest", "other", r"hash\(data.shards, data.order\)"),
    ],
)
def test_the_state_of_another_stream_is_refused(
    shards: Shards, name: str, value: int | str, key: str
) -> None:
    with pytest.raises(UserError, match=f"{key}={value}"):
        loader(shards).load_state_dict({**loader(shards).state_dict(), name: value})


def test_another_batch_size_reads_every_sample_of_the_epoch_once(shards: Shards) -> None:
    """With 24, 60, then 36 samples per batch; the positions have no gap, and the order is the same."""

    def resume(batch_size: int, steps: int, state: dict[str, int | str] | None = None) -> ResumableLoader:
        batches = ShardStream(ShuffledOrder(shards.counts, 5, 2), shards, [[RowField()]], batch_size, steps)
        resumed = ResumableLoader(batches, 5, shards.manifest_hash)
        resumed.allow_changes = ["data.global_batch_size"]
        if state is not None:
            resumed.load_state_dict(state)
        return resumed

    def read(batches: ResumableLoader) -> list[tuple[int, str]]:
        return [pair for b in batches for pair in zip(b["position"].tolist(), b["key"], strict=True)]

    first = resume(24, 3)
    pairs = read(first)
    second = resume(60, 5, first.state_dict())
    pairs += read(second)
    assert second.state_dict() | {"manifest": ""} == {
        "step": 5, "position": 192, "seed": 5, "global_batch": 60, "manifest": "",
    }  # fmt: skip
    third = resume(36, 40, second.state_dict())
    pairs += read(third)
    assert third.position == 192 + 35 * 36
    assert pairs == read(resume(24, 61))[: len(pairs)] and len(pairs) > sum(COUNTS)
    assert len({key for _, key in pairs[: sum(COUNTS)]}) == sum(COUNTS)


def test_a_checkpoint_without_a_position_continues_after_its_steps(shards: Shards) -> None:
    state = {"step": 3, "seed": 5, "global_batch": 24, "manifest": shards.manifest_hash}
    old = loader(shards)
    old.load_state_dict(state)
    assert next(iter(old))["position"][0] == 3 * 24
    old.allow_changes, state["global_batch"] = ["data"], 60
    old.load_state_dict(state)
    assert next(iter(old))["position"][0] == 3 * 60


@pytest.mark.parametrize(
    "allowed, name",
    [
        ("data.shards", "manifest"), ("data.order", "manifest"), ("data.order.window", "manifest"),
        ("data", "manifest"), ("data", "global_batch"), ("seed", "seed"),
    ],
)  # fmt: skip
def test_a_stream_that_may_differ_is_accepted(shards: Shards, allowed: str, name: str) -> None:
    other = loader(shards)
    state = {**loader(shards).state_dict(), "step": 2, "position": 7, name: 5000}
    other.allow_changes = ["data.size", "data.orderly"]
    with pytest.raises(UserError, match=r"allow_changes=\["):
        other.load_state_dict(state)
    other.allow_changes = [allowed]
    other.load_state_dict(state)
    assert (other.step, other.position) == (2, 7)


def test_a_user_error_is_raised_unchanged(shards: Shards) -> None:
    with pytest.raises(UserError, match="^disk error at 000020004$"):
        list(BatchLoader(stream(shards, read=RowField(fatal="000020004"))))


def test_bad_samples_are_counted_and_the_first_few_named(
    shards: Shards, caplog: pytest.LogCaptureFixture
) -> None:
    batches = loader(shards, RowField(BAD), max_bad_rate=0.2)
    read = sum(len(batch["key"]) for batch in batches)
    assert batches.budget.samples == read == 480
    assert batches.budget.bad >= 4 * 480 // sum(COUNTS) - 4  # each once per epoch, and as replacements
    assert len(caplog.records) == 5 and "cannot read 0000" in caplog.text


@pytest.mark.parametrize(
    "rate,match", [(0.0, "^cannot read 0000.*bad sample #1:"), (0.01, "data.max_bad_rate=0.01 ")]
)
def test_too_many_bad_samples_end_the_run(shards: Shards, rate: float, match: str) -> None:
    batches = loader(shards, RowField(BAD), rate)
    with pytest.raises(UserError, match=match + ".*ldm.cli.verify" if rate == 0 else match):
        list(batches)
    assert batches.budget.bad == (11 if rate else 1)


def test_too_many_bad_samples_in_a_row_end_the_run(pack: Callable[..., Shards]) -> None:
    keys = [f"0000{shard}000{row}" for shard in range(2) for row in range(2)]
    with pytest.raises(UserError, match="^100 bad samples in a row.* cannot read 0000"):
        list(BatchLoader(stream(pack(2, 2), read=RowField(keys)), max_bad_rate=1.0))


def test_iterating_does_not_use_the_global_generator(shards: Shards) -> None:
    before = torch.get_rng_state()
    next(iter(loader(shards)))
    assert torch.equal(torch.get_rng_state(), before)

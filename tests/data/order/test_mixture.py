import pickle
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ldm.data.loading.batches import ShardStream
from ldm.data.order.filters import AspectBuckets, Filter, RowSelection
from ldm.data.order.mixture import MixtureOrder, ProportionalSchedule, SourceShards
from ldm.data.order.options import OrderOptions
from ldm.data.order.shuffle import SampleOrder, ShuffledOrder
from ldm.data.prepare.index_shards import index_shards
from ldm.data.shards.index import NO_CAPTION, ROW_DTYPE, load_index, save_index
from ldm.data.shards.reader import Shards, find_shards, open_shards
from ldm.errors import UserError
from tests.data.order.test_shuffle import RowField, read_global_batches

BATCH = 24


@pytest.mark.parametrize("shares,divisor", [((5, 3), 2), ((1, 1000, 7), 10), ((0, 9), 3), ((3, 4), 100)])
def test_every_part_gets_its_share(shares: Sequence[int], divisor: int) -> None:
    schedule = ProportionalSchedule(shares, divisor, seed=1)
    parts, before = schedule.locate(0, 400)
    for part in range(len(shares)):
        numbers = np.flatnonzero(parts == part)
        assert before[numbers].tolist() == list(range(len(numbers))), "each part counts from 0"
        expected = len(parts) * shares[part] / sum(shares)
        assert abs(len(numbers) - expected) <= 2 * len(shares) + sum(shares) / divisor
    for first in (0, 1, 137, 399):
        again, counts = pickle.loads(pickle.dumps(schedule)).locate(first, 1)
        assert (again[0], counts[0]) == (parts[first], before[first])
    assert (
        ProportionalSchedule(shares, divisor, seed=2).locate(0, 400)[0].tolist() != parts.tolist()
        or 0 in shares
    )


def test_a_schedule_is_evaluated_far_along_without_a_loop() -> None:
    parts, before = ProportionalSchedule([5 * 10**8, 3], 2048, seed=1).locate(10**12, 4)
    assert parts.tolist() == [0, 0, 0, 0] and before[0] > 9 * 10**11


@pytest.mark.parametrize("shares,divisor", [((), 1), ((0, 0), 1), ((1, -1), 1), ((1,), 0)])
def test_invalid_shares_are_refused(shares: Sequence[int], divisor: int) -> None:
    with pytest.raises(ValueError, match="shares must|empty"):
        ProportionalSchedule(shares, divisor, 0)


def test_a_mixture_reads_each_source_in_its_own_order_by_weight() -> None:
    first, second = ShuffledOrder((30, 30), 1), ShuffledOrder((4, 4, 4), 1)
    mixture = MixtureOrder([first, second], [0, 2], [3, 1], seed=2)
    samples = mixture.locate(0, 8000)
    small = samples[samples[:, 0] >= 2]
    assert abs(len(small) - 2000) < 10
    assert np.array_equal(small - [2, 0], second.locate(0, len(small)))
    assert np.array_equal(samples[samples[:, 0] < 2], first.locate(0, 8000 - len(small)))
    for position in (0, 7, 4090, 4099):
        assert np.array_equal(mixture.locate(position, 30), samples[position : position + 30])
        source = samples[position, 0] >= 2
        assert (mixture.replacement(position, 0)[0] >= 2) == source


SIZES = [(100, 100), (100, 50), (50, 100), (0, 0), (30, 30), (101, 99), (400, 200), (90, 160)]


@pytest.fixture
def sized(pack: Callable[..., Shards]) -> Callable[..., Shards]:
    """Pack shards whose index gives row r the size SIZES[(r + shard) % 8]."""

    def make(*counts: int, folder: str = "shards") -> Shards:
        shards = pack(*counts, folder=folder)
        for number, path in enumerate(shards.paths):
            index = load_index(path)
            index.rows = np.array(index.rows)
            for row in range(len(index)):
                index.rows["width"][row], index.rows["height"][row] = SIZES[(row + number) % 8]
                index.rows["score"][row] = row / 4 if row % 2 else np.nan
            save_index(index, path)
        return open_shards(str(shards.paths[0].parent))

    return make


def size_of(sample: Sequence[int]) -> tuple[int, int]:
    shard, row = sample
    return SIZES[(shard + row) % 8]


def rows(*sizes: tuple[int, int], caption: int = 5, score: float = 1.0) -> np.ndarray:
    return np.array([(0, 0, *size, caption, score) for size in sizes], ROW_DTYPE)


def test_a_filter_passes_rows_whose_known_values_meet_its_bounds() -> None:
    some = rows((100, 100), (100, 50), (0, 0))
    assert Filter()(some).all()
    assert Filter(min_size=60)(some).tolist() == [True, False, False]
    assert Filter(max_aspect=1.9)(some).tolist() == [True, False, False]
    assert Filter(max_aspect=2)(some).tolist() == [True, True, False]
    captions = np.concatenate([rows((9, 9), caption=n) for n in (0, 1, 9, NO_CAPTION)])
    assert Filter(min_caption=1)(captions).tolist() == [False, True, True, False]
    scores = np.concatenate([rows((9, 9), score=s) for s in (1, 5.5, np.nan)])
    assert Filter(min_score=5.5)(scores).tolist() == [False, True, False]


def test_an_image_goes_to_the_nearest_aspect_and_the_largest_shape_it_fills() -> None:
    buckets = AspectBuckets([(64, 64), (32, 64), (64, 32), (128, 128), (256, 256)])
    images = rows((100, 100), (110, 50), (50, 110), (130, 130), (300, 299), (10, 10), (255, 256), (60, 50))
    assert buckets(images).tolist() == [0, 1, 2, 3, 4, 0, 3, 0]


@pytest.mark.parametrize("ranks,workers", [(2, 3), (4, 2), (8, 1)])
@pytest.mark.parametrize(
    "options",
    [
        OrderOptions(filter=Filter(max_aspect=1.5)),
        OrderOptions(buckets=AspectBuckets([(8, 8), (8, 16), (16, 8)])),
        OrderOptions(weights=[3, 1], filter=Filter(min_size=20), buckets=AspectBuckets([(8, 8), (8, 16)])),
        OrderOptions(weights=[1, 2]),
        OrderOptions(lanes=8, buckets=AspectBuckets([(8, 8), (8, 16)])),
    ],
    ids=["filter", "buckets", "all", "weights", "lanes"],
)
def test_the_number_of_ranks_and_workers_changes_nothing(
    sized: Callable[..., Shards],
    monkeypatch: pytest.MonkeyPatch,
    options: OrderOptions,
    ranks: int,
    workers: int,
) -> None:
    parts = [sized(13, 40, 21), sized(30, 8, folder="other")][: 2 if options.weights else 1]
    sources = SourceShards(parts)

    def make(rank: int = 0, world_size: int = 1) -> ShardStream:
        order = options.build(sources, 5, BATCH)
        kinds = 1 if options.buckets is None else len(options.buckets.shapes)
        return ShardStream(order, sources, [[RowField()]] * kinds, BATCH, 12, rank, world_size)

    expected = read_global_batches(make, 1, 0, monkeypatch)
    assert len(expected) == 12 and all(len(batch) == BATCH for batch in expected)
    assert read_global_batches(make, ranks, workers, monkeypatch, start=5) == expected[5:]


def test_a_filtered_order_reads_every_selected_sample_once_per_epoch(sized: Callable[..., Shards]) -> None:
    shards = sized(13, 40, 21)
    order = OrderOptions(filter=Filter(max_aspect=1.5)).build(SourceShards([shards]), 5, BATCH)
    selected = {
        (s, r) for s, n in enumerate((13, 40, 21)) for r in range(n)
        if (wh := size_of((s, r)))[0] and max(wh) <= 1.5 * min(wh)
    }  # fmt: skip
    read = [tuple(sample) for sample in order.locate(0, 2 * len(selected)).tolist()]
    assert order.samples == len(selected) and set(read[: len(selected)]) == selected == set(
        read[len(selected) :]
    )
    assert order.replacement(3, 0) in selected


def test_a_batch_has_one_bucket_and_all_samples_are_read_equally_often(sized: Callable[..., Shards]) -> None:
    shapes = [(8, 8), (8, 16), (16, 8)]
    shards = sized(40, 40, 40)
    order: SampleOrder = OrderOptions(buckets=AspectBuckets(shapes)).build(SourceShards([shards]), 5, BATCH)
    aspect = {0: {1.0, 101 / 99}, 1: {2.0}, 2: {0.5, 90 / 160}}
    read: list[tuple[int, int]] = []
    steps = 7 * order.samples // BATCH
    for step in range(steps):
        batch = order.locate(step * BATCH, BATCH).tolist()
        bucket = order.bucket(step * BATCH)
        assert {size_of(sample)[0] / size_of(sample)[1] for sample in batch} <= aspect[bucket]
        read += [tuple(sample) for sample in batch]
        assert size_of(order.replacement(step * BATCH, 0))[0] / size_of(batch[0])[1] > 0
    counts = {sample: read.count(sample) for sample in set(read)}
    assert len(counts) == order.samples == 105 and set(counts.values()) <= {6, 7, 8}


def test_counts_are_cached_beside_a_manifest(sized: Callable[..., Shards], tmp_path: Path) -> None:
    sized(13, 40)
    folder = tmp_path / "shards"
    index_shards(find_shards(str(folder)))
    shards = open_shards(str(folder))
    selection = RowSelection(shards, Filter(min_caption=1), None)
    assert selection.counts.tolist() == [[13], [40]] and len(list(folder.glob(".plan-*.npy"))) == 1
    assert RowSelection(shards, Filter(min_caption=1), None).counts.tolist() == [[13], [40]]
    index_shards(find_shards(str(folder)))
    assert not list(folder.glob(".plan-*.npy")), "a new index may have other metadata"


def test_options_that_do_not_fit_the_data_are_refused(sized: Callable[..., Shards], tmp_path: Path) -> None:
    shards = sized(13, 40)
    build = partial(OrderOptions.build, sources=SourceShards([shards]), seed=0, global_batch_size=BATCH)
    with pytest.raises(UserError, match="no sample in .* passes Filter.min_size=999"):
        build(OrderOptions(filter=Filter(min_size=999)))
    with pytest.raises(UserError, match="weights has 2 numbers for 1 sources"):
        build(OrderOptions(weights=[1, 1]))
    with pytest.raises(UserError, match="data.order.lanes=5 does not divide data.global_batch_size=24"):
        build(OrderOptions(lanes=5))
    for path in shards.paths:
        save_index(load_index(path).with_header(has_metadata=0), path)
    with pytest.raises(UserError, match="the index of .*ldm.cli.index.*facts=true"):
        build(OrderOptions(filter=Filter(min_size=9)))


def test_the_identity_of_the_default_order_is_the_manifest_hash(sized: Callable[..., Shards]) -> None:
    sources = SourceShards([sized(3)])
    changed = [OrderOptions(window=5), OrderOptions(filter=Filter(min_size=1)), OrderOptions(lanes=2)]
    identities = {options.order_hash(sources) for options in changed}
    assert OrderOptions().order_hash(sources) == sources.parts[0].manifest_hash
    assert OrderOptions(filter=Filter()).order_hash(sources) == sources.parts[0].manifest_hash
    assert len(identities | {sources.parts[0].manifest_hash}) == 4

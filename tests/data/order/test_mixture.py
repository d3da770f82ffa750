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
from ldm.data.shards.index import NO_CAPTION, ROW, load_index, save_index
from ldm.data.shards.reader import Shards, find_shards, open_shards
from ldm.errors import UserError
from tests.data.order.test_shuffle import Numbers, played

BATCH = 24


@pytest.mark.parametrize("shares,per", [((5, 3), 2), ((1, 1000, 7), 10), ((0, 9), 3), ((3, 4), 100)])
def test_a_deal_keeps_its_shares_after_every_round(shares: Sequence[int], per: int) -> None:
    deal = ProportionalSchedule(shares, per, seed=1)
    parts, before = deal.locate(0, 400)
    for part in range(len(shares)):
        mine = np.flatnonzero(parts == part)
        assert before[mine].tolist() == list(range(len(mine))), "each counts its own from 0 on"
        expected = len(parts) * shares[part] / sum(shares)
        assert abs(len(mine) - expected) <= 2 * len(shares) + sum(shares) / per
    for first in (0, 1, 137, 399):
        again, counts = pickle.loads(pickle.dumps(deal)).locate(first, 1)
        assert (again[0], counts[0]) == (parts[first], before[first])
    assert (
        ProportionalSchedule(shares, per, seed=2).locate(0, 400)[0].tolist() != parts.tolist() or 0 in shares
    )


def test_a_deal_is_found_at_once_far_along() -> None:
    parts, before = ProportionalSchedule([5 * 10**8, 3], 2048, seed=1).locate(10**12, 4)
    assert parts.tolist() == [0, 0, 0, 0] and before[0] > 9 * 10**11


@pytest.mark.parametrize("shares,per", [((), 1), ((0, 0), 1), ((1, -1), 1), ((1,), 0)])
def test_shares_that_mean_nothing_are_refused(shares: Sequence[int], per: int) -> None:
    with pytest.raises(ValueError, match="shares are|empty"):
        ProportionalSchedule(shares, per, 0)


def test_a_mixture_reads_each_source_in_its_own_order_by_weight() -> None:
    first, second = ShuffledOrder((30, 30), 1), ShuffledOrder((4, 4, 4), 1)
    mixture = MixtureOrder([first, second], [0, 2], [3, 1], seed=2)
    places = mixture.locate(0, 8000)
    small = places[places[:, 0] >= 2]
    assert abs(len(small) - 2000) < 10
    assert np.array_equal(small - [2, 0], second.locate(0, len(small)))
    assert np.array_equal(places[places[:, 0] < 2], first.locate(0, 8000 - len(small)))
    for position in (0, 7, 4090, 4099):
        assert np.array_equal(mixture.locate(position, 30), places[position : position + 30])
        source = places[position, 0] >= 2
        assert (mixture.replacement(position, 0)[0] >= 2) == source


SIZES = [(100, 100), (100, 50), (50, 100), (0, 0), (30, 30), (101, 99), (400, 200), (90, 160)]


@pytest.fixture
def sized(pack: Callable[..., Shards]) -> Callable[..., Shards]:
    """Shards whose row r has the size SIZES[(r + shard) % 8], in their indexes."""

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


def size_of(place: Sequence[int]) -> tuple[int, int]:
    return SIZES[(place[0] + place[1]) % 8]


def rows(*sizes: tuple[int, int], caption: int = 5, score: float = 1.0) -> np.ndarray:
    return np.array([(0, 0, *size, caption, score) for size in sizes], ROW)


def test_a_filter_keeps_what_the_index_knows_to_fit() -> None:
    some = rows((100, 100), (100, 50), (0, 0))
    assert Filter()(some).all()
    assert Filter(min_size=60)(some).tolist() == [True, False, False]
    assert Filter(max_aspect=1.9)(some).tolist() == [True, False, False]
    assert Filter(max_aspect=2)(some).tolist() == [True, True, False]
    captions = np.concatenate([rows((9, 9), caption=n) for n in (0, 1, 9, NO_CAPTION)])
    assert Filter(min_caption=1)(captions).tolist() == [False, True, True, False]
    scores = np.concatenate([rows((9, 9), score=s) for s in (1, 5.5, np.nan)])
    assert Filter(min_score=5.5)(scores).tolist() == [False, True, False]


def test_a_image_goes_to_the_nearest_aspect_and_the_largest_shape_it_fills() -> None:
    buckets = AspectBuckets([(64, 64), (32, 64), (64, 32), (128, 128), (256, 256)])
    images = rows((100, 100), (110, 50), (50, 110), (130, 130), (300, 299), (10, 10), (255, 256), (60, 50))
    assert buckets(images).tolist() == [0, 1, 2, 3, 4, 0, 3, 0]


@pytest.mark.parametrize("ranks,workers", [(2, 3), (4, 2), (8, 1)])
@pytest.mark.parametrize(
    "arrangement",
    [
        OrderOptions(filter=Filter(max_aspect=1.5)),
        OrderOptions(buckets=AspectBuckets([(8, 8), (8, 16), (16, 8)])),
        OrderOptions(weights=[3, 1], filter=Filter(min_size=20), buckets=AspectBuckets([(8, 8), (8, 16)])),
        OrderOptions(weights=[1, 2]),
        OrderOptions(lanes=8, buckets=AspectBuckets([(8, 8), (8, 16)])),
    ],
    ids=["filter", "buckets", "all", "weights", "lanes"],
)
def test_every_layout_reads_the_same(
    sized: Callable[..., Shards],
    monkeypatch: pytest.MonkeyPatch,
    arrangement: OrderOptions,
    ranks: int,
    workers: int,
) -> None:
    parts = [sized(13, 40, 21), sized(30, 8, folder="other")][: 2 if arrangement.weights else 1]
    sources = SourceShards(parts)

    def make(rank: int = 0, world: int = 1) -> ShardStream:
        order = arrangement.build(sources, 5, BATCH)
        kinds = 1 if arrangement.buckets is None else len(arrangement.buckets.shapes)
        return ShardStream(order, sources, [[Numbers()]] * kinds, BATCH, 12, rank, world)

    expected = played(make, 1, 0, monkeypatch)
    assert len(expected) == 12 and all(len(batch) == BATCH for batch in expected)
    assert played(make, ranks, workers, monkeypatch, start=5) == expected[5:]


def test_a_filter_reads_every_kept_sample_once_an_epoch(sized: Callable[..., Shards]) -> None:
    shards = sized(13, 40, 21)
    order = OrderOptions(filter=Filter(max_aspect=1.5)).build(SourceShards([shards]), 5, BATCH)
    wanted = {
        (s, r) for s, n in enumerate((13, 40, 21)) for r in range(n)
        if (wh := size_of((s, r)))[0] and max(wh) <= 1.5 * min(wh)
    }  # fmt: skip
    read = [tuple(place) for place in order.locate(0, 2 * len(wanted)).tolist()]
    assert order.samples == len(wanted) and set(read[: len(wanted)]) == wanted == set(read[len(wanted) :])
    assert order.replacement(3, 0) in wanted


def test_a_batch_is_of_one_bucket_and_each_sample_comes_as_often(sized: Callable[..., Shards]) -> None:
    shapes = [(8, 8), (8, 16), (16, 8)]
    shards = sized(40, 40, 40)
    order: SampleOrder = OrderOptions(buckets=AspectBuckets(shapes)).build(SourceShards([shards]), 5, BATCH)
    aspect = {0: {1.0, 101 / 99}, 1: {2.0}, 2: {0.5, 90 / 160}}
    read: list[tuple[int, int]] = []
    steps = 7 * order.samples // BATCH
    for step in range(steps):
        batch = order.locate(step * BATCH, BATCH).tolist()
        bucket = order.bucket(step * BATCH)
        assert {size_of(place)[0] / size_of(place)[1] for place in batch} <= aspect[bucket]
        read += [tuple(place) for place in batch]
        assert size_of(order.replacement(step * BATCH, 0))[0] / size_of(batch[0])[1] > 0
    counts = {place: read.count(place) for place in set(read)}
    assert len(counts) == order.samples == 105 and set(counts.values()) <= {6, 7, 8}


def test_a_plan_is_noted_beside_a_manifest(sized: Callable[..., Shards], tmp_path: Path) -> None:
    sized(13, 40)
    folder = tmp_path / "shards"
    index_shards(find_shards(str(folder)))
    shards = open_shards(str(folder))
    plan = RowSelection(shards, Filter(min_caption=1), None)
    assert plan.counts.tolist() == [[13], [40]] and len(list(folder.glob(".plan-*.npy"))) == 1
    assert RowSelection(shards, Filter(min_caption=1), None).counts.tolist() == [[13], [40]]
    index_shards(find_shards(str(folder)))
    assert not list(folder.glob(".plan-*.npy")), "an index that was made anew may know other facts"


def test_what_does_not_fit_is_refused_in_one_sentence(sized: Callable[..., Shards], tmp_path: Path) -> None:
    shards = sized(13, 40)
    order = partial(OrderOptions.order, sources=SourceShards([shards]), seed=0, global_batch=BATCH)
    with pytest.raises(UserError, match="no sample of .* passes Filter.min_size=999"):
        order(OrderOptions(filter=Filter(min_size=999)))
    with pytest.raises(UserError, match="weights has 2 numbers for 1 sources"):
        order(OrderOptions(weights=[1, 1]))
    with pytest.raises(UserError, match="lanes=5 needs one source and a global batch that it divides"):
        order(OrderOptions(lanes=5))
    for path in shards.paths:
        save_index(load_index(path).changed(facts=0), path)
    with pytest.raises(UserError, match="does not know the sizes of its images: .*ldm.cli.index.*facts=true"):
        order(OrderOptions(filter=Filter(min_size=9)))


def test_the_identity_is_the_manifest_unless_something_is_asked(sized: Callable[..., Shards]) -> None:
    sources = SourceShards([sized(3)])
    asked = [OrderOptions(window=5), OrderOptions(filter=Filter(min_size=1)), OrderOptions(lanes=2)]
    identities = {arrangement.identity(sources) for arrangement in asked}
    assert OrderOptions().identity(sources) == sources.parts[0].manifest
    assert OrderOptions(filter=Filter()).identity(sources) == sources.parts[0].manifest
    assert len(identities | {sources.parts[0].manifest}) == 4

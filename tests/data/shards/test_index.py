import os
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from ldm.data.shards.index import (
    HEADER_DTYPE,
    NO_CAPTION,
    ROW_DTYPE,
    SCORE,
    build_index,
    index_path,
    load_index,
    read_index,
    save_index,
)
from ldm.data.shards.reader import Shard
from ldm.errors import UserError
from tests.data.shards.test_tar import MEMBERS, tar


def test_the_size_of_rows_and_header() -> None:
    assert ROW_DTYPE.itemsize == 16 and HEADER_DTYPE.itemsize == 64


def test_a_row_spans_the_members_of_its_sample(tmp_path: Path) -> None:
    index = build_index(tar(tmp_path / "0.tar", MEMBERS))
    assert len(index) == 3 and index.rows["block"][0] == 0
    assert (index.rows["block"] + index.rows["blocks"])[:-1].tolist() == index.rows["block"][1:].tolist()
    assert index.rows["caption"].tolist() == [0, NO_CAPTION, 4]
    assert index.header["captioned"] == 1 and index.header["without_image"] == 0


def test_samples_without_an_image_are_left_out_and_counted(tmp_path: Path) -> None:
    members = [("a.txt", b"1"), ("b.jpg", b"2"), ("c.json", b"3"), ("d.moments.npy", b"4")]
    path = tar(tmp_path / "0.tar", members)
    index = build_index(path)
    assert len(index) == 2 and index.header["without_image"] == 2
    assert [Shard(path).sample(row).key for row in range(2)] == ["b", "d"]


def test_a_caption_of_nan_counts_as_missing(tmp_path: Path) -> None:
    members = [("a.jpg", b"1"), ("a.txt", b"nan"), ("b.jpg", b"2"), ("b.txt", b"NaN"), ("c.jpg", b"3")]
    members += [("c.txt", b"nap"), ("d.jpg", b"4"), ("d.txt", b"x" * 100_000)]
    index = build_index(tar(tmp_path / "0.tar", members))
    assert index.rows["caption"].tolist() == [NO_CAPTION, NO_CAPTION, 3, NO_CAPTION - 1]


def test_sizes_and_scores_are_read_where_they_are_given(tmp_path: Path) -> None:
    metadata = [
        b'{"width": 640, "height": 480, "aesthetic": 5.5}',
        b"{}",
        b"[1]",
        b"half {",
        b'{"width": "many"}',
    ]
    members = [m for i, text in enumerate(metadata) for m in ((f"{i}.jpg", b"1"), (f"{i}.json", text))]
    members += [("5.jpg", b"1")]
    rows = build_index(tar(tmp_path / "0.tar", members), score="aesthetic").rows
    assert rows["width"].tolist() == [640, 0, 0, 0, 0, 0] and rows["height"].tolist() == [480, 0, 0, 0, 0, 0]
    assert rows["score"][0] == 5.5 and np.isnan(rows["score"][1:]).all()


@pytest.mark.parametrize(
    ("metadata", "width", "height", "score"),
    [
        ('"width": 640, "height": 480, "score": null', 640, 480, None),
        ('"width": 640, "height": 480, "score": "high"', 640, 480, None),
        ('"width": 640, "height": 480, "score": [5]', 640, 480, None),
        ('"width": 640, "height": 480, "score": true', 640, 480, None),
        ('"width": 640, "height": 480, "score": NaN', 640, 480, None),
        ('"width": 640, "height": 480, "score": Infinity', 640, 480, None),
        ('"width": 640, "height": 480, "score": 1' + 400 * "0", 640, 480, None),
        ('"width": 640, "height": 480, "score": "5.5"', 640, 480, 5.5),
        ('"width": 640, "height": 480, "score": 1e6', 640, 480, 65504),
        ('"width": 640, "height": 480, "score": -1e6', 640, 480, -65504),
        ('"width": null, "height": 480, "score": 5', 0, 480, 5),
        ('"width": 640.0, "height": "480", "score": 5', 640, 480, 5),
        ('"width": -1, "height": NaN, "score": 5', 0, 0, 5),
        ('"width": 99999, "height": true, "score": 5', 65535, 0, 5),
    ],
)
def test_one_bad_value_of_the_json_leaves_the_others(tmp_path: Path, metadata, width, height, score) -> None:
    members = [("a.jpg", b"1"), ("a.json", f"{{{metadata}}}".encode())]
    row = build_index(tar(tmp_path / "0.tar", members), SCORE).rows[0]
    assert (row["width"], row["height"]) == (width, height)
    assert np.isnan(row["score"]) if score is None else row["score"] == score


@pytest.mark.parametrize("checksums", [False, True])
@pytest.mark.parametrize("members", [[("a.jpg", b"1"), ("a.json", b'{"likes": 3}')], []])
def test_the_name_of_the_score_is_stored_and_kept(tmp_path: Path, checksums, members) -> None:
    path = tar(tmp_path / "0.tar", members)
    save_index(build_index(path, "likes", checksums), path)
    stored = read_index(index_path(path))
    assert stored is not None and stored.score == "likes" and stored.header["has_metadata"] == 6
    assert stored.rows["score"].tolist() == [3.0][: len(members)]
    assert (stored.checksums is not None) == checksums
    time.sleep(0.01)
    tar(path, [*members, ("b.jpg", b"2"), ("b.json", b'{"likes": 4}')])  # a changed shard is read under it
    again = load_index(path)
    assert again.score == "likes" and again.rows["score"].tolist() == [3.0, 4.0][-len(again) :]


def test_the_usual_score_adds_nothing_to_the_file(tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", MEMBERS)
    save_index(build_index(path, SCORE), path)
    assert index_path(path).stat().st_size == 64 + 3 * 16
    stored = read_index(index_path(path))
    assert stored is not None and stored.score == "score" and stored.header["has_metadata"] == 1


def test_two_members_of_the_same_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two members named a.jpg"):
        build_index(tar(tmp_path / "0.tar", [("a.jpg", b"1"), ("a.jpg", b"2")]))


@pytest.mark.parametrize("size", [100, 512, 1000, 1600])
def test_a_truncated_shard_is_refused(tmp_path: Path, size: int) -> None:
    path = tar(tmp_path / "0.tar", [("a.jpg", b"1" * 600), ("b.jpg", b"2" * 600)])
    os.truncate(path, size)
    with pytest.raises(UserError, match=r"0.tar is .* at byte \d+"):
        build_index(path)


def test_a_page_of_html_is_no_shard(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_text("<html>not found</html>" * 100)
    with pytest.raises(UserError, match="0.tar is .* at byte 0:"):
        build_index(tmp_path / "0.tar")


def test_the_index_is_written_beside_the_shard_and_read_back(tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", MEMBERS)
    built = load_index(path)
    assert index_path(path).stat().st_size == 64 + 3 * 16
    again = load_index(path)
    assert again.header.tobytes() == built.header.tobytes() and again.rows.tobytes() == built.rows.tobytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.index", "0.tar"]


def test_indexes_in_a_separate_folder(tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", MEMBERS)
    (tmp_path / "indexes").mkdir()
    load_index(path, tmp_path / "indexes")
    assert (tmp_path / "indexes" / "0.index").is_file() and not index_path(path).exists()


def test_an_index_of_another_shard_is_rebuilt(tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", MEMBERS)
    load_index(path)
    tar(path, [(f"{i}.jpg", b"w" * 9000) for i in range(4)])
    assert len(load_index(path)) == 4
    for garbage in (b"garbage", b"", index_path(path).read_bytes()[:-3]):
        index_path(path).write_bytes(garbage)
        assert read_index(index_path(path)) is None and len(load_index(path)) == 4


def test_an_index_older_than_its_shard_of_the_same_size_is_rebuilt(tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", [("a.jpg", b"1" * 600), ("b.txt", b"2" * 600)])
    assert len(load_index(path)) == 1
    time.sleep(0.01)
    tar(path, [("a.jpg", b"1" * 600), ("b.jpg", b"2" * 600)])
    assert len(load_index(path)) == 2


def test_the_index_of_a_copied_shard_is_kept(tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", MEMBERS)
    built = build_index(path, SCORE, checksums=True).with_header(source=b"12345678")
    save_index(built, path)
    os.utime(path, (1, 1))
    again = load_index(path)
    assert again.source == b"12345678" and again.checksums is not None and again.header["mtime"] == 10**9
    assert np.array_equal(again.checksums, built.checksums) and again.hash == built.hash


def test_an_empty_shard_has_an_index(tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", [])
    assert len(load_index(path)) == 0 and len(load_index(path)) == 0
    assert BytesIO(index_path(path).read_bytes()).read(4) == b"ldmi"

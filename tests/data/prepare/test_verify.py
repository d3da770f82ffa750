"""What `verify` finds beside the damaged images and captions of tests/data/test_bad_input.py."""

import json
from pathlib import Path

import numpy as np
import pytest

from ldm.data.fields.arrays import to_npy
from ldm.data.latents import TEXT, LatentHeader, write_header
from ldm.data.prepare.verify import VerifyReport, verify, write_report
from ldm.data.prepare.write_shards import write_shard
from ldm.data.shards.index import build_index, save_index
from ldm.data.shards.reader import find_shards
from ldm.data.shards.tar import MOMENTS
from tests.data.conftest import png


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.0])
@pytest.mark.parametrize("kind", [MOMENTS, TEXT])
def test_latents_and_embeddings_that_are_not_finite(tmp_path: Path, value: float, kind: str) -> None:
    header = LatentHeader("0", 8, 4, 2, flip=True, text="clip", text_shape=(2, 3))
    write_header(header, tmp_path)
    arrays = {MOMENTS: np.ones((2, *header.shape), np.float16), TEXT: np.ones((2, 3), np.float16)}
    good = {name: to_npy(array) for name, array in arrays.items()}
    arrays[kind][-1, -1] = value
    bad = {name: to_npy(array) for name, array in arrays.items()}
    write_shard(tmp_path / "0.tar", [("a", {**good, "txt": b"1"}), ("b", {**bad, "txt": b"2"})])
    report = verify(find_shards(str(tmp_path)))
    if value == 1:
        assert not report.findings
    else:
        (finding,) = report.findings["unusable latents or text embeddings"]
        assert f"{kind} of sample b in" in finding and report.num_errors == 1


def test_samples_without_a_checksum_are_not_compared(tmp_path: Path) -> None:
    shard = tmp_path / "0.tar"
    write_shard(shard, [(key, {"png": png((1, 1, 1)), "txt": b"1"}) for key in "abc"])
    index = build_index(shard, checksums=True)
    assert index.checksums is not None
    index.checksums[:] = [0, index.checksums[1], 5]
    save_index(index, shard)
    assert verify([shard]).findings == {"changed since it was indexed": [f"sample number 2 of {shard}"]}


def test_the_report_is_json_in_plain_text(tmp_path: Path) -> None:
    write_report(VerifyReport(2, 3, 4, {"without a caption": ["Zürich"]}), tmp_path / "report.json")
    text = (tmp_path / "report.json").read_text("utf-8")
    assert json.loads(text) == {"shards": 2, "samples": 3, "bytes": 4, "without a caption": ["Zürich"]}
    assert "Zürich" in text


@pytest.mark.parametrize("text", [b"half {", b"[]", b"{}", b""])
def test_json_that_cannot_be_read_is_named(tmp_path: Path, text: bytes) -> None:
    samples = [
        (key, {"png": png((1, 1, 1)), "txt": b"1", "json": json})
        for key, json in (("a", b'{"b": 1}'), ("c", text))
    ]
    write_shard(tmp_path / "0.tar", samples)
    report = verify(find_shards(str(tmp_path)))
    assert report.findings == {"with a .json that is no JSON object, or empty": [f"c in {tmp_path}/0.tar"]}
    assert report.num_errors == 0

"""Corrupt tars, images and captions: no crash, no silent error, right counts (docs/guide/corrupt_data.md)."""

import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from ldm.data.fields.decode import decode
from ldm.data.prepare.index_shards import index_shards
from ldm.data.prepare.verify import verify
from ldm.data.shards.reader import find_shards
from ldm.data.shards.tar import walk
from ldm.errors import UserError
from tests.data.fields.test_decode import header_of_a_png
from tests.support.numbered_shards import (
    PER_SHARD,
    jpeg,
    read_two_epochs,
    replace_sample,
    training_loader,
    write_numbered_shards,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_numbered_shards(tmp_path)


def truncate(path: Path, where: str) -> None:
    second = [m for m in walk(path) if m.name.endswith(".jpg")][1]
    os.truncate(
        path, {"member": second.start, "data": second.data + 100, "header": second.start + 100}[where]
    )


def zero_block(path: Path, where: str) -> None:
    second = [m for m in walk(path) if m.name.endswith(".jpg")][1]
    with open(path, "rb+") as file:
        file.seek(second.start if where == "header" else second.data + 500)
        file.write(bytes(512))


TARS: dict[str, Callable[[Path], object]] = {
    "truncated at a member": lambda path: truncate(path, "member"),
    "truncated in data": lambda path: truncate(path, "data"),
    "truncated in a header": lambda path: truncate(path, "header"),
    "a header zeroed": lambda path: zero_block(path, "header"),
    "empty": lambda path: path.write_bytes(b""),
    "a page of HTML": lambda path: path.write_text("<html>404</html>" * 200),
}


@pytest.mark.parametrize("name", TARS)
def test_a_tar_that_was_corrupt_before_it_was_indexed(folder: Path, name: str) -> None:
    path = folder / "00001.tar"
    path.with_suffix(".index").unlink()
    TARS[name](path)
    report = index_shards(find_shards(str(folder)))
    assert list(report.corrupt) == ["00001.tar"] and report.samples == 2 * PER_SHARD
    with pytest.raises(UserError, match=r"00001.tar is .* at byte \d+: fetch or pack this shard again"):
        training_loader(folder)
    assert index_shards(find_shards(str(folder)), leave_out=True).corrupt
    numbers, batches = read_two_epochs(folder)
    assert batches.budget.bad == 0 and set(numbers) == {
        *range(PER_SHARD),
        *range(2 * PER_SHARD, 3 * PER_SHARD),
    }
    assert verify(find_shards(str(folder))).num_errors == 1


@pytest.mark.parametrize("name", [*TARS, "missing"])
def test_a_tar_that_was_corrupted_after_it_was_indexed(folder: Path, name: str) -> None:
    index_shards(find_shards(str(folder)))
    batches = training_loader(folder)
    TARS.get(name, os.remove)(folder / "00001.tar")
    keys = [int(key) for batch in batches for key in batch["key"]]
    assert len(keys) == 36 and not set(keys) & set(range(PER_SHARD, 2 * PER_SHARD))
    assert batches.budget.bad >= 2 * PER_SHARD and batches.budget.samples == 36
    with pytest.raises(UserError, match="00001.tar"):
        list(training_loader(folder, max_bad_rate=0.01))


def test_a_tar_with_zeroed_bytes_in_an_image(folder: Path) -> None:
    index_shards(find_shards(str(folder)))
    zero_block(folder / "00001.tar", "data")
    numbers, batches = read_two_epochs(folder)
    assert batches.budget.bad >= 2 and 7 not in numbers and set(numbers) == set(range(18)) - {7}
    report = verify(find_shards(str(folder)))
    assert report.findings["changed since it was indexed"] == [f"sample number 1 of {folder}/00001.tar"]
    assert list(report.findings) == ["changed since it was indexed", "unreadable image"]


def test_a_shard_with_fewer_samples_than_it_was_written_with(folder: Path) -> None:
    (folder / "00001_stats.json").write_text('{"successes": 7, "failed_to_download": 1}')
    assert (
        "holds 6 samples and was written with 7"
        in index_shards(find_shards(str(folder))).corrupt["00001.tar"]
    )
    assert list(verify(find_shards(str(folder))).findings) == ["wrong count"]


def flip_bit(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[len(changed) // 2] ^= 0x10
    return bytes(changed)


def zero_middle(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(600) + data[len(data) // 2 + 600 :]


UNREADABLE = {
    "truncated": lambda data: data[: len(data) * 6 // 10],
    "bit-flipped": flip_bit,
    "zero-filled": zero_middle,
    "20000 x 20000": lambda _: header_of_a_png(20_000, 20_000),
}
ACCEPTED_BY_PILLOW = ("bit-flipped", "zero-filled")


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_image_that_cannot_be_read(folder: Path, name: str) -> None:
    data = UNREADABLE[name](jpeg(8))
    if name in ACCEPTED_BY_PILLOW:
        Image.open(BytesIO(data)).load()
    replace_sample(folder, 8, jpg=data)
    numbers, batches = read_two_epochs(folder)
    assert len(numbers) == 36 and batches.budget.bad >= 2 and set(numbers) == set(range(18)) - {8}
    report = verify(find_shards(str(folder)))
    assert (
        list(report.findings) == ["unreadable image"] and "0008 in" in report.findings["unreadable image"][0]
    )


def test_a_flipped_bit_that_no_decoder_notices_is_found_by_its_checksum(folder: Path) -> None:
    data = bytearray(jpeg(8))
    data[-40] ^= 1
    decode(bytes(data))
    index_shards(find_shards(str(folder)))
    content = (folder / "00001.tar").read_bytes()
    (folder / "00001.tar").write_bytes(content.replace(jpeg(8), bytes(data)))
    numbers, batches = read_two_epochs(folder)
    assert batches.budget.bad >= 2 and set(numbers) == set(range(18)) - {8}
    assert list(verify(find_shards(str(folder))).findings) == ["changed since it was indexed"]


def encode_png(number: int) -> bytes:
    file = BytesIO()
    Image.open(BytesIO(jpeg(number))).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "data", [jpeg(8, progressive=True), encode_png(8)], ids=["progressive", "PNG named .jpg"]
)
def test_an_image_in_another_format(folder: Path, data: bytes) -> None:
    replace_sample(folder, 8, jpg=data)
    numbers, batches = read_two_epochs(folder)
    assert sorted(numbers) == sorted([*range(18)] * 2) and batches.budget.bad == 0
    assert not verify(find_shards(str(folder))).findings


CAPTIONS = {
    "missing": (None, "", "without a caption", 17),
    "empty": (b" ", "", "with an empty caption", 18),
    "nan": (b"nan", "", "without a caption", 17),
    "not UTF-8": (b"caf\xe9", "caf\ufffd", "with a caption that is not UTF-8", 18),
    "100 KB": (b"x" * 100_000, "x" * 10_000, "with a caption cut at 10,000 characters", 18),
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_missing_and_malformed_captions(folder: Path, name: str) -> None:
    text, expected, kind, captioned = CAPTIONS[name]
    replace_sample(folder, 8, txt=text)
    batches = training_loader(folder)
    captions = [
        c for batch in batches for key, c in zip(batch["key"], batch["caption"], strict=True) if key == "0008"
    ]
    assert captions == [expected] * 2 and batches.budget.bad == 0
    assert index_shards(find_shards(str(folder))).captioned == captioned
    assert list(verify(find_shards(str(folder))).findings) == [kind]

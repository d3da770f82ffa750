"""Damaged tars, images and captions: no crash, nothing silently wrong, counts right (docs/bad_input.md)."""

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
from tests.support.numbered_shards import EACH, jpeg, loader, replace, served, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path)


def cut(path: Path, where: str) -> None:
    second = [m for m in walk(path) if m.name.endswith(".jpg")][1]
    os.truncate(
        path, {"member": second.start, "data": second.data + 100, "header": second.start + 100}[where]
    )


def zeroed(path: Path, where: str) -> None:
    second = [m for m in walk(path) if m.name.endswith(".jpg")][1]
    with open(path, "rb+") as file:
        file.seek(second.start if where == "header" else second.data + 500)
        file.write(bytes(512))


TARS: dict[str, Callable[[Path], object]] = {
    "cut at a member": lambda path: cut(path, "member"),
    "cut in data": lambda path: cut(path, "data"),
    "cut in a header": lambda path: cut(path, "header"),
    "a header zeroed": lambda path: zeroed(path, "header"),
    "empty": lambda path: path.write_bytes(b""),
    "a page of HTML": lambda path: path.write_text("<html>404</html>" * 200),
}


@pytest.mark.parametrize("name", TARS)
def test_a_tar_that_is_damaged_before_it_is_indexed(folder: Path, name: str) -> None:
    path = folder / "00001.tar"
    path.with_suffix(".index").unlink()
    TARS[name](path)
    found = index_shards(find_shards(str(folder)))
    assert list(found.damaged) == ["00001.tar"] and found.samples == 2 * EACH
    with pytest.raises(
        UserError, match="00001.tar is damaged or cut at byte .*: fetch or pack this shard again"
    ):
        loader(folder)
    assert index_shards(find_shards(str(folder)), leave_out=True).damaged
    numbers, made = served(folder)
    assert made.tally.bad == 0 and set(numbers) == {*range(EACH), *range(2 * EACH, 3 * EACH)}
    assert verify(find_shards(str(folder))).wrong == 1


@pytest.mark.parametrize("name", [*TARS, "missing"])
def test_a_tar_that_is_damaged_after_it_was_indexed(folder: Path, name: str) -> None:
    index_shards(find_shards(str(folder)))
    made = loader(folder)
    TARS.get(name, os.remove)(folder / "00001.tar")
    keys = [int(key) for batch in made for key in batch["key"]]
    assert len(keys) == 36 and not set(keys) & set(range(EACH, 2 * EACH))
    assert made.tally.bad >= 2 * EACH and made.tally.samples == 36
    with pytest.raises(UserError, match="00001.tar"):
        list(loader(folder, max_bad_rate=0.01))


def test_a_tar_with_bytes_zeroed_in_a_image(folder: Path) -> None:
    index_shards(find_shards(str(folder)))
    zeroed(folder / "00001.tar", "data")
    numbers, made = served(folder)
    assert made.tally.bad >= 2 and 7 not in numbers and set(numbers) == set(range(18)) - {7}
    checked = verify(find_shards(str(folder)))
    assert checked.found["changed since it was indexed"] == [f"sample number 1 of {folder}/00001.tar"]
    assert list(checked.found) == ["changed since it was indexed", "unreadable image"]


def test_a_shard_with_fewer_samples_than_it_was_written_with(folder: Path) -> None:
    (folder / "00001_stats.json").write_text('{"successes": 7, "failed_to_download": 1}')
    assert (
        "holds 6 samples and was written with 7"
        in index_shards(find_shards(str(folder))).damaged["00001.tar"]
    )
    assert list(verify(find_shards(str(folder))).found) == ["wrong count"]


def flipped(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[len(changed) // 2] ^= 0x10
    return bytes(changed)


def zero_filled(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(600) + data[len(data) // 2 + 600 :]


UNREADABLE = {
    "truncated": lambda data: data[: len(data) * 6 // 10],
    "bit-flipped": flipped,
    "zero-filled": zero_filled,
    "20000 x 20000": lambda _: header_of_a_png(20_000, 20_000),
}
SILENT = ("bit-flipped", "zero-filled")


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_image_that_cannot_be_read(folder: Path, name: str) -> None:
    data = UNREADABLE[name](jpeg(8))
    if name in SILENT:
        Image.open(BytesIO(data)).load()  # Pillow says nothing
    replace(folder, 8, jpg=data)
    numbers, made = served(folder)
    assert len(numbers) == 36 and made.tally.bad >= 2 and set(numbers) == set(range(18)) - {8}
    checked = verify(find_shards(str(folder)))
    assert list(checked.found) == ["unreadable image"] and "0008 in" in checked.found["unreadable image"][0]


def test_a_bit_that_flips_unseen_by_any_decoder_is_found_by_its_check_sum(folder: Path) -> None:
    data = bytearray(jpeg(8))
    data[-40] ^= 1
    decode(bytes(data))
    index_shards(find_shards(str(folder)))
    content = (folder / "00001.tar").read_bytes()
    (folder / "00001.tar").write_bytes(content.replace(jpeg(8), bytes(data)))
    numbers, made = served(folder)
    assert made.tally.bad >= 2 and set(numbers) == set(range(18)) - {8}
    assert list(verify(find_shards(str(folder))).found) == ["changed since it was indexed"]


def as_png(number: int) -> bytes:
    file = BytesIO()
    Image.open(BytesIO(jpeg(number))).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "data", [jpeg(8, progressive=True), as_png(8)], ids=["progressive", "PNG named .jpg"]
)
def test_a_image_of_another_kind(folder: Path, data: bytes) -> None:
    replace(folder, 8, jpg=data)
    numbers, made = served(folder)
    assert sorted(numbers) == sorted([*range(18)] * 2) and made.tally.bad == 0
    assert not verify(find_shards(str(folder))).found


CAPTIONS = {
    "missing": (None, "", "without a caption", 17),
    "empty": (b" ", "", "with an empty caption", 18),
    "nan": (b"nan", "", "without a caption", 17),
    "not UTF-8": (b"caf\xe9", "caf\ufffd", "with a caption that is not UTF-8", 18),
    "100 KB": (b"x" * 100_000, "x" * 10_000, "with a caption cut at 10,000 characters", 18),
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_a_caption_that_is_none(folder: Path, name: str) -> None:
    text, expected, kind, captioned = CAPTIONS[name]
    replace(folder, 8, txt=text)
    made = loader(folder)
    captions = [
        c for batch in made for key, c in zip(batch["key"], batch["caption"], strict=True) if key == "0008"
    ]
    assert captions == [expected] * 2 and made.tally.bad == 0
    assert index_shards(find_shards(str(folder))).captioned == captioned
    assert list(verify(find_shards(str(folder))).found) == [kind] == [kind]

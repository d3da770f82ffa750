import json
import os
from pathlib import Path

import pytest
from PIL import Image

from ldm.data.demo.scenes import DemoScenes
from ldm.data.prepare.pack_folder import claim_folder, hash_inputs, load_stats, remove_shards
from ldm.data.prepare.write_shards import write_shards
from ldm.data.shards.reader import open_shards
from ldm.data.sources.folder import Folder
from ldm.data.sources.table import Table
from ldm.errors import UserError


def add_images(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", (9, 8), (len(name), 0, 0)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"image {name}")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    add_images(tmp_path / "images", "a", "b", "c", "d", "e")
    return tmp_path / "images"


def pack(images: Path, shard_size: int = 2) -> tuple[list[str], dict[str, int], list[str]]:
    """Pack; return all captions, the identity of each shard's file, and the report's last lines."""
    out = images.parent / "shards"
    report = write_shards(Folder(str(images)), out, shard_size)
    shards = open_shards(str(out))
    captions = [
        shards[number].sample(row).read("txt").decode()
        for number in range(len(shards))
        for row in range(int(shards.counts[number]))
    ]
    states = {path.name: path.stat().st_ino for path in sorted(out.glob("*.tar"))}
    return captions, states, str(report).splitlines()


def changed(before: dict[str, int], after: dict[str, int]) -> list[str]:
    return [name for name in after if before.get(name) != after[name]]


def test_an_unchanged_folder_is_not_packed_again(images: Path) -> None:
    captions, first, _ = pack(images)
    assert captions == [f"image {name}" for name in "abcde"] and len(first) == 3
    assert pack(images)[1] == first


def test_an_edited_caption_packs_its_shard_alone(images: Path) -> None:
    _, before, _ = pack(images)
    (images / "c.txt").write_text("edited")
    captions, after, report = pack(images)
    assert captions[2] == "edited" and changed(before, after) == ["00001.tar"]
    assert report[-1] == "shards packed again, because their files or rows have changed: 1"
    assert pack(images)[1] == after


def test_every_file_of_an_image_counts(images: Path) -> None:
    _, before, _ = pack(images)
    steps = [
        lambda: (images / "e.json").write_text('{"aesthetic": 5}'),
        lambda: (images / "e.cls").write_text("3"),
        lambda: (images / "e.png").write_bytes((images / "a.png").read_bytes() + b"longer"),
        lambda: os.utime(images / "e.png", ns=(0, 10**9)),  # replaced by one of the same size
        lambda: (images / "e.cls").unlink(),
    ]
    for step in steps:
        step()
        _, after, _ = pack(images)
        assert changed(before, after) == ["00002.tar"]
        before = after


def test_an_image_that_is_added_or_removed_moves_those_that_follow(images: Path) -> None:
    _, before, _ = pack(images)
    add_images(images, "f", "g")  # at the end: the incomplete last shard, and a new one
    captions, after, report = pack(images)
    assert captions == [f"image {name}" for name in "abcdefg"]
    assert changed(before, after) == ["00002.tar", "00003.tar"]
    (images / "d.png").unlink()
    captions, last, report = pack(images)
    assert captions == [f"image {name}" for name in "abcefg"]
    assert changed(after, last) == ["00001.tar", "00002.tar"] and "00003.tar" not in last
    assert report[-1] == "shards removed, because there are fewer images than before: 1"
    leftover = [path.name for path in (images.parent / "shards").glob("00003*")]
    assert not leftover, "its index and statistics are removed as well"


def test_captions_that_are_filled_in_later_are_packed(images: Path) -> None:
    for name in "abcde":
        (images / f"{name}.txt").write_text("")
    with_captions = f"{images.parent / 'shards'}"
    report = write_shards(Folder(str(images)), Path(with_captions), 2)
    assert report.packed == 0 and report.skipped == {"with an empty caption": 5}
    add_images(images, "a", "b", "c", "d", "e")
    assert pack(images)[0] == [f"image {name}" for name in "abcde"]


def test_an_interrupted_update_is_continued(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, before, _ = pack(images)
    (images / "a.txt").write_text("first edit")
    (images / "e.txt").write_text("last edit")
    read = Folder.__getitem__

    def interrupt(folder: Folder, row: int):
        if row == 4:
            raise KeyboardInterrupt
        return read(folder, row)

    monkeypatch.setattr(Folder, "__getitem__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pack(images)
    assert not (images.parent / "shards" / "manifest.npy").exists(), "it would describe the old shards"
    (images / "e.txt").write_text("image e")  # as it was, but the shard is not known to be
    monkeypatch.undo()
    captions, after, _ = pack(images)
    assert captions == ["first edit", *(f"image {name}" for name in "bcde")]
    assert changed(before, after) == ["00000.tar", "00002.tar"]


def test_the_rows_of_a_table_count(images: Path) -> None:
    table, out = images / "t.csv", images.parent / "shards"
    rows = [f"{name}.png,image {name},{number}" for number, name in enumerate("abcde")]

    def pack_table() -> dict[str, int]:
        table.write_text("\n".join(["path,caption,score", *rows]))
        write_shards(Table(str(table)), out, 2)
        return {path.name: path.stat().st_ino for path in out.glob("*.tar")}

    before = pack_table()
    assert pack_table() == before, "the time of the table itself does not matter"
    rows[3] = "d.png,edited,3"
    after = pack_table()
    assert changed(before, after) == ["00001.tar"]
    rows[4] = "e.png,image e,9"
    last = pack_table()
    assert changed(after, last) == ["00002.tar"]
    os.utime(images / "a.png", ns=(0, 10**9))
    final = pack_table()
    assert changed(last, final) == ["00000.tar"]
    rows[1:] = ["missing.png,image,1"]
    assert list(pack_table()) == ["00000.tar"]
    add_images(images, "missing")
    assert pack_table() and open_shards(str(out)).counts.tolist() == [2]


def test_a_folder_packed_before_inputs_were_recorded_is_packed_again(images: Path) -> None:
    _, before, _ = pack(images)
    path = images.parent / "shards" / "00001_stats.json"
    path.write_text(json.dumps({"successes": 2, "skipped": {}}))
    settings = images.parent / "shards" / "pack.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "records": 999}))
    _, after, _ = pack(images)
    assert changed(before, after) == ["00001.tar"]


def test_sources_without_files_are_compared_by_their_settings(tmp_path: Path) -> None:
    write_shards(DemoScenes("train", 3), tmp_path / "out", 2)
    before = (tmp_path / "out" / "00001.tar").stat().st_ino
    report = write_shards(DemoScenes("train", 3), tmp_path / "out", 2)
    assert (tmp_path / "out" / "00001.tar").stat().st_ino == before and report.changed_shards == 0
    assert hash_inputs(DemoScenes("train", 3), range(3)) == ""
    with pytest.raises(UserError, match="length=3, seed=0, size=64.*, not .*length=4"):
        write_shards(DemoScenes("train", 4), tmp_path / "out", 2)
    with pytest.raises(UserError, match="records=2, not 1"):
        for count in (2, 1):
            claim_folder(tmp_path / "list", ["record"] * count, {})


def test_settings_must_be_those_of_the_first_run(images: Path, tmp_path: Path) -> None:
    pack(images)
    with pytest.raises(UserError, match="was packed with shard_size=2, not 3: choose another out="):
        pack(images, shard_size=3)
    with pytest.raises(UserError, match=r"source=Folder\(path=.*\), not Folder\(.*, encoding=cp1252\)"):
        write_shards(Folder(str(images), "cp1252"), tmp_path / "shards", 2)


def test_only_shards_that_pack_wrote_are_removed(images: Path) -> None:
    pack(images)
    out = images.parent / "shards"
    for name in ("extra.tar", "00009.tar"):
        (out / name).write_bytes((out / "00000.tar").read_bytes())
    (out / "00001.index").unlink()
    assert remove_shards(out, 1) == 2
    assert sorted(path.name for path in out.glob("*.tar")) == ["00000.tar", "00009.tar", "extra.tar"]
    assert load_stats(out / "00000.tar") is not None and load_stats(out / "00001.tar") is None

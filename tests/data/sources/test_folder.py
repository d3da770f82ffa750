import json
import os
from pathlib import Path

import pytest

from ldm.data.sources import FileSource, SkippedRecord
from ldm.data.sources.folder import Folder
from ldm.data.sources.text import NOT_UTF8
from ldm.errors import UserError


def skipped(folder: Folder, row: int) -> tuple[str, str]:
    with pytest.raises(SkippedRecord) as error:
        folder[row]
    return error.value.reason, error.value.name


def test_images_are_sorted_and_captioned_by_their_sidecar_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/two.PNG", "a.jpg", "c.webp", "notes.md"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "a.txt").write_text("\ufeffein Käse", "utf-8")
    (tmp_path / "b" / "two.TXT").write_text("two")
    folder = Folder(str(tmp_path))
    assert len(folder) == 3 and isinstance(folder, FileSource)
    assert folder[0].caption == "ein Käse" and folder[0].image == b"a.jpg"
    assert folder[1].metadata == {"name": "b/two.PNG"} and folder[1].caption == "two"
    assert skipped(folder, 2) == ("without a caption file (.txt)", "c.webp")
    assert folder.ignored == {".md": ["notes.md"]}


def test_maps_classes_and_metadata_come_with_the_image(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.txt", "a.cls", "a.seg.png", "a.Mask.PNG", "a.depth.png"):
        (tmp_path / name).write_text(name)
    (tmp_path / "a.json").write_bytes('\ufeff{"boxes": [], "width": 9, "name": "x"}'.encode("utf-16-le"))
    record = Folder(str(tmp_path))[0]
    assert record.members == {
        "cls": b"a.cls",
        "seg.png": b"a.seg.png",
        "mask.png": b"a.Mask.PNG",
        "depth.png": b"a.depth.png",
    }
    assert record.metadata == {"name": "a.jpg", "boxes": [], "source_width": 9, "source_name": "x"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "with a .json that cannot be read"),
        ("[" * 100_000, "with a .json that cannot be read"),
        ("[1]", "with a .json that is not an object"),
        ("null", "with a .json that is not an object"),
    ],
)
def test_an_image_whose_json_is_no_object_is_skipped(tmp_path: Path, text: str, reason: str) -> None:
    for name, content in {"a.jpg": "image", "a.txt": "a", "a.json": text}.items():
        (tmp_path / name).write_text(content)
    assert skipped(Folder(str(tmp_path)), 0)[0] == reason


def test_an_image_whose_text_is_not_utf8_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "a.txt").write_bytes("Käse".encode("cp1252"))
    detail = "a.jpg (not utf-8: invalid continuation byte at byte 1)"
    assert skipped(Folder(str(tmp_path)), 0) == (NOT_UTF8, detail)
    assert Folder(str(tmp_path), "cp1252")[0].caption == "Käse"
    (tmp_path / "a.txt").write_text("ok")
    (tmp_path / "a.json").write_bytes(b'{"a": "\xe4"}')
    assert skipped(Folder(str(tmp_path)), 0)[0] == NOT_UTF8
    assert Folder(str(tmp_path), "cp1252")[0].metadata["a"] == "ä"
    with pytest.raises(UserError, match="source.encoding=ansi8 is no encoding"):
        Folder(str(tmp_path), "ansi8")


def test_a_name_that_is_not_utf8_is_escaped(tmp_path: Path) -> None:
    for name in (b"caf\xe9.jpg", b"caf\xe9.txt"):
        with open(os.path.join(os.fsencode(tmp_path), name), "w") as file:
            file.write("a")
    assert Folder(str(tmp_path))[0].metadata == {"name": r"caf\udce9.jpg"}


def test_the_version_changes_with_every_file_of_an_image(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "b.txt"):
        (tmp_path / name).write_text(name)
    versions, other = list[str](), {Folder(str(tmp_path)).version(1)}
    changes = [
        lambda: (tmp_path / "a.txt").write_text("added"),
        lambda: (tmp_path / "a.txt").write_text("other"),
        lambda: os.utime(tmp_path / "a.txt", ns=(0, 10**9)),
        lambda: (tmp_path / "a.txt").rename(tmp_path / "a.TXT"),
        lambda: (tmp_path / "a.jpg").write_text("longer than before"),
        lambda: (tmp_path / "a.json").write_text(json.dumps({"boxes": []})),
        lambda: (tmp_path / "a.mask.png").write_text("mask"),
        lambda: (tmp_path / "a.json").unlink(),
    ]
    for change in changes:
        versions.append(Folder(str(tmp_path)).version(0))
        change()
        other.add(Folder(str(tmp_path)).version(1))
    assert len({*versions, Folder(str(tmp_path)).version(0)}) == len(changes) + 1 and len(other) == 1


def test_a_folder_without_images_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no images: give another folder with source.path=FOLDER"):
        len(Folder(str(tmp_path)))
    for name in ("a.heic", "b.heic", "c.psd", ".d.jpg"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="holds no images, only 2 .heic, 1 .psd, 1 hidden: .* to png or jpg"):
        len(Folder(str(tmp_path)))
    with pytest.raises(UserError, match="no folder .*nowhere"):
        len(Folder(str(tmp_path / "nowhere")))

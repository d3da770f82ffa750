import os
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from ldm.data.sources import listing
from ldm.data.sources.listing import (
    HIDDEN,
    NO_ACCESS,
    NO_IMAGE,
    NOT_A_FILE,
    SEEN,
    SHARDS,
    SUFFIXES,
    list_images,
)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def paths(root: Path) -> list[str]:
    return [image.path for image in list_images(root).images]


@pytest.mark.parametrize("suffix", ["jpg jpeg jpe jfif pjpeg png webp bmp gif tif tiff npy avif jp2 ppm tga"])
def test_every_usual_suffix_is_an_image_in_either_case(tmp_path: Path, suffix: str) -> None:
    for kind in suffix.split():
        touch(tmp_path, f"{kind}.{kind}", f"{kind}2.{kind.upper()}")
    listed = list_images(tmp_path)
    assert len(listed.images) == 2 * len(suffix.split()) and not listed.ignored


def test_every_suffix_is_of_a_format_that_pillow_reads() -> None:
    """A file of each format that Pillow also writes is read back."""
    for suffix in sorted(SUFFIXES - {".npy", ".pjpeg", ".pjp"}):
        format = Image.registered_extensions()[suffix]
        if format not in Image.SAVE:
            continue
        file = BytesIO()
        Image.new("F" if suffix == ".pfm" else "RGB", (8, 8)).save(file, format)
        assert Image.open(BytesIO(file.getvalue())).size == (8, 8), suffix


def test_sidecars_belong_to_the_images_of_their_name(tmp_path: Path) -> None:
    touch(tmp_path, "A.JPG", "A.TXT", "A.seg.PNG", "b/c.png", "b/c.gif", "b/c.txt", "b/c.cls", "b/c.json")
    touch(tmp_path, "d.v1.jpg", "d.v1.txt", "e.jpg", "e.TXT", "e.txt", "a.txt", "x.mask.png", "b/A.depth.png")
    listed = list_images(tmp_path)
    shared = ("b/c.cls", "b/c.json", "b/c.txt")
    assert {image.path: image.sidecars for image in listed.images} == {
        "A.JPG": ("A.TXT", "A.seg.PNG"),
        "b/c.gif": shared,
        "b/c.png": shared,
        "d.v1.jpg": ("d.v1.txt",),
        "e.jpg": ("e.txt",),
    }
    assert listed.ignored == {NO_IMAGE: ["a.txt", "b/A.depth.png", "e.TXT", "x.mask.png"]}


def test_images_are_sorted_folder_by_folder(tmp_path: Path) -> None:
    names = ["b.jpg", "a/z.jpg", "a.jpg", "a-b/c.jpg", "B.jpg", "a/b/c.jpg"]
    touch(tmp_path, *names)
    assert paths(tmp_path) == [path.as_posix() for path in sorted(map(Path, names))]


def test_other_files_are_counted_by_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.psd", "c/D.PSD", "e.heic", "README")
    assert list_images(tmp_path).ignored == {
        ".heic": ["e.heic"],
        ".psd": ["b.psd", "c/D.PSD"],
        "without a suffix": ["README"],
    }


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    hidden = [".ipynb_checkpoints/a-checkpoint.jpg", "._a.jpg", ".DS_Store", "Thumbs.db", "__MACOSX/a.jpg"]
    touch(tmp_path, "a.jpg", *hidden, ".hidden.jpg", "b/.git/x.png", "b/@eaDir/b.jpg", "b/desktop.ini")
    listed = list_images(tmp_path)
    assert [image.path for image in listed.images] == ["a.jpg"]
    names = [".DS_Store", "._a.jpg", ".hidden.jpg", ".ipynb_checkpoints", "Thumbs.db", "__MACOSX"]
    assert listed.ignored == {HIDDEN: [*names, "b/.git", "b/@eaDir", "b/desktop.ini"]}
    assert len(list_images(tmp_path / ".ipynb_checkpoints").images) == 1  # where it is the source itself


def test_links_are_followed_once(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    touch(root, "a.jpg", "z/b.jpg")
    touch(other, "c.jpg", "deep/d.jpg")
    (root / "link").symlink_to(other)  # to a folder elsewhere
    (root / "again").symlink_to(other / "deep")
    (root / "loop").symlink_to(root)
    (root / "z" / "up").symlink_to("..")
    (other / "back").symlink_to(root / "z")
    (root / "another name.jpg").symlink_to("a.jpg")  # a file by another name is an image of its own
    (root / "gone.jpg").symlink_to("nowhere.jpg")
    (root / "self.jpg").symlink_to("self.jpg")
    os.mkfifo(root / "pipe.jpg")
    listed = list_images(root)
    assert [image.path for image in listed.images] == [
        *("a.jpg", "again/d.jpg", "another name.jpg", "link/c.jpg", "z/b.jpg")
    ]
    assert listed.ignored == {
        SEEN: ["link/back/", "link/deep/", "loop/", "z/up/"],
        NOT_A_FILE: ["gone.jpg", "pipe.jpg", "self.jpg"],
    }


def test_a_real_folder_keeps_its_own_name(tmp_path: Path) -> None:
    touch(tmp_path, "z/a.jpg")
    (tmp_path / "a link").symlink_to("z")
    listed = list_images(tmp_path)
    assert paths(tmp_path) == ["z/a.jpg"] and listed.ignored == {SEEN: ["a link/"]}


def test_shards_that_were_packed_into_the_folder_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "out/pack.json", "out/manifest.npy", "out/00000.tar", "out/deep/b.jpg")
    listed = list_images(tmp_path)
    assert [image.path for image in listed.images] == ["a.jpg"] and listed.ignored == {SHARDS: ["out/"]}


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "x.jpg/a.png")
    assert paths(tmp_path) == ["x.jpg/a.png"]


def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "closed/b.jpg")
    scandir = os.scandir

    def refuse(path: Path):
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(listing.os, "scandir", refuse)  # root may read every folder
    assert list_images(tmp_path).ignored == {NO_ACCESS: ["closed/ (Permission denied)"]}


def test_a_name_that_is_not_utf8_is_listed(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    for name in (b"caf\xe9.jpg", b"caf\xe9.txt", b"\xe9.psd", b"x.\xe9"):
        with open(os.path.join(folder, name), "wb"):
            pass
    listed = list_images(tmp_path)
    assert listed.images == [("caf\udce9.jpg", ("caf\udce9.txt",))]
    assert listed.ignored == {".psd": [r"\udce9.psd"], r".\udce9": [r"x.\udce9"]}

"""List the images below a folder with their sidecar files, and every file that is neither."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ldm.data.shards.tar import MAPS
from ldm.data.sources.text import printable

FORMATS = "AVIF BMP DIB GIF JPEG JPEG2000 MPO PNG PPM QOI TGA TIFF WEBP".split()
SUFFIXES = {
    *(".npy", ".pjpeg", ".pjp"),
    *(suffix for suffix, format in Image.registered_extensions().items() if format in FORMATS),
}
"""Suffixes of images, in lower case: those of the formats that this Pillow reads."""
SIDECARS = ("txt", "json", "cls", *MAPS)
SYSTEM_NAMES = ("__macosx", "@eadir", "thumbs.db", "desktop.ini")
"""What macOS, Synology and Windows add to folders."""

SETTINGS_FILE = "pack.json"
"""What pack writes into the folder of its shards."""

HIDDEN = "hidden"
SHARDS = "folders of packed shards"
NOT_A_FILE = "links to nothing, and devices"
SEEN = "links to folders that are packed already"
NO_ACCESS = "folders that cannot be read"
NO_IMAGE = "captions, metadata or maps that belong to no image"


class ImageFile(NamedTuple):
    """An image and the sidecars of the same name, as paths relative to the root."""

    path: str
    sidecars: tuple[str, ...]


class Listing(NamedTuple):
    """All files below a folder."""

    images: list[ImageFile]
    """Sorted by path."""
    ignored: dict[str, list[str]]
    """All other files, by reason; by suffix those that are no images."""


def list_images(root: Path) -> Listing:
    """List the files below a folder; links are followed, and each folder is read once."""
    images, ignored = list[ImageFile](), dict[str, list[str]]()
    for folder, names in _walk(root, ignored):
        sidecars = _group_sidecars(names)
        paired = set[str]()
        for name in filter(is_image, names):
            beside = sidecars.get(Path(name).stem, {})
            images.append(ImageFile(folder + name, tuple(folder + other for other in beside.values())))
            paired.update(beside.values())
        for name in names:
            if not is_image(name) and name not in paired:
                _ignore(ignored, NO_IMAGE if sidecar_kind(name) else _describe_suffix(name), folder + name)
    images.sort(key=lambda image: image.path.split("/"))
    return Listing(images, {reason: sorted(names) for reason, names in sorted(ignored.items())})


def is_image(name: str) -> bool:
    """Return whether a file name has the suffix of an image, and is not a map such as `cat.seg.png`."""
    return os.path.splitext(name)[1].lower() in SUFFIXES and not sidecar_kind(name)


def sidecar_kind(name: str) -> str:
    """Return the kind of a sidecar: `txt` for `cat.TXT`, `seg.png` for `cat.seg.png`; "" for other files."""
    return next((kind for kind in SIDECARS if name.lower().endswith(f".{kind}")), "")


def _group_sidecars(names: list[str]) -> dict[str, dict[str, str]]:
    """Return {stem: {kind: name}}; of two names that differ in the case of the suffix, the lower case."""
    groups: dict[str, dict[str, str]] = {}
    for name in names:  # sorted, so that lower case comes last
        if kind := sidecar_kind(name):
            groups.setdefault(name[: -len(kind) - 1], {})[kind] = name
    return groups


def _walk(root: Path, ignored: dict[str, list[str]]) -> Iterator[tuple[str, list[str]]]:
    """Yield (folder relative to the root, ending in a slash, or "", and the sorted names of its files).

    Links to folders come after all real folders, so that a folder is read under its own name if it has one.
    """
    folders, links, seen = [""], list[str](), set[str]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(root / folder)
        if real in seen:
            _ignore(ignored, SEEN, folder)
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except OSError as error:
            _ignore(ignored, NO_ACCESS, f"{folder or root} ({error.strerror})")
            continue
        if any(entry.name == SETTINGS_FILE for entry in entries):
            _ignore(ignored, SHARDS, folder or str(root))
            continue
        names = list[str]()
        for entry in entries:
            kind = _entry_kind(entry)
            if kind == "folder" and not _is_hidden(entry.name):
                (links if entry.is_symlink() else folders).append(f"{folder}{entry.name}/")
            elif kind == "file" and not _is_hidden(entry.name):
                names.append(entry.name)
            else:
                reason = HIDDEN if _is_hidden(entry.name) else NOT_A_FILE
                _ignore(ignored, reason, folder + entry.name)
        yield folder, names


def _entry_kind(entry: os.DirEntry[str]) -> str:
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "other"
    except OSError:  # a link to itself
        return "other"


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def _describe_suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without a suffix"


def _ignore(ignored: dict[str, list[str]], reason: str, name: str) -> None:
    ignored.setdefault(printable(reason), []).append(printable(name))

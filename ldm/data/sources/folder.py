"""A folder of images, with captions, metadata and maps in files of the same name."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ldm.data.shards.tar import MAPS
from ldm.data.sources.record import Record, SkippedRecord
from ldm.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".npy"}
MAP_ENDINGS = tuple(f".{kind}" for kind in MAPS)


@dataclass
class Folder:
    """Every image under `path`, sorted; `cat.txt` is the caption of `cat.jpg`, or of the array `cat.npy`.

    If present, `cat.cls` is its class index, `cat.seg.png`, `cat.mask.png` and `cat.depth.png` are its maps,
    and the contents of `cat.json`, such as boxes, are added to the metadata.
    """

    path: str

    @cached_property
    def files(self) -> list[Path]:
        """The paths of the images."""
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise UserError(
                f"there is no folder {self.path}: give a folder of images with source.path=FOLDER"
            )
        files = sorted(file for file in root.rglob("*") if _is_image(file))
        if not files:
            raise UserError(
                f"{self.path} holds no images ({', '.join(sorted(SUFFIXES))}): give another folder with "
                "source.path=FOLDER"
            )
        return files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Record:
        file = self.files[row]
        name = file.relative_to(Path(self.path).expanduser()).as_posix()
        text = file.with_suffix(".txt")
        if not text.is_file():
            raise SkippedRecord("without a caption file (.txt)", name)
        sidecars = {kind: file.with_name(f"{file.stem}.{kind}") for kind in ("cls", *MAPS)}
        members = {kind: path.read_bytes() for kind, path in sidecars.items() if path.is_file()}
        caption = text.read_text("utf-8-sig", errors="replace")
        return Record(file.read_bytes(), caption, {"name": name, **_read_metadata(file, name)}, members)


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.lower().endswith(MAP_ENDINGS) and file.is_file()


def _read_metadata(file: Path, name: str) -> dict[str, Any]:
    path = file.with_suffix(".json")
    if not path.is_file():
        return {}
    try:
        metadata = json.loads(path.read_text("utf-8-sig"))
    except ValueError as error:
        raise SkippedRecord("with a .json that cannot be read", f"{name} ({error})") from error
    return metadata if isinstance(metadata, dict) else {}

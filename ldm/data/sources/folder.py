"""A folder of images, with captions, metadata and maps in files of the same name."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ldm.data.sources.files import file_version, read_file
from ldm.data.sources.listing import ImageFile, Listing, list_images, sidecar_kind
from ldm.data.sources.record import Record, SkippedRecord, source_metadata
from ldm.data.sources.text import NOT_UTF8, WrongEncoding, check_encoding, decode_text
from ldm.errors import UserError

MAX_KINDS_SHOWN = 5


@dataclass
class Folder:
    """Every image under `path`, sorted; `cat.txt` is the caption of `cat.jpg`, or of the array `cat.npy`.

    If present, `cat.cls` is its class index, `cat.seg.png`, `cat.mask.png` and `cat.depth.png` are its maps,
    and the contents of `cat.json`, such as boxes, are added to the metadata. Suffixes are in upper or lower
    case. Images that differ in their suffix alone share these files. Links are followed.

    Args:
        encoding: of the captions and metadata without a byte order mark; None is UTF-8.
    """

    path: str
    encoding: str | None = None

    def __post_init__(self) -> None:
        check_encoding(self.encoding)

    @cached_property
    def listing(self) -> Listing:
        """The images and their sidecars, listed on first use."""
        if not self._root.is_dir():
            raise UserError(
                f"there is no folder {self.path}: give a folder of images with source.path=FOLDER"
            )
        listing = list_images(self._root)
        if not listing.images:
            counts = {reason: len(names) for reason, names in listing.ignored.items()}
            most = sorted(counts, key=lambda reason: -counts[reason])[:MAX_KINDS_SHOWN]
            found = ", ".join(f"{counts[reason]:,} {reason}" for reason in most)
            raise UserError(
                f"{self.path} holds no images{f', only {found}' if found else ''}: give another folder with "
                "source.path=FOLDER, or convert its images to png or jpg"
            )
        return listing

    @property
    def ignored(self) -> Mapping[str, Sequence[str]]:
        """Names of the files that belong to no image, by reason."""
        return self.listing.ignored

    def __len__(self) -> int:
        return len(self.listing.images)

    def __getitem__(self, row: int) -> Record:
        image = self.listing.images[row]
        sidecars = {sidecar_kind(path): path for path in image.sidecars}
        if "txt" not in sidecars:
            raise SkippedRecord("without a caption file (.txt)", image.path)
        members = {kind: read_file(self._root / path, path) for kind, path in sidecars.items()}
        caption = self._decode(members.pop("txt"), image)
        metadata = self._parse_metadata(members.pop("json"), image) if "json" in members else {}
        data = read_file(self._root / image.path, image.path)
        return Record(data, caption, source_metadata(image.path, metadata), members)

    def version(self, row: int) -> str:
        """Return the names, sizes and times of an image and its sidecars."""
        image = self.listing.images[row]
        return "".join(
            f"{path}\0{file_version(self._root / path)}\n" for path in (image.path, *image.sidecars)
        )

    @property
    def _root(self) -> Path:
        return Path(self.path).expanduser()

    def _decode(self, data: bytes, image: ImageFile) -> str:
        try:
            return decode_text(data, self.encoding)
        except WrongEncoding as error:
            raise SkippedRecord(NOT_UTF8, f"{image.path} ({error})") from error

    def _parse_metadata(self, data: bytes, image: ImageFile) -> dict[str, Any]:
        try:
            metadata = json.loads(self._decode(data, image))
        except (ValueError, RecursionError) as error:
            raise SkippedRecord("with a .json that cannot be read", f"{image.path} ({error})") from error
        if not isinstance(metadata, dict):
            raise SkippedRecord("with a .json that is not an object", image.path)
        return metadata

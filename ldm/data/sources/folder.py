"""A folder of pictures, each with a caption in a text file of the same name."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ldm.data.sources.beside import beside, is_map
from ldm.data.sources.record import Record, Unusable
from ldm.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


@dataclass
class Folder:
    """Every picture under `path`, sorted; `cat.jpg` is captioned by `cat.txt`.

    Beside it may lie `cat.cls`, `cat.json` and maps of the upright picture's size: `cat.seg.png`,
    `cat.mask.png`, `cat.depth.png`.
    """

    path: str

    @cached_property
    def files(self) -> list[Path]:
        """The pictures' paths."""
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise UserError(
                f"there is no folder {self.path}: give a folder of pictures with source.path=FOLDER"
            )
        found = (file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES and not is_map(file))
        files = sorted(file for file in found if file.is_file())
        if not files:
            raise UserError(
                f"{self.path} holds no pictures ({', '.join(sorted(SUFFIXES))}): give another folder"
            )
        return files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Record:
        file = self.files[row]
        name = file.relative_to(Path(self.path).expanduser()).as_posix()
        text = file.with_suffix(".txt")
        if not text.is_file():
            raise Unusable("without a caption file (.txt)", name)
        caption = text.read_text("utf-8-sig", errors="replace")
        known, members = beside(file, name)
        return Record(file.read_bytes(), caption, {**known, "name": name}, members)

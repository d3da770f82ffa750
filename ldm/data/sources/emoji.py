"""The images of the installed colour emoji font, captioned by their Unicode names."""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ldm.data.sources.record import Record
from ldm.errors import UserError

FILE = "NotoColorEmoji.ttf"
FOLDERS = (
    "/usr/share/fonts/truetype/noto",
    "/usr/share/fonts/noto",
    "/usr/share/fonts/google-noto-emoji",
    "~/.local/share/fonts",
    "~/.fonts",
    "~/Library/Fonts",
)
INSTALL = "install it with `apt-get install fonts-noto-color-emoji`, or set source.font=FILE"
STRIKE = 109
"""The only font size at which its 136 x 128 bitmaps are stored."""
CANVAS = 136
FIRST, LAST = 0x203C, 0x1FFFF
"""Range of code points; the digits and signs before it only occur in sequences."""


@dataclass
class EmojiFont:
    """One image per code point, 136 x 136 on white, with a caption such as 'grinning face'."""

    font: str | None = None

    @cached_property
    def code_points(self) -> list[int]:
        """The single code points that the font has a glyph and Unicode a name for."""
        return list(_named_glyphs(self._face))

    @cached_property
    def _face(self) -> ImageFont.FreeTypeFont:
        path = _find_font(self.font)
        try:
            return ImageFont.truetype(str(path), STRIKE, layout_engine=ImageFont.Layout.BASIC)
        except OSError as error:
            raise UserError(
                f"{path} is not a font of colour bitmaps at {STRIKE} px ({error}): {INSTALL}"
            ) from error

    def __len__(self) -> int:
        return len(self.code_points)

    def __getitem__(self, row: int) -> Record:
        code = self.code_points[row]
        image = Image.new("RGB", (CANVAS, CANVAS), "white")
        _, top, _, bottom = self._face.getbbox(chr(code))
        at = (0, (CANVAS - (bottom - top)) / 2 - top)
        ImageDraw.Draw(image).text(at, chr(code), font=self._face, embedded_color=True)
        return Record(image, unicodedata.name(chr(code)).lower(), {"name": f"U+{code:04X}"})


def _find_font(font: str | None) -> Path:
    candidates = [Path(font)] if font else [Path(folder, FILE).expanduser() for folder in FOLDERS]
    for path in candidates:
        if path.is_file():
            return path
    raise UserError(f"there is no colour emoji font {font or FILE} on this machine: {INSTALL}")


def _named_glyphs(face: ImageFont.FreeTypeFont) -> Iterator[int]:
    missing_glyph = face.getbbox("\ue000")
    for code in range(FIRST, LAST + 1):
        if unicodedata.name(chr(code), None) is None:
            continue
        left, _, right, _ = box = face.getbbox(chr(code))
        if right > left and box != missing_glyph:
            yield code

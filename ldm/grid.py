"""Labelled grids of images."""

import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldm.atomic import write_file

MARGIN = 4
LABEL_WIDTH = 190
FONT_SIZE = 12


def to_pil(x: Float[Tensor, "c h w"]) -> Image.Image:
    """Convert an image in [-1, 1] to 8-bit RGB, clamped: the first 3 channels, or of 1 or 2 the first."""
    colours = x[:3] if len(x) >= 3 else x[:1].expand(3, -1, -1)
    bytes_ = ((colours.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).byte()
    return Image.fromarray(bytes_.permute(1, 2, 0).numpy())


def labelled_grid(rows: Sequence[tuple[str, Sequence[Image.Image]]], scale: int = 1) -> Image.Image:
    """Draw a row per label: the text at the left, then its images, each enlarged `scale` times."""
    width, height = (pixels * scale for pixels in rows[0][1][0].size)
    columns = max(len(images) for _, images in rows)
    font = ImageFont.load_default(FONT_SIZE)
    sheet = Image.new(
        "RGB",
        (LABEL_WIDTH + columns * (width + MARGIN), len(rows) * (height + MARGIN) + MARGIN),
        (245, 245, 245),
    )
    pen = ImageDraw.Draw(sheet)
    for i, (label, images) in enumerate(rows):
        top = MARGIN + i * (height + MARGIN)
        lines = textwrap.wrap(label, LABEL_WIDTH // (FONT_SIZE // 2 + 1))
        pen.multiline_text((MARGIN, top + 2), "\n".join(lines), fill=(20, 20, 20), font=font)
        for j, image in enumerate(images):
            enlarged = image.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (LABEL_WIDTH + j * (width + MARGIN), top))
    return sheet


def write_png(path: Path, image: Image.Image) -> None:
    """Write an image atomically. Raises WriteError."""
    file = BytesIO()
    image.save(file, "PNG")
    write_file(path, file.getvalue())

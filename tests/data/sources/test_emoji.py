from pathlib import Path

import numpy as np
import pytest

from ldm.data.sources import emoji
from ldm.data.sources.emoji import EmojiFont
from ldm.errors import UserError

is_installed = any(Path(folder, emoji.FILE).expanduser().is_file() for folder in emoji.FOLDERS)


@pytest.mark.skipif(not is_installed, reason="no colour emoji font on this machine")
def test_emoji_are_images_with_their_unicode_names() -> None:
    font = EmojiFont()
    assert len(font) > 1300
    record = font[font.code_points.index(ord("😀"))]
    assert record.caption == "grinning face" and record.metadata == {"name": "U+1F600"}
    pixels = np.asarray(record.image, int)
    assert pixels.shape == (136, 136, 3) and (pixels[0] == 255).all() and (pixels[-1] == 255).all()
    red, green, blue = pixels[50, 68]
    assert red > 220 and green > 180 and blue < 120  # a yellow face
    is_glyph = (pixels != 255).any(2)
    assert abs(np.argwhere(is_glyph).mean(0) - 68).max() < 3


def test_a_missing_font_raises_an_error_that_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(emoji, "FOLDERS", ())
    with pytest.raises(
        UserError, match="no colour emoji font NotoColorEmoji.ttf.*apt-get install fonts-noto"
    ):
        len(EmojiFont())
    (tmp_path / "f.ttf").write_text("no font")
    with pytest.raises(UserError, match="not a font of colour bitmaps"):
        len(EmojiFont(str(tmp_path / "f.ttf")))

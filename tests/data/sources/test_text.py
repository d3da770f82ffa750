import codecs

import pytest

from ldm.data.sources.text import (
    BYTE_ORDER_MARKS,
    WrongEncoding,
    check_encoding,
    clean_text,
    decode_text,
    is_unicode,
    printable,
)
from ldm.errors import UserError

TEXT = "ein grüner Kreis 緑"


def test_utf8_is_the_default() -> None:
    assert decode_text(TEXT.encode()) == TEXT
    with pytest.raises(WrongEncoding, match="not utf-8: invalid start byte at byte 6"):
        decode_text("ein grüner Kreis".encode("latin-1"))
    assert decode_text("grün".encode("latin-1"), errors="surrogateescape") == "gr\udcfcn"


@pytest.mark.parametrize(("mark", "encoding"), BYTE_ORDER_MARKS)
def test_a_byte_order_mark_decides(mark: bytes, encoding: str) -> None:
    data = mark + TEXT.encode(encoding)
    assert decode_text(data) == decode_text(data, "cp1252") == TEXT


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("cp1252", "10 €, “größer”"), ("latin-1", "größer"), ("shift_jis", "赤い円"), ("utf-16-le", TEXT)],
)
def test_the_encoding_can_be_given(encoding: str, text: str) -> None:
    assert decode_text(text.encode(encoding), encoding) == text


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["a cat", "あ\nい\n", "path,caption\r\na.jpg,あ"])
def test_utf16_without_a_mark_is_never_read_as_utf8(encoding: str, text: str) -> None:
    with pytest.raises(WrongEncoding, match="NUL bytes as in UTF-16|not utf-8"):
        decode_text(text.encode(encoding))


def test_nul_characters_and_line_ends() -> None:
    assert decode_text(b"a cat\0\0\0") == "a cat"  # from a C program
    assert decode_text(codecs.BOM_UTF8 * 2 + b"a") == "a"
    assert clean_text("\ufeffa\r\nb\rc\nd\0\u2028e\ufeff") == "a\nb\nc\nd\u2028e\ufeff"
    assert decode_text(b"") == ""


def test_text_with_an_unpaired_surrogate_is_no_unicode() -> None:
    assert is_unicode("緑 😀") and not is_unicode("\ud83d") and not is_unicode("a\udc80")
    assert printable("a\udce9\ud83d") == r"a\udce9\ud83d" and printable("緑 😀") == "緑 😀"


@pytest.mark.parametrize("encoding", ["utf8x", "rot13", ""])
def test_an_unknown_encoding_is_rejected(encoding: str) -> None:
    if encoding:
        with pytest.raises(UserError, match=rf"source.encoding={encoding} is no encoding .*cp1252"):
            check_encoding(encoding)
    check_encoding(None)
    check_encoding("shift_jis")

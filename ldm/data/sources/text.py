"""Text of files in any encoding: captions, tables, metadata."""

import codecs

from ldm.errors import UserError

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before utf-16-le, whose mark it starts with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
NOT_UTF8 = "with text that is not UTF-8 (source.encoding=NAME reads another encoding)"
"""Why a record with such a text is skipped."""


class WrongEncoding(ValueError):
    """Bytes that are not text in the expected encoding."""


def decode_text(data: bytes, encoding: str | None = None, errors: str = "strict") -> str:
    """Decode the bytes of a file, without its byte order mark and NUL characters; "\\n" ends every line.

    A byte order mark decides the encoding; without one it is `encoding`, or UTF-8 for None. `errors` is as in
    `bytes.decode`. Raises WrongEncoding.
    """
    marked = next(((mark, name) for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), None)
    mark, encoding = marked or (b"", encoding or "utf-8")
    try:
        text = data[len(mark) :].decode(encoding, errors)
    except UnicodeDecodeError as error:
        raise WrongEncoding(f"not {encoding}: {error.reason} at byte {error.start}") from error
    end = text.find("\n")
    if "\0" in (text.rstrip("\0") if end < 0 else text[: end + 2]):
        raise WrongEncoding(f"not {encoding}: NUL bytes as in UTF-16")
    return clean_text(text)


def clean_text(text: str) -> str:
    """Return a text without NUL characters and a byte order mark; "\\n" ends every line."""
    return text.replace("\0", "").removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def is_unicode(text: str) -> bool:
    """Return whether a text can be written as UTF-8: it has no unpaired surrogates."""
    return printable(text) == text


def printable(text: str) -> str:
    """Return a text with an escape, such as `\\udce9`, in place of each unpaired surrogate.

    Python's file names have these in place of bytes that are not UTF-8.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def check_encoding(encoding: str | None) -> None:
    """Raise UserError unless this is None or the name of a text encoding."""
    try:
        b"a".decode(encoding or "utf-8", "replace")
    except LookupError as error:
        raise UserError(
            f"source.encoding={encoding} is no encoding that Python has: use one such as utf-8, cp1252, "
            "latin-1, utf-16-le or shift_jis, or null for UTF-8"
        ) from error

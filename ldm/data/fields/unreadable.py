"""Why the bytes of an image cannot be used."""

from typing import ClassVar


class Unreadable(ValueError):
    """Bytes that are not a complete image, or one whose values have no known meaning."""

    reason: ClassVar[str] = "unreadable"
    """Under which `pack` counts it."""


class TooManyPixels(Unreadable):
    """An image whose header claims more pixels than any camera has."""

    reason = "with too many pixels"


class TooLongForJpeg(Unreadable):
    """An image with a side longer than JPEG allows."""

    reason = "too long for a JPEG"


class WrongChannelCount(Unreadable):
    """An image whose number of bands is not the requested one."""

    reason = "with another number of channels"


class UnsuitableMap(Unreadable):
    """A map or mask whose pixels are not of the kind that it needs; the text says what to do."""

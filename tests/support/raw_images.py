"""Files that Pillow does not write: PNGs and TIFFs of other depths, and ICC profiles."""

import struct
import zlib

import numpy as np


def png(bits: int, colour_type: int, rows: list[bytes], width: int, transparent: bytes = b"") -> bytes:
    """A PNG of packed rows, with a tRNS chunk if there is a transparent value."""
    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", transparent)] if transparent else [(b"IHDR", header)]
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def tiff(width: int, bits: int, data: bytes, photometric: int = 1, sample_format: int = 1) -> bytes:
    """A little-endian TIFF of one row. In photometric 0, zero is white; formats: unsigned, signed, float."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1}
    tags |= {279: len(data), 339: sample_format}
    data += bytes(len(data) % 2)
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


ADOBE_GAMMA = 563 / 256
ADOBE_TO_XYZ = np.array(
    [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
)
"""Linear Adobe RGB (1998) to XYZ under D50."""
SRGB_TO_XYZ = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
)


def encode_srgb(linear: np.ndarray) -> np.ndarray:
    """Return linear light in 0..1 as sRGB values in 0..255."""
    v = np.clip(linear, 0, 1)
    return 255 * np.where(v <= 0.0031308, 12.92 * v, 1.055 * v ** (1 / 2.4) - 0.055)


def adobe_profile(description: str = "wide gamut") -> bytes:
    """An RGB profile with the primaries and the gamma of Adobe RGB (1998)."""
    tags = {f"{band}XYZ": _xyz(ADOBE_TO_XYZ[:, i]) for i, band in enumerate("rgb")}
    curves = {f"{band}TRC": _gamma(ADOBE_GAMMA) for band in "rgb"}
    return _profile("RGB ", "XYZ ", description, {**tags, **curves})


def linear_grey_profile() -> bytes:
    """A grey profile whose values are linear light."""
    return _profile("GRAY", "XYZ ", "linear grey", {"kTRC": _gamma(1.0)})


def ink_profile(lightness: dict[tuple[int, int, int, int], float]) -> bytes:
    """A CMYK profile of greys: the lightness L* in 0..100 of the 16 corners of the cube, 0 unless given."""
    corners = [tuple((i >> shift) & 1 for shift in (3, 2, 1, 0)) for i in range(16)]
    table = b"".join(bytes([round(lightness.get(c, 0) * 2.55), 128, 128]) for c in corners)  # type: ignore[call-overload]
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    ramp = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + 4 * ramp + table + 3 * ramp
    return _profile("CMYK", "Lab ", "ink", {"A2B0": lut}, kind="prtr")


def _profile(
    space: str, connection: str, description: str, tags: dict[str, bytes], kind: str = "mntr"
) -> bytes:
    text = description.encode() + b"\0"
    desc = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78)
    white = _xyz(np.array([0.9642, 1.0, 0.8249]))
    tags = {"desc": desc, "wtpt": white, "cprt": b"text" + bytes(4) + b"none\0", **tags}
    offset, table, body = 132 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name.encode() + struct.pack(">II", offset + len(body), len(value))
        body += value
    size = offset + len(body)
    dated = struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp"
    header = struct.pack(">I4sI", size, b"none", 0x02400000) + (kind + space + connection).encode() + dated
    header += bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header + bytes(128 - len(header)) + struct.pack(">I", len(tags)) + table + body


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(65536 * float(v)) for v in values))


def _gamma(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(256 * gamma))

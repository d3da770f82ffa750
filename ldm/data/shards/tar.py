"""Tars by their 512-byte headers: which file lies where, and which files make one sample."""

import os
import re
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

BLOCK = 512
IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "npy")
"""Kinds of members that may be a sample's image, the first one present is it."""
MOMENTS = "moments.npy"
MAPS = ("seg.png", "mask.png", "depth.png")
"""Kinds that say something of each pixel of the image."""
COMPOUND = (MOMENTS, "text.npy", *MAPS)
"""Kinds with a dot in them."""

_ZEROS = bytes(BLOCK)
_CHUNK = 4096
_PAX_PATH = re.compile(rb"\d+ path=([^\n]*)\n")
_ADLER = 65521

Read: TypeAlias = Callable[[int, int], bytes]
"""`read(offset, n)` gives n bytes, fewer at the end."""


class Member(NamedTuple):
    """One file of a tar: its name, where its headers begin, where its bytes begin, how many."""

    name: str
    start: int
    data: int
    size: int

    @property
    def end(self) -> int:
        """Where the next header may begin."""
        return self.data + -(-self.size // BLOCK) * BLOCK


class CorruptTar(ValueError):
    """A tar that has, at byte `offset`, something else than a header, or ends there too early."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"damaged or cut at byte {offset}")


class DuplicateMember(ValueError):
    """Two files of one name."""


def walk(shard: Path) -> Iterator[Member]:
    """Every file of a tar, by its headers alone; Damaged unless zeros, and nothing else, end it."""
    with open(shard, "rb", buffering=0) as file:
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        end = yield from members(lambda offset, n: os.pread(descriptor, n, offset), 0, size)
        if end + BLOCK > size:
            raise CorruptTar(end)
        for offset in range(end, size, 1 << 20):
            if os.pread(descriptor, 1 << 20, offset).strip(b"\0"):
                raise CorruptTar(end)  # a header that was overwritten with zeros


def members(read: Read, start: int, end: int) -> Generator[Member, None, int]:
    """The files whose headers lie in [start, end), up to a block of zeros; returns where it stopped."""
    offset = first = start
    chunk, base, long_name = b"", start, b""
    while offset < end:
        at = offset - base
        if at + BLOCK > len(chunk):
            chunk, base, at = read(offset, _CHUNK), offset, 0
        header = chunk[at : at + BLOCK]
        if header == _ZEROS:
            break
        size = _size(header)
        if size is None:
            raise CorruptTar(offset)
        data, kind = offset + BLOCK, header[156]
        offset = data + -(-size // BLOCK) * BLOCK
        if kind == 76:  # L: the next name, in full
            long_name = read(data, size).rstrip(b"\0")
        elif kind == 120:  # x
            found = _PAX_PATH.search(read(data, size))
            long_name = found[1] if found else b""
        else:
            if kind in (48, 0):
                yield Member((long_name or _name(header)).decode(errors="replace"), first, data, size)
            first, long_name = offset, b""
    return offset


def _size(header: bytes) -> int | None:
    """The size in a header, None where it is no header: its check sum, the sum of its bytes, tells."""
    if len(header) < BLOCK:
        return None
    stated = header[148:156]
    try:
        total = int(stated.strip(b" \0"), 8)
        size = int(header[124:136].strip(b" \0") or b"0", 8)
    except ValueError:
        return None
    # adler32's lower half is 1 + the sum of the bytes mod 65521, ten times as fast as Python's sum
    actual = (zlib.adler32(header) & 0xFFFF) - 1 - sum(stated) + 8 * ord(" ")
    return size if (actual - total) % _ADLER == 0 else None


def plain_sample(run: bytes) -> tuple[str, dict[str, bytes]] | None:
    """(key, bytes by kind) of a run of ordinary members of one sample; None where it needs a closer look.

    What `samples(members(...))` finds, without a look at check sums and in a third of its time: latents are
    read 50,000 times a second.
    """
    stem, found, offset = b"", dict[str, bytes](), 0
    while offset < len(run):
        header = run[offset : offset + 157]
        name, size, data = header[: header.find(b"\0")], header[124:135], offset + BLOCK
        start = name.rfind(b"/") + 1
        dot = name.find(b".", start)
        ordinary = header[156:] == b"0" and size.isdigit() and start < dot and len(name) < 100
        if not ordinary or run[offset + 345] or not name.startswith(stem + b"." if stem else b""):
            return None
        stem, end = name[:dot], data + int(size, 8)
        found[name[dot + 1 :].decode(errors="replace").lower()] = run[data:end]
        offset = data + -(-(end - data) // BLOCK) * BLOCK
    whole = offset == len(run) and any("." not in kind for kind in found)
    return (stem.decode(errors="replace"), found) if whole else None


def _name(header: bytes) -> bytes:
    name, prefix = header[:100].rstrip(b"\0"), b""
    if header[345] and header[257:263] == b"ustar\0":
        prefix = header[345:500].rstrip(b"\0")
    return prefix + b"/" + name if prefix else name


def samples(found: Iterable[Member]) -> dict[str, dict[str, Member]]:
    """Files by sample and kind: `d/7.jpg` and `d/7.seg.png` make sample `d/7` of kinds jpg and seg.png.

    A name ends at its first dot, as WebDataset has it, unless no kind of a sample would be without a dot:
    then the dots belong to the names, and `a.v1.jpg` and `a.v2.jpg` are two samples. Raises Twice.
    """
    groups: dict[str, dict[str, Member]] = {}
    for member in found:
        folder, slash, file = member.name.rpartition("/")
        stem, _, kind = file.partition(".")
        if stem and kind:
            _put(groups, folder + slash + stem, kind.lower(), member)
    plain = all(any("." not in kind for kind in group) for group in groups.values())
    return groups if plain else _by_last_dot(groups)


def _by_last_dot(groups: dict[str, dict[str, Member]]) -> dict[str, dict[str, Member]]:
    regrouped: dict[str, dict[str, Member]] = {}
    for key, group in groups.items():
        dotted = all("." in kind for kind in group)
        for kind, member in group.items():
            known = next((k for k in COMPOUND if f".{kind}".endswith(f".{k}")), kind.rpartition(".")[2])
            rest = kind.removesuffix(known) if dotted else ""
            _put(regrouped, f"{key}.{rest}".rstrip(".") if rest else key, known if dotted else kind, member)
    return regrouped


def _put(groups: dict[str, dict[str, Member]], key: str, kind: str, member: Member) -> None:
    if groups.setdefault(key, {}).setdefault(kind, member) is not member:
        raise DuplicateMember(f"two members named {member.name}")

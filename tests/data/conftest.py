from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from ldm.data.prepare.write_shards import write_shard
from ldm.data.shards.reader import Shards, open_shards


def png(colour: tuple[int, int, int], size: tuple[int, int] = (12, 10)) -> bytes:
    file = BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def pack(tmp_path: Path) -> Callable[..., Shards]:
    """Write and open shards of given sizes; row 3 of shard 1 is "000010003", captioned "s1 r3"."""

    def write(*counts: int, folder: str = "shards") -> Shards:
        (tmp_path / folder).mkdir(exist_ok=True)
        for number, count in enumerate(counts):
            samples = [
                (
                    f"{number:05d}{row:04d}",
                    {"png": png((number, row, 99)), "txt": f"s{number} r{row}".encode()},
                )
                for row in range(count)
            ]
            write_shard(tmp_path / folder / f"{number:05d}.tar", samples)
        return open_shards(str(tmp_path / folder))

    return write

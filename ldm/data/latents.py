"""Cached posteriors of an autoencoder: shards of `moments.npy`, and `latents.json` that says whose."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from io import BytesIO
from math import prod
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float16, UInt8
from torch import Tensor
from tqdm import tqdm

from ldm.data.atomic import replacing
from ldm.data.index import load_index
from ldm.data.reader import Shard, Shards
from ldm.data.shards import write_shard
from ldm.data.stream import Batches, one_pass
from ldm.data.transforms import Pictures
from ldm.errors import UserError

MOMENTS = "moments.npy"
ENCODE = "`python -m ldm.cli.encode_latents`"


@dataclass
class LatentHeader:
    """Whose latents a folder holds: posterior means and standard deviations of square pictures."""

    autoencoder: str
    """Hash of the autoencoder's weights."""
    size: int
    """Side of the pictures, in pixels."""
    downsampling: int
    channels: int
    """Channels of a latent; the moments have twice as many."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a sample's moments: means, then standard deviations."""
        side = self.size // self.downsampling
        return 2 * self.channels, side, side


def write_latents(
    pictures: Shards,
    out: Path,
    header: LatentHeader,
    encode: Callable[[UInt8[Tensor, "b 3 h w"]], Float[Tensor, "b two_z h w"]],
    batch_size: int,
    num_workers: int = 0,
) -> None:
    """Write the moments of each shard of pictures, with their captions, into a shard of the same number.

    `encode` gives mean and standard deviation of centre crops. Shards that an earlier call finished are kept;
    UserError where the folder holds other latents.
    """
    _claim(out, header)
    with tqdm(total=int(pictures.counts.sum()), desc="encoding", unit=" pictures") as bar:
        for number, (path, count) in enumerate(zip(pictures.paths, pictures.counts.tolist(), strict=True)):
            target = out / f"{number:05d}.tar"
            if target.is_file() and len(load_index(target)) == count:
                bar.initial += count
                bar.update(count)
                continue
            shard = Shards([path], [count])
            batches = one_pass(shard, Pictures(header.size, seed=0), batch_size, num_workers)
            write_shard(target, _encoded(shard[0], batches, encode, bar.update))


def _encoded(
    shard: Shard, batches: Batches, encode: Callable[[Tensor], Tensor], count: Callable[[int], object]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    for batch in batches:
        moments = encode(batch["image"]).to("cpu", torch.float16).numpy()
        for row, sample in zip(batch["position"].tolist(), moments, strict=True):
            file = BytesIO()
            np.save(file, np.ascontiguousarray(sample))
            kept = {kind: shard.read(row, kind) for kind in ("txt", "json") if shard.has(row, kind)}
            yield shard.key(row), {MOMENTS: file.getvalue(), **kept}
        count(len(moments))


def _claim(out: Path, header: LatentHeader) -> None:
    out.mkdir(parents=True, exist_ok=True)
    before = _read_header(out)
    if before is None and any(out.glob("*.tar")):
        raise UserError(f"{out} holds shards of pictures: choose another out=FOLDER for the latents")
    if before not in (None, header):
        raise UserError(f"{out} holds latents of another autoencoder or size: choose another out=FOLDER")
    write_header(header, out)


def write_header(header: LatentHeader, folder: Path) -> None:
    """Write `latents.json`."""
    with replacing(folder / "latents.json") as temporary:
        temporary.write_text(json.dumps({"format": 1, **asdict(header)}, indent=1) + "\n")


def read_header(paths: Iterable[Path]) -> LatentHeader | None:
    """The header of the folders that these shards lie in; None where they hold pictures."""
    headers = {folder: _read_header(folder) for folder in sorted({path.parent for path in paths})}
    first, *others = headers
    for folder in others:
        if headers[folder] != headers[first]:
            raise UserError(f"{first} and {folder} differ in what they hold: write both alike, with {ENCODE}")
    return headers[first]


def _read_header(folder: Path) -> LatentHeader | None:
    try:
        fields = json.loads((folder / "latents.json").read_text())
    except FileNotFoundError:
        return None
    if fields.pop("format") != 1:
        raise UserError(f"{folder}/latents.json is of another version: write the latents again with {ENCODE}")
    return LatentHeader(**fields)


@dataclass
class Moments:
    """Reads a sample's posterior moments."""

    shape: tuple[int, int, int]
    field = "moments"

    def __call__(self, shard: Shard, row: int, position: int) -> Float16[Tensor, "two_z h w"]:
        data = bytearray(shard.read(row, MOMENTS))
        start = 10 + int.from_bytes(data[8:10], "little")
        whole = len(data) == start + 2 * prod(self.shape)
        if not whole or _layout(bytes(data[:start])) != ("<f2", self.shape):
            raise UserError(
                f"the moments of sample {shard.key(row)} in {shard.path} are not fp16 of shape {self.shape}: "
                f"encode the shard again with {ENCODE}"
            )
        return torch.frombuffer(data, dtype=torch.float16, offset=start).view(self.shape)


@lru_cache
def _layout(header: bytes) -> tuple[str, tuple[int, ...]] | None:
    # parsing the header costs ten times the read, and there is only one header in a data set
    try:
        file = BytesIO(header)
        assert np.lib.format.read_magic(file) == (1, 0)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except (ValueError, AssertionError):
        return None
    return None if fortran else (dtype.str, shape)

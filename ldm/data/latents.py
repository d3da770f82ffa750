"""Cached posteriors of an autoencoder: shards of `moments.npy`, and `latents.json` that says whose."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from io import BytesIO
from math import prod
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float16
from torch import Tensor

from ldm.data.atomic import replacing
from ldm.data.shard import Shard, find_shards
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


def write_header(header: LatentHeader, folder: Path) -> None:
    """Write `latents.json`."""
    with replacing(folder / "latents.json") as temporary:
        temporary.write_text(json.dumps({"format": 1, **asdict(header)}, indent=1) + "\n")


def read_header(spec: str | Sequence[str]) -> LatentHeader | None:
    """The header of the folders that these shards lie in; None where they hold pictures."""
    headers = {_read_header(folder) for folder in {path.parent for path in find_shards(spec)}}
    if len(headers) > 1:
        raise UserError(f"the shards of {spec} are of several kinds: write all with one {ENCODE}")
    text = headers.pop()
    return None if text is None else LatentHeader(**json.loads(text))


def _read_header(folder: Path) -> str | None:
    try:
        fields = json.loads((folder / "latents.json").read_text())
    except FileNotFoundError:
        return None
    if fields.pop("format") != 1:
        raise UserError(f"{folder}/latents.json is of another version: write the latents again with {ENCODE}")
    return json.dumps(fields, sort_keys=True)


def check_header(
    header: LatentHeader | None, autoencoder: str, size: int, spec: str | Sequence[str]
) -> LatentHeader:
    """The header, if these are latents of this autoencoder at this size; else UserError."""
    if header is None:
        raise UserError(f"{spec} holds pictures, not latents: encode them with {ENCODE}")
    if header.autoencoder != autoencoder:
        raise UserError(
            f"the latents in {spec} are those of autoencoder {header.autoencoder[:12]} and this model's is "
            f"{autoencoder[:12]}: encode them again with {ENCODE}"
        )
    if header.size != size:
        raise UserError(
            f"the latents in {spec} are of {header.size} px, data.size is {size}: make them agree"
        )
    return header


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

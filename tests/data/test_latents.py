from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.data.latents import LatentHeader, Moments, read_header, write_latents
from ldm.data.reader import Shards, open_shards
from ldm.data.shards import write_shard
from ldm.data.stream import one_pass
from ldm.errors import UserError

HEADER = LatentHeader(autoencoder="0123456789abcdef", size=8, downsampling=4, channels=2)


def encode(image: Tensor) -> Tensor:
    """Moments (b 4 2 2) that tell the picture's colours."""
    return image[:, (0, 1, 2, 2), ::4, ::4].float() + torch.tensor([0, 0, 0.5, 0.25])[:, None, None]


def test_moments_come_back_beside_their_captions(pack: Callable[..., Shards], tmp_path: Path) -> None:
    write_latents(pack(5, 3), tmp_path / "latents", HEADER, encode, batch_size=2)
    shards = open_shards(str(tmp_path / "latents"))
    assert read_header(shards.paths) == HEADER and HEADER.shape == (4, 2, 2)
    batches = list(one_pass(shards, Moments(HEADER.shape), batch_size=8))
    assert batches[0]["key"][5] == "000010000" and batches[0]["caption"][6] == "s1 r1"
    assert batches[0]["moments"].dtype == torch.float16
    assert batches[0]["moments"][6, :, 0, 0].tolist() == [1, 1, 99.5, 99.25]


def test_shards_that_are_done_are_kept(pack: Callable[..., Shards], tmp_path: Path) -> None:
    pictures, out = pack(4, 4, 4), tmp_path / "latents"
    calls = 0

    def fails_in_the_second_shard(image: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return encode(image)

    with pytest.raises(KeyboardInterrupt):
        write_latents(pictures, out, HEADER, fails_in_the_second_shard, batch_size=2)
    assert sorted(path.name for path in out.iterdir()) == ["00000.index.npy", "00000.tar", "latents.json"]
    write_latents(pictures, out, HEADER, fails_in_the_second_shard, batch_size=2)
    assert calls == 4 + 4 and open_shards(str(out)).counts.tolist() == [4, 4, 4]


def test_a_folder_of_other_contents_is_refused(pack: Callable[..., Shards], tmp_path: Path) -> None:
    pictures, out = pack(2), tmp_path / "latents"
    write_latents(pictures, out, HEADER, encode, batch_size=2)
    other = LatentHeader("another", size=8, downsampling=4, channels=2)
    with pytest.raises(UserError, match="latents of another autoencoder"):
        write_latents(pictures, out, other, encode, batch_size=2)
    with pytest.raises(UserError, match="shards of pictures"):
        write_latents(pictures, tmp_path / "shards", HEADER, encode, batch_size=2)


def test_pictures_have_no_header_and_mixtures_are_refused(
    pack: Callable[..., Shards], tmp_path: Path
) -> None:
    pictures = pack(2)
    assert read_header(pictures.paths) is None
    write_latents(pictures, tmp_path / "latents", HEADER, encode, batch_size=2)
    with pytest.raises(UserError, match="differ in what they hold"):
        read_header([*pictures.paths, tmp_path / "latents" / "00000.tar"])


@pytest.mark.parametrize(
    "change", [lambda data: data[:-2], lambda data: data + b"00", lambda data: b"<html></html>"]
)
def test_moments_that_are_no_whole_file_are_refused(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    np.save(tmp_path / "m.npy", np.zeros(HEADER.shape, np.float16))
    write_shard(tmp_path / "0.tar", [("a", {"moments.npy": change((tmp_path / "m.npy").read_bytes())})])
    with pytest.raises(UserError, match="moments of sample a .* fp16 of shape"):
        Moments(HEADER.shape)(open_shards(str(tmp_path))[0], 0, 0)


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 2, 2), np.float32), np.zeros((4, 2, 3), np.float16), np.zeros((4, 2, 2), np.float16).T],
)
def test_moments_of_another_layout_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "m.npy", array)
    write_shard(tmp_path / "0.tar", [("a", {"moments.npy": (tmp_path / "m.npy").read_bytes()})])
    with pytest.raises(UserError, match="moments of sample a .* fp16 of shape"):
        Moments(HEADER.shape)(open_shards(str(tmp_path))[0], 0, 0)

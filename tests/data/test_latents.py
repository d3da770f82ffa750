import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.data.datamodule import ShardDataModule
from ldm.data.fields.arrays import ArrayField
from ldm.data.latents import TEXT, TEXT_MASK, LatentHeader, read_header
from ldm.data.prepare.write_latents import write_latents
from ldm.data.prepare.write_shards import write_shard
from ldm.data.shards.reader import Shards, open_shards
from ldm.errors import UserError
from tests.data.prepare.test_write_latents import HEADER, encode


def test_images_have_no_header_and_a_mixture_with_latents_is_refused(
    pack: Callable[..., Shards], tmp_path: Path
) -> None:
    images = pack(2)
    assert read_header(images.paths) is None
    write_latents(images, tmp_path / "latents", HEADER, encode, batch_size=2)
    with pytest.raises(
        UserError, match="latents and .*shards contain different latents, or latents and images"
    ):
        read_header([*images.paths, tmp_path / "latents" / "00000.tar"])


def test_variants_are_chosen_by_position(pack: Callable[..., Shards], tmp_path: Path) -> None:
    header = LatentHeader("0123", size=8, downsampling=4, channels=2, crops=2, flip=True)
    assert header.variants == 4

    def encode_left_edge(image: Tensor) -> Tensor:
        """Return the leftmost column of pixels, which differs between a crop and its mirror image."""
        return image[:, :1, ::4, :1].float().expand(-1, 4, -1, 2)

    ramp = Image.fromarray(np.tile(np.arange(24, dtype=np.uint8) * 10, (8, 1))).convert("RGB")
    file = BytesIO()
    ramp.save(file, "PNG")
    (tmp_path / "shards").mkdir()
    write_shard(tmp_path / "shards" / "00000.tar", [("a", {"png": file.getvalue(), "txt": b"a ramp"})])
    write_latents(open_shards(str(tmp_path / "shards")), tmp_path / "out", header, encode_left_edge, 2)
    shards = open_shards(str(tmp_path / "out"))
    assert read_header(shards.paths) == header
    (field,) = header.fields(seed=1)
    values = [float(field(shards[0].sample(0), position)[0, 0, 0]) for position in range(200)]
    assert len(set(values)) == 4 and min(values.count(value) for value in set(values)) > 25
    assert values == [float(field(shards[0].sample(0), position)[0, 0, 0]) for position in range(200)]
    module = ShardDataModule(str(tmp_path / "out"), None, 2, 8, 3)
    assert next(iter(module.train_dataloader()))["moments"].shape == (2, 4, 2, 2)


def test_cached_text_states_are_read(pack: Callable[..., Shards], tmp_path: Path) -> None:
    header = LatentHeader("0123", 8, 4, 2, text="an encoder", text_shape=(3, 2), text_mask=True)

    def encode_text(captions: list[str]) -> dict[str, Tensor]:
        """Return states (b 3 2) of the row's number, the 3 of "s1 r3", and a mask of one token."""
        states = torch.tensor([float(c[-1]) for c in captions])[:, None, None].expand(-1, 3, 2)
        return {TEXT: states, TEXT_MASK: torch.arange(3).expand(len(captions), -1) < 1}

    write_latents(pack(3), tmp_path / "out", header, encode, 2, encode_text=encode_text)
    assert read_header([tmp_path / "out" / "00000.tar"]) == header
    batch = next(iter(ShardDataModule(str(tmp_path / "out"), None, 3, 8, 1).train_dataloader()))
    states = batch["text"]  # type: ignore[typeddict-item]
    assert states.shape == (3, 3, 2) and states.dtype == torch.float16
    assert [f"s0 r{int(state[2, 1])}" for state in states] == batch["caption"]
    assert batch["text_mask"].tolist() == [[1, 0, 0]] * 3  # type: ignore[typeddict-item]


def test_a_header_of_another_version_is_refused(pack: Callable[..., Shards], tmp_path: Path) -> None:
    write_latents(pack(2), tmp_path / "out", HEADER, encode, 2)
    file = tmp_path / "out" / "latents.json"
    fields = json.loads(file.read_text())
    first_version = {name: fields[name] for name in ("autoencoder", "size", "downsampling", "channels")}
    file.write_text(json.dumps({"format": 1, **first_version}))
    assert read_header([tmp_path / "out" / "00000.tar"]) == HEADER
    for change in ({"format": 3}, {"preprocessing": "nearest neighbour"}):
        file.write_text(json.dumps({**fields, **change}))
        with pytest.raises(UserError, match="latents in .*out .*encode them again"):
            read_header([tmp_path / "out" / "00000.tar"])


@pytest.mark.parametrize(
    "change", [lambda data: data[:-2], lambda data: data + b"00", lambda data: b"<html></html>"]
)
def test_incomplete_moments_are_refused(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    np.save(tmp_path / "m.npy", np.zeros(HEADER.shape, np.float16))
    write_shard(tmp_path / "0.tar", [("a", {"moments.npy": change((tmp_path / "m.npy").read_bytes())})])
    with pytest.raises(UserError, match="moments.npy of sample a .* fp16 of shape"):
        ArrayField("moments.npy", "moments", HEADER.shape)(open_shards(str(tmp_path))[0].sample(0), 0)


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 2, 2), np.float32), np.zeros((4, 2, 3), np.float16), np.zeros((4, 2, 2), np.float16).T],
)
def test_moments_with_another_layout_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "m.npy", array)
    write_shard(tmp_path / "0.tar", [("a", {"moments.npy": (tmp_path / "m.npy").read_bytes()})])
    with pytest.raises(UserError, match="moments.npy of sample a .* fp16 of shape"):
        ArrayField("moments.npy", "moments", HEADER.shape)(open_shards(str(tmp_path))[0].sample(0), 0)

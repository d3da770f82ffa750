import json
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.data.datamodule import ShardDataModule
from ldm.data.fields.arrays import ArrayField
from ldm.data.fields.captions import CaptionField
from ldm.data.latents import LatentHeader, read_header, write_latents
from ldm.data.loading.loader import sequential_loader
from ldm.data.prepare.write_shards import write_shard
from ldm.data.shards.reader import Shards, open_shards
from ldm.errors import UserError
from tests.data.conftest import png
from tests.data.prepare.test_write_shards import content

HEADER = LatentHeader(autoencoder="0123456789abcdef", size=8, downsampling=4, channels=2)


def encode(image: Tensor) -> Tensor:
    """Moments (b 4 2 2) that tell the image's colours."""
    return image[:, (0, 1, 2, 2), ::4, ::4].float() + torch.tensor([0, 0, 0.5, 0.25])[:, None, None]


def test_moments_come_back_beside_their_captions(pack: Callable[..., Shards], tmp_path: Path) -> None:
    write_latents(pack(5, 3), tmp_path / "latents", HEADER, encode, batch_size=2)
    shards = open_shards(str(tmp_path / "latents"))
    assert read_header(shards.paths) == HEADER and HEADER.shape == (4, 2, 2)
    batches = list(sequential_loader(shards, [*HEADER.readers(0), CaptionField()], batch_size=8))
    assert batches[0]["key"][5] == "000010000" and batches[0]["caption"][6] == "s1 r1"
    assert batches[0]["moments"].dtype == torch.float16
    assert batches[0]["moments"][6, :, 0, 0].tolist() == [1, 1, 99.5, 99.25]


def test_shards_that_are_done_are_kept(pack: Callable[..., Shards], tmp_path: Path) -> None:
    images, out = pack(4, 4, 4), tmp_path / "latents"
    calls = 0

    def fails_in_the_second_shard(image: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return encode(image)

    with pytest.raises(KeyboardInterrupt):
        write_latents(images, out, HEADER, fails_in_the_second_shard, batch_size=2)
    assert sorted(path.name for path in out.iterdir()) == ["00000.index", "00000.tar", "latents.json"]
    write_latents(images, out, HEADER, fails_in_the_second_shard, batch_size=2)
    assert calls == 4 + 4 and open_shards(str(out)).counts.tolist() == [4, 4, 4]


def test_a_folder_of_other_contents_is_refused(pack: Callable[..., Shards], tmp_path: Path) -> None:
    images, out = pack(2), tmp_path / "latents"
    write_latents(images, out, HEADER, encode, batch_size=2)
    other = LatentHeader("another", size=8, downsampling=4, channels=2)
    with pytest.raises(UserError, match="latents of another autoencoder"):
        write_latents(images, out, other, encode, batch_size=2)
    with pytest.raises(UserError, match="shards of images"):
        write_latents(images, tmp_path / "shards", HEADER, encode, batch_size=2)


def test_images_have_no_header_and_mixtures_are_refused(pack: Callable[..., Shards], tmp_path: Path) -> None:
    images = pack(2)
    assert read_header(images.paths) is None
    write_latents(images, tmp_path / "latents", HEADER, encode, batch_size=2)
    with pytest.raises(UserError, match="differ in what they hold"):
        read_header([*images.paths, tmp_path / "latents" / "00000.tar"])


def test_any_number_of_ranks_write_the_same(pack: Callable[..., Shards], tmp_path: Path) -> None:
    images = pack(3, 2, 4, 1, 2)
    write_latents(images, tmp_path / "one", HEADER, encode, batch_size=2)
    for rank in (2, 0, 1):
        done = write_latents(images, tmp_path / "three", HEADER, encode, 2, rank=rank, world=3)
        assert done.images == sum(n for i, n in enumerate((3, 2, 4, 1, 2)) if i % 3 == rank)
    one, three = (
        {path.name: content(path) for path in (tmp_path / name).iterdir()} for name in ("one", "three")
    )
    assert one == three and "manifest.npy" in one


def test_a_killed_rank_leaves_nothing_half_and_another_number_goes_on(
    pack: Callable[..., Shards], tmp_path: Path
) -> None:
    images, out = pack(3, 3, 3, 3), tmp_path / "latents"
    for rank in range(2):
        calls = iter(range(100))

        def dies_in_the_second_shard(image: Tensor, calls: Iterator[int] = calls) -> Tensor:
            if next(calls) == 3:
                (out / f".0000{rank + 2}.tar.99.tmp").write_bytes(b"half")  # noqa: B023
                raise KeyboardInterrupt
            return encode(image)

        with pytest.raises(KeyboardInterrupt):
            write_latents(images, out, HEADER, dies_in_the_second_shard, 2, rank=rank, world=2)
    assert sorted(path.name for path in out.glob("*.tar")) == ["00000.tar", "00001.tar"]
    before = [(out / f"0000{i}.tar").stat().st_ino for i in range(2)]
    for rank in range(3):
        write_latents(images, out, HEADER, encode, 2, rank=rank, world=3)
    assert [(out / f"0000{i}.tar").stat().st_ino for i in range(2)] == before
    assert open_shards(str(out)).counts.tolist() == [3, 3, 3, 3] and not list(out.glob(".*.tmp"))


def test_latents_of_images_that_have_changed_are_made_again(
    pack: Callable[..., Shards], tmp_path: Path
) -> None:
    out = tmp_path / "latents"
    write_latents(pack(3, 3), out, HEADER, encode, 2)
    before = [path.stat().st_ino for path in sorted(out.glob("*.tar"))]
    other = [(f"9{row}", {"png": png((row, 7, 7)), "txt": b"another"}) for row in range(3)]
    write_shard(tmp_path / "shards" / "00001.tar", other)
    write_latents(open_shards(str(tmp_path / "shards")), out, HEADER, encode, 2)
    after = [path.stat().st_ino for path in sorted(out.glob("*.tar"))]
    assert after[0] == before[0] and after[1] != before[1]
    assert open_shards(str(out))[1].sample(0).read("txt") == b"another"


def test_images_that_cannot_be_read_are_left_out_and_counted(
    pack: Callable[..., Shards], tmp_path: Path
) -> None:
    images, out = pack(3, 2), tmp_path / "latents"
    samples = [("a", {"png": png((1, 1, 1))}), ("b", {"png": b"<html>"}), ("c", {"png": b""})]
    write_shard(tmp_path / "shards" / "00000.tar", samples)
    (tmp_path / "shards" / "00001.tar").write_bytes(b"not a tar")
    done = write_latents(Shards(images.paths, [3, 2]), out, HEADER, encode, 2)
    assert (done.images, done.bad, len(done.unreadable)) == (1, 2, 1) and "00001.tar" in done.unreadable[0]
    assert len(open_shards(str(out))[0]) == 1
    calls: list[int] = []
    write_latents(Shards(images.paths, [3, 2]), out, HEADER, lambda x: calls.append(1) or encode(x), 2)
    assert not calls, "the shard is done, though it has fewer"


def test_variants_are_drawn_by_position(pack: Callable[..., Shards], tmp_path: Path) -> None:
    header = LatentHeader("0123", size=8, downsampling=4, channels=2, crops=2, flip=True)
    assert header.variants == 4

    def sides(image: Tensor) -> Tensor:
        """The column of pixels at the left edge: tells a crop and its mirror image apart."""
        return image[:, :1, ::4, :1].float().expand(-1, 4, -1, 2)

    ramp = Image.fromarray(np.tile(np.arange(24, dtype=np.uint8) * 10, (8, 1))).convert("RGB")
    file = BytesIO()
    ramp.save(file, "PNG")
    (tmp_path / "shards").mkdir()
    write_shard(tmp_path / "shards" / "00000.tar", [("a", {"png": file.getvalue(), "txt": b"a ramp"})])
    write_latents(open_shards(str(tmp_path / "shards")), tmp_path / "out", header, sides, 2)
    shards = open_shards(str(tmp_path / "out"))
    assert read_header(shards.paths) == header
    (read,) = header.readers(seed=1)
    found = [float(read(shards[0].sample(0), position)[0, 0, 0]) for position in range(200)]
    assert len(set(found)) == 4 and min(found.count(value) for value in set(found)) > 25
    one, another, *_ = sorted(set(found))
    assert found == [float(read(shards[0].sample(0), position)[0, 0, 0]) for position in range(200)]
    module = ShardDataModule(str(tmp_path / "out"), None, 2, 8, 3)
    assert next(iter(module.train_dataloader()))["moments"].shape == (2, 4, 2, 2)


def test_text_states_lie_beside_and_are_read(pack: Callable[..., Shards], tmp_path: Path) -> None:
    header = LatentHeader("0123", 8, 4, 2, text="an encoder", text_shape=(3, 2))

    def describe(captions: list[str]) -> Tensor:
        """(b 3 2), the row's number from "s1 r3" throughout."""
        return torch.tensor([float(c[-1]) for c in captions])[:, None, None].expand(-1, 3, 2)

    write_latents(pack(3), tmp_path / "out", header, encode, 2, describe=describe)
    assert read_header([tmp_path / "out" / "00000.tar"]) == header
    batch = next(iter(ShardDataModule(str(tmp_path / "out"), None, 3, 8, 1).train_dataloader()))
    states = batch["text"]  # type: ignore[typeddict-item]
    assert states.shape == (3, 3, 2) and states.dtype == torch.float16
    assert [f"s0 r{int(state[2, 1])}" for state in states] == batch["caption"]


def test_a_header_of_another_version_is_refused(pack: Callable[..., Shards], tmp_path: Path) -> None:
    write_latents(pack(2), tmp_path / "out", HEADER, encode, 2)
    note = tmp_path / "out" / "latents.json"
    fields = json.loads(note.read_text())
    first = {name: fields[name] for name in ("autoencoder", "size", "downsampling", "channels")}
    note.write_text(json.dumps({"format": 1, **first}))
    assert read_header([tmp_path / "out" / "00000.tar"]) == HEADER, "as the first version wrote it"
    for change in ({"format": 3}, {"preprocessing": "nearest neighbour"}):
        note.write_text(json.dumps({**fields, **change}))
        with pytest.raises(UserError, match="prepared in another way: encode them again"):
            read_header([tmp_path / "out" / "00000.tar"])


@pytest.mark.parametrize(
    "change", [lambda data: data[:-2], lambda data: data + b"00", lambda data: b"<html></html>"]
)
def test_moments_that_are_no_whole_file_are_refused(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    np.save(tmp_path / "m.npy", np.zeros(HEADER.shape, np.float16))
    write_shard(tmp_path / "0.tar", [("a", {"moments.npy": change((tmp_path / "m.npy").read_bytes())})])
    with pytest.raises(UserError, match="moments.npy of sample a .* fp16 of shape"):
        ArrayField("moments.npy", "moments", HEADER.shape)(open_shards(str(tmp_path))[0].sample(0), 0)


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 2, 2), np.float32), np.zeros((4, 2, 3), np.float16), np.zeros((4, 2, 2), np.float16).T],
)
def test_moments_of_another_layout_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "m.npy", array)
    write_shard(tmp_path / "0.tar", [("a", {"moments.npy": (tmp_path / "m.npy").read_bytes()})])
    with pytest.raises(UserError, match="moments.npy of sample a .* fp16 of shape"):
        ArrayField("moments.npy", "moments", HEADER.shape)(open_shards(str(tmp_path))[0].sample(0), 0)

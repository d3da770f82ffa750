from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ldm.data.datamodule import ShardDataModule
from ldm.data.latents import LatentHeader
from ldm.data.prepare.index_shards import index_shards
from ldm.data.prepare.write_latents import write_latents
from ldm.data.prepare.write_shards import write_shard
from ldm.data.shards.reader import Shards, find_shards
from ldm.errors import UserError
from ldm.typing import Batch
from tests.data.conftest import png


def make_module(folder: Path, **changes: object) -> ShardDataModule:
    settings = {"val_shards": None, "global_batch_size": 4, "size": 8, "steps": 9, "seed": 3}
    return ShardDataModule(str(folder / "shards"), **{**settings, **changes})  # type: ignore[arg-type]


def encode(image: Tensor) -> Tensor:
    return image[:, :2, ::8, ::8].float()


def test_a_batch_of_images(pack: Callable[..., Shards], tmp_path: Path) -> None:
    pack(5, 6)
    loader = make_module(tmp_path).train_dataloader()
    batch = next(iter(loader))
    assert len(loader) == 9
    assert batch["image"].shape == (4, 3, 8, 8) and batch["image"].dtype == torch.uint8
    for key, caption, pixels in zip(batch["key"], batch["caption"], batch["image"], strict=True):
        shard, row = int(key[:5]), int(key[5:])
        assert caption == f"s{shard} r{row}" and pixels[:, 0, 0].tolist() == [shard, row, 99]
    assert batch["position"].tolist() == [0, 1, 2, 3]


def test_ranks_split_a_global_batch(pack: Callable[..., Shards], tmp_path: Path) -> None:
    pack(5, 6)
    whole = next(iter(make_module(tmp_path).train_dataloader()))
    halves = []
    for rank in range(2):
        module = make_module(tmp_path)
        module.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        halves.append(next(iter(module.train_dataloader())))
    assert [key for half in halves for key in half["key"]] == whole["key"]
    assert torch.equal(torch.cat([half["position"] for half in halves]), whole["position"])


def test_training_can_start_at_any_step(pack: Callable[..., Shards], tmp_path: Path) -> None:
    pack(5, 6)
    keys = [batch["key"] for batch in make_module(tmp_path).train_dataloader()]
    module = make_module(tmp_path)
    module.skip_to(6)
    assert [batch["key"] for batch in module.train_dataloader()] == keys[6:]


def test_validation_reads_the_same_whole_batches(pack: Callable[..., Shards], tmp_path: Path) -> None:
    pack(5, 6)
    module = make_module(
        tmp_path, val_shards=str(tmp_path / "shards"), val_batches=5, random_crop=True, flip=True
    )
    loader = module.val_dataloader()
    keys = [batch["key"] for batch in loader]
    assert len(loader) == len(keys) == 2 and keys[0] == [f"00000000{row}" for row in range(4)]
    assert [batch["key"] for batch in loader] == keys
    assert make_module(tmp_path).val_dataloader() == []


def test_a_small_validation_set_is_one_batch_split_evenly(
    pack: Callable[..., Shards], tmp_path: Path
) -> None:
    pack(3)
    module = make_module(tmp_path, val_shards=str(tmp_path / "shards"))
    module.trainer = SimpleNamespace(global_rank=0, world_size=2)  # type: ignore[assignment]
    assert [len(batch["key"]) for batch in module.val_dataloader()] == [1]


def test_missing_shards_are_reported_before_training(pack: Callable[..., Shards], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shard .*ldm.cli.pack"):
        make_module(tmp_path).check()
    pack(4)
    make_module(tmp_path).check()
    with pytest.raises(UserError, match="no shard .*nowhere"):
        make_module(tmp_path, val_shards=str(tmp_path / "nowhere")).check()


def test_latents_are_checked(pack: Callable[..., Shards], tmp_path: Path) -> None:
    header = LatentHeader("0123456789abcdef", size=8, downsampling=8, channels=1)
    write_latents(pack(4, folder="images"), tmp_path / "shards", header, encode, batch_size=4)
    module = make_module(tmp_path)
    module.check()
    module.check_latents("0123456789abcdef")
    assert next(iter(module.train_dataloader()))["moments"].shape == (4, 2, 1, 1)
    with pytest.raises(UserError, match="autoencoder 0123456789ab.*fedcba987654.*ldm.cli.encode_latents"):
        module.check_latents("fedcba9876543210")
    with pytest.raises(UserError, match="8 px images .*data.size is 16"):
        make_module(tmp_path, size=16).check()
    with pytest.raises(UserError, match="data.random_crop=false and data.flip=false"):
        make_module(tmp_path, flip=True).check()


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    write_shard(tmp_path / "shards" / "00000.tar", [("0007", {"jpg": b"<html>", "txt": b"a page"})] * 1)
    with pytest.raises(UserError, match=r"sample 0007 in .*.tar cannot be read \(no image of a known"):
        next(iter(make_module(tmp_path).train_dataloader()))


class RecordPositions(LightningModule):
    """Record the first position of each training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.positions: list[int] = []

    def training_step(self, batch: Batch, step: int) -> Tensor:
        self.positions.append(int(batch["position"][0]))
        return self.weight

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(
    folder: Path, steps: int, workers: int = 0, resume: Path | None = None
) -> tuple[RecordPositions, Trainer]:
    module = RecordPositions()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_steps=steps, enable_model_summary=False, **quiet)  # type: ignore[arg-type]
    trainer.fit(module, make_module(folder, num_workers=workers), ckpt_path=resume)
    return module, trainer


def test_lightning_resumes_at_the_next_batch(pack: Callable[..., Shards], tmp_path: Path) -> None:
    pack(5, 6)
    module, trainer = fit(tmp_path, steps=5)
    trainer.save_checkpoint(tmp_path / "5.ckpt")
    assert module.positions == [0, 4, 8, 12, 16]
    again, _ = fit(tmp_path, steps=9, resume=tmp_path / "5.ckpt")
    assert again.positions == [20, 24, 28, 32]


def captioned(
    folder: Path, members: Mapping[str, bytes], uncaptioned: int = 0, manifest: bool = True
) -> None:
    """Write a shard of uncaptioned images, and one of images with these members beside them."""
    (folder / "shards").mkdir()
    image = {"png": png((1, 1, 1))}
    write_shard(folder / "shards" / "0.tar", [(f"0{row}", image) for row in range(uncaptioned)])
    write_shard(folder / "shards" / "1.tar", [(f"1{row}", {**image, **members}) for row in range(4)])
    if manifest:
        index_shards(find_shards(str(folder / "shards")))


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize("uncaptioned", [0, 1, 4])
@pytest.mark.parametrize(
    ("members", "captions"),
    [
        ({"txt": b"a cat"}, None),
        ({"txt": b"a cat"}, {"txt": 1, "json.long": 3}),
        ({"json": b'{"long": "a cat"}'}, {"json.long": 1}),
        ({"json": b'{"long": ["a cat", ""]}'}, {"txt": 1, "json.long": 1}),
    ],
)
def test_captions_are_found_where_the_config_names_them(
    tmp_path: Path, manifest: bool, uncaptioned: int, members: dict[str, bytes], captions: dict | None
) -> None:
    captioned(tmp_path, members, uncaptioned, manifest)
    module = make_module(tmp_path, captions=captions, steps=4)
    module.check_captions()
    batches = list(module.train_dataloader())
    found = {c for b in batches for k, c in zip(b["key"], b["caption"], strict=True) if k[0] == "1"}
    assert found == {"a cat"} and {k[0] for b in batches for k in b["key"]} == set("01"[not uncaptioned :])


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize(
    ("members", "captions", "where"),
    [
        ({"json": b'{"long": "a cat"}'}, None, ".txt"),
        ({"json": b'{"long": ""}'}, {"json.long": 1}, "json.long"),
        ({"txt": b"a cat"}, {"json.long": 1}, "json.long"),
        ({"txt": b""}, {"txt": 2, "json.long": 1}, ".txt and json.long"),
        ({}, None, ".txt"),
    ],
)
def test_shards_without_such_captions_are_refused(
    tmp_path: Path, manifest: bool, members: dict[str, bytes], captions: dict | None, where: str
) -> None:
    captioned(tmp_path, members, manifest=manifest)
    with pytest.raises(UserError, match=f"none of the first 1,000 samples .* has a caption in {where}, but"):
        make_module(tmp_path, captions=captions).check_captions()

from collections.abc import Callable
from pathlib import Path

import pytest

from ldm.data.shards.reader import Shards
from ldm.data.webdataset import ResampledDataModule
from ldm.errors import UserError


def module(shards: object, **changes: object) -> ResampledDataModule:
    settings = {"global_batch_size": 4, "size": 8, "steps": 60, "seed": 3, "buffer": 20}
    return ResampledDataModule(str(shards), None, **{**settings, **changes})  # type: ignore[arg-type]


def test_shards_are_sampled_with_replacement(pack: Callable[..., Shards], tmp_path: Path) -> None:
    pack(5, 5, 5)
    loader = module(tmp_path / "shards").train_dataloader()
    batches = list(loader)
    assert len(batches) == 60 and loader.state_dict()["manifest"] == "resampled"
    assert [p for b in batches for p in b["position"].tolist()] == list(range(240))
    for batch in batches:
        for key, caption, pixels in zip(batch["key"], batch["caption"], batch["image"], strict=True):
            row = int(Path(key).name[5:])
            assert caption.endswith(f"r{row}") and int(pixels[1, 0, 0]) == row
    keys = [Path(key).name for b in batches for key in b["key"]]
    assert len(set(keys)) == 15 and len(set(keys[:15])) < 15
    again = [Path(key).name for b in module(tmp_path / "shards").train_dataloader() for key in b["key"]]
    other = [
        Path(key).name for b in module(tmp_path / "shards", seed=4).train_dataloader() for key in b["key"]
    ]
    assert keys == again != other


def test_a_resumed_run_continues_to_count_steps_with_other_samples(
    pack: Callable[..., Shards], tmp_path: Path
) -> None:
    pack(5, 5, 5)
    resumed = module(tmp_path / "shards")
    resumed.skip_to(30)
    batches = list(resumed.train_dataloader())
    assert batches[0]["position"].tolist() == [120, 121, 122, 123] and len(batches) == 30


def test_unreadable_samples_are_counted_and_unreadable_shards_reported(
    pack: Callable[..., Shards], tmp_path: Path
) -> None:
    path = pack(5).paths[0]
    path.write_bytes(path.read_bytes().replace(b"IDAT", b"XXXX"))
    with pytest.raises(UserError, match="100 bad samples in one batch.* cannot be read "):
        list(module(tmp_path / "shards").train_dataloader())
    with pytest.raises(UserError, match="cannot be read .FileNotFoundError"):
        list(module(tmp_path / "{00000..00003}.tar").train_dataloader())

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
    with pytest.raises(UserError, match="there is no shard .*00000.tar"):
        list(module(tmp_path / "{00000..00003}.tar").train_dataloader())


def test_a_shard_that_cannot_be_read_to_its_end_is_a_bad_sample(
    pack: Callable[..., Shards], tmp_path: Path
) -> None:
    path = pack(5, 5).paths[0]
    with open(path, "rb+") as file:
        file.truncate(6000)  # in its third sample
    loader = module(tmp_path / "shards", buffer=1, max_bad_rate=1).train_dataloader()
    keys = [key for batch in loader for key in batch["key"]]
    assert len(keys) == 240 and loader.budget.bad > 10
    whole = {f"0000{shard}000{row}" for shard in range(2) for row in range(5)}
    assert {Path(key).name for key in keys} < whole and "000010004" in {Path(key).name for key in keys}

from collections.abc import Callable
from pathlib import Path

import pytest

from ldm.data.shards.reader import Shards
from ldm.data.webdataset import ResampledDataModule
from ldm.errors import UserError


def module(shards: object, **changes: object) -> ResampledDataModule:
    settings = {"global_batch_size": 4, "size": 8, "steps": 60, "seed": 3, "buffer": 20}
    return ResampledDataModule(str(shards), None, **{**settings, **changes})  # type: ignore[arg-type]


def test_shards_are_drawn_with_replacement(pack: Callable[..., Shards], tmp_path: Path) -> None:
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


def test_a_resumed_run_counts_on_with_other_samples(pack: Callable[..., Shards], tmp_path: Path) -> None:
    pack(5, 5, 5)
    made = module(tmp_path / "shards")
    made.skip_to(30)
    late = list(made.train_dataloader())
    assert late[0]["position"].tolist() == [120, 121, 122, 123] and len(late) == 30


def test_what_cannot_be_read_is_counted_or_one_sentence(pack: Callable[..., Shards], tmp_path: Path) -> None:
    path = pack(5).paths[0]
    path.write_bytes(path.read_bytes().replace(b"IDAT", b"XXXX"))
    with pytest.raises(UserError, match="cannot be read .*100 samples of one batch"):
        list(module(tmp_path / "shards").train_dataloader())
    with pytest.raises(UserError, match="cannot be read .FileNotFoundError"):
        list(module(tmp_path / "{00000..00003}.tar").train_dataloader())

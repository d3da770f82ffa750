"""Models and batches beyond this machine's memory are refused before they are allocated."""

import pytest

from ldm.cli.config.compose import compose
from ldm.cli.training import memory_checks
from ldm.cli.training.memory_checks import check_memory, physical_memory
from ldm.errors import UserError

TEXT = ["experiment=debug/text", "data.shards=shards", "first_stage=weights.safetensors"]
CONTEXT = "denoiser.context_channels=65536"
TOWER = "conditioner.conditioners.text"
WEIGHTS = "the model has .* weights,"
HUGE = {
    "channels": (["denoiser.model_channels=65536", "denoiser.channel_mult=[256,256]"], WEIGHTS),
    "tokens": ([f"{TOWER}.tokenizer.length=65536", f"{TOWER}.width=65536", CONTEXT], WEIGHTS),
    "batch": (["data.global_batch_size=2147483647"], "data.global_batch_size=2147483647 .*=64 need"),
    "images": (["data.size=16384", "data.global_batch_size=65536"], "of data.size=16384 need"),
}


@pytest.mark.parametrize("name", HUGE)
def test_what_no_machine_can_hold_is_refused(name: str) -> None:
    overrides, message = HUGE[name]
    with pytest.raises(UserError, match=f"{message}.* GB.* this machine has .* GB"):
        check_memory(compose("train", [*TEXT, *overrides]), 1)


def test_a_small_model_passes_and_processes_share_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = compose("train", TEXT)
    assert 2**28 < physical_memory() < 2**50
    check_memory(cfg, 1)
    batch = cfg.data.global_batch_size * cfg.data.size**2 * 3
    monkeypatch.setattr(memory_checks, "physical_memory", lambda: max(batch // 2, 10**8))
    check_memory(cfg, 2)
    monkeypatch.setattr(memory_checks, "physical_memory", lambda: 10**6)
    with pytest.raises(UserError, match="the model has"):
        check_memory(cfg, 1)

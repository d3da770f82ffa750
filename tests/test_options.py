"""Options that a network or a trainer has are keys of its config: no `+` before them."""

import pytest
import torch
from omegaconf import OmegaConf

from ldm.cli.build import build
from ldm.cli.composition import CONFIGS, compose
from ldm.losses.likelihood import LearnedScale

TRAIN = ["name=x", "trainer.max_steps=1000", "data.shards=shards", "first_stage=weights.safetensors"]


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@pytest.mark.parametrize("name", options("denoiser"))
def test_every_denoiser_can_recompute_its_blocks(name):
    cfg = compose("train", [*TRAIN, f"denoiser={name}", "denoiser.activation_checkpointing=true"])
    with torch.device("meta"):
        blocks = [m for m in build(cfg.denoiser).modules() if hasattr(m, "recompute")]
    assert blocks and all(block.recompute for block in blocks)
    assert OmegaConf.load(CONFIGS / "denoiser" / f"{name}.yaml").activation_checkpointing is False


def test_a_published_experiment_can_recompute_its_blocks():
    words = ["experiment=ldm_f8_text", "data.shards=shards", "first_stage=weights.safetensors"]
    cfg = compose("train", [*words, "denoiser.activation_checkpointing=true"])
    assert cfg.stage.model.denoiser.activation_checkpointing is True


@pytest.mark.parametrize("name", options("trainer"))
def test_batch_norm_over_gpus_is_a_key_of_every_trainer(name):
    words = ["experiment=ae_kl_f8", "data.shards=shards", "adversary=patchgan_batchnorm", f"trainer={name}"]
    assert compose("train", words).trainer.sync_batchnorm is False
    assert compose("train", [*words, "trainer.sync_batchnorm=true"]).trainer.sync_batchnorm is True


@pytest.mark.parametrize("name", ["ae_kl_f8", "ae_vq_f4", "demo_ae"])
def test_the_learned_scale_is_one_word(name):
    words = [f"experiment={name}", "data.shards=shards"]
    assert compose("train", words).stage.likelihood is None
    cfg = compose("train", [*words, "likelihood=learned", "likelihood.initial=0.5"])
    scale = build(cfg.stage.likelihood)
    assert isinstance(scale, LearnedScale) and scale.s == 0.5
    inline = compose("train", [*words, "stage.likelihood={_target_: ldm.losses.likelihood.LearnedScale}"])
    assert isinstance(build(inline.stage.likelihood), LearnedScale)


def test_an_experiment_can_name_the_learned_scale(tmp_path):
    """As an experiment's file would: `override /likelihood: learned`."""
    configs = tmp_path / "configs"
    for path in CONFIGS.rglob("*.yaml"):
        target = configs / path.relative_to(CONFIGS)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    text = (CONFIGS / "experiment" / "ae_kl_f8.yaml").read_text()
    changed = text.replace("defaults:\n", "defaults:\n  - override /likelihood: learned\n")
    assert changed != text
    (configs / "experiment" / "mine.yaml").write_text(changed)
    cfg = compose("train", ["experiment=mine", "data.shards=shards"], configs)
    assert isinstance(build(cfg.stage.likelihood), LearnedScale)

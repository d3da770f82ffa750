"""Options of networks, losses and trainers are keys of their configs and need no `+`."""

import pytest
import torch
from omegaconf import OmegaConf

from ldm.cli.config.compose import CONFIGS, compose
from ldm.cli.config.instantiate import instantiate
from ldm.conditioning.clip_image import MEAN, STD
from ldm.losses.equivariance import Equivariance
from ldm.losses.logvar import LearnedLogVar
from ldm.networks.bottleneck import KLBottleneck
from ldm.networks.vector_quantizer import VQBottleneck
from tests.support.configs import options

TRAIN = ["name=x", "trainer.max_steps=1000", "data.shards=shards", "first_stage=weights.safetensors"]


@pytest.mark.parametrize("name", options("denoiser"))
def test_activation_checkpointing_is_a_key_of_every_denoiser(name):
    cfg = compose("train", [*TRAIN, f"denoiser={name}", "denoiser.activation_checkpointing=true"])
    with torch.device("meta"):
        blocks = [m for m in instantiate(cfg.denoiser).modules() if hasattr(m, "recompute")]
    assert blocks and all(block.recompute for block in blocks)
    assert OmegaConf.load(CONFIGS / "denoiser" / f"{name}.yaml").activation_checkpointing is False


def test_activation_checkpointing_reaches_the_stage():
    overrides = ["experiment=ldm_f8_text", "data.shards=shards", "first_stage=weights.safetensors"]
    cfg = compose("train", [*overrides, "denoiser.activation_checkpointing=true"])
    assert cfg.stage.model.denoiser.activation_checkpointing is True


@pytest.mark.parametrize("name", options("trainer"))
def test_sync_batchnorm_is_a_key_of_every_trainer(name):
    overrides = [
        "experiment=ae_kl_f8",
        "data.shards=shards",
        "adversary=patchgan_batchnorm",
        f"trainer={name}",
    ]
    assert compose("train", overrides).trainer.sync_batchnorm is False
    assert compose("train", [*overrides, "trainer.sync_batchnorm=true"]).trainer.sync_batchnorm is True


@pytest.mark.parametrize("name", ["ae_kl_f8", "ae_vq_f4", "demo/ae"])
def test_logvar_learned_is_a_config_group(name):
    overrides = [f"experiment={name}", "data.shards=shards"]
    assert compose("train", overrides).stage.logvar is None
    cfg = compose("train", [*overrides, "logvar=learned", "logvar.initial=0.5"])
    logvar = instantiate(cfg.stage.logvar)
    assert isinstance(logvar, LearnedLogVar) and logvar.s == 0.5
    inline = compose("train", [*overrides, "stage.logvar={_target_: ldm.losses.logvar.LearnedLogVar}"])
    assert isinstance(instantiate(inline.stage.logvar), LearnedLogVar)


def test_an_experiment_can_override_logvar(tmp_path):
    """With `override /logvar: learned` in its defaults."""
    configs = tmp_path / "configs"
    for path in CONFIGS.rglob("*.yaml"):
        target = configs / path.relative_to(CONFIGS)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    text = (CONFIGS / "experiment" / "ae_kl_f8.yaml").read_text()
    changed = text.replace("defaults:\n", "defaults:\n  - override /logvar: learned\n")
    assert changed != text
    (configs / "experiment" / "mine.yaml").write_text(changed)
    cfg = compose("train", ["experiment=mine", "data.shards=shards"], configs)
    assert isinstance(instantiate(cfg.stage.logvar), LearnedLogVar)


STAGE_1 = ["name=x", "trainer.max_steps=1000", "data.shards=shards", "stage=autoencoder"]
VQ_OPTIONS = {"beta": 0.5, "legacy": True, "weight": 2.0, "revive_after": 7}


def instantiate_with(overrides: list[str], path: str, values: dict[str, object]) -> object:
    """Return the object at a path of train.py's config, with these values for keys below the path."""
    of_values = [f"{path}.{key}={str(value).lower()}" for key, value in values.items()]
    cfg = compose("train", [*overrides, *of_values])
    node = OmegaConf.select(cfg, path)
    assert {key: node[key] for key in values} == values
    with torch.device("meta"):
        return instantiate(node)


@pytest.mark.parametrize("name", options("autoencoder"))
def test_the_options_of_every_bottleneck_are_keys(name):
    overrides = [*STAGE_1, f"autoencoder={name}"]
    with torch.device("meta"):
        bottleneck = instantiate(compose("train", overrides).autoencoder.bottleneck)
    if isinstance(bottleneck, KLBottleneck):
        assert bottleneck.weight == 1e-6 or not name.startswith("kl_"), "as published"
        assert instantiate_with(overrides, "autoencoder.bottleneck", {"weight": 0.5}).weight == 0.5
    if isinstance(bottleneck, VQBottleneck):
        assert (bottleneck.commitment_weight, bottleneck.codebook_weight, bottleneck.weight) == (0.25, 1, 1)
        assert bottleneck.revive_after == 0
        changed = instantiate_with(overrides, "autoencoder.bottleneck", VQ_OPTIONS)
        assert (changed.commitment_weight, changed.codebook_weight) == (1, 0.5)
        assert (changed.weight, changed.revive_after) == (2, 7)


@pytest.mark.parametrize("name", [n for n in options("experiment") if n.startswith("demo/ae_vq")])
def test_the_demos_codebook_loss_has_the_published_weights(name):
    """The VQ bottleneck replaces a KL bottleneck and must not inherit its weight."""
    overrides = [f"experiment={name}", "data.shards=shards"]
    bottleneck = instantiate(compose("train", overrides).autoencoder.bottleneck)
    assert (bottleneck.commitment_weight, bottleneck.codebook_weight) == (0.25, 1)
    assert (bottleneck.weight, bottleneck.revive_after) == (1, 50)
    assert instantiate_with(overrides, "autoencoder.bottleneck", VQ_OPTIONS).weight == 2


@pytest.mark.parametrize("name", ["lpips", "random_vgg"])
def test_the_bands_of_perceptual_losses_are_a_key(name):
    overrides = [*STAGE_1, f"perceptual={name}"]
    assert compose("train", overrides).perceptual.bands is None
    assert compose("train", [*overrides, "perceptual.bands=[2,1,0]"]).stage.perceptual.bands == [2, 1, 0]


@pytest.mark.parametrize("name", ["clip_vit_l14", "clip_vit_h14"])
def test_the_chunks_of_a_text_are_a_key(name):
    overrides = [*TRAIN, f"conditioner={name}"]
    path = "conditioner.conditioners.text.tokenizer"
    assert instantiate_with(overrides, path, {"chunks": 1}).chunks == 1
    assert instantiate_with(overrides, path, {"chunks": 3}).chunks == 3


def test_patches_and_vector_of_clip_image_are_keys():
    overrides, path = [*TRAIN, "conditioner=clip_image"], "conditioner.conditioners.image"
    with torch.device("meta"):
        default = instantiate(OmegaConf.select(compose("train", overrides), path))
    assert (default.patches, default.vector, default.mean, default.std) == (False, False, MEAN, STD)
    changed = instantiate_with(
        overrides, path, {"patches": True, "vector": True, "mean": [0.5] * 3, "std": [0.25] * 3}
    )
    assert (changed.patches, changed.vector, changed.mean, changed.std) == (
        True,
        True,
        (0.5,) * 3,
        (0.25,) * 3,
    )


@pytest.mark.parametrize("name", ["ae_kl_f8", "ae_vq_f4", "demo/ae"])
def test_equivariance_is_a_config_group(name):
    overrides = [f"experiment={name}", "data.shards=shards"]
    assert compose("train", overrides).stage.equivariance is None
    cfg = compose("train", [*overrides, "equivariance=eq_vae", "equivariance.smallest=0.75"])
    equivariance = instantiate(cfg.stage.equivariance)
    assert isinstance(equivariance, Equivariance)
    assert (equivariance.probability, equivariance.smallest) == (0.5, 0.75)


def test_the_equivariance_of_the_demo():
    equivariance = instantiate(compose("train", ["experiment=demo/ae_eq"]).stage.equivariance)
    assert (equivariance.probability, equivariance.smallest) == (0.5, 0.5)

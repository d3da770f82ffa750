"""Options that a network or a trainer has are keys of its config: no `+` before them."""

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
def test_every_denoiser_can_recompute_its_blocks(name):
    cfg = compose("train", [*TRAIN, f"denoiser={name}", "denoiser.activation_checkpointing=true"])
    with torch.device("meta"):
        blocks = [m for m in instantiate(cfg.denoiser).modules() if hasattr(m, "recompute")]
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


@pytest.mark.parametrize("name", ["ae_kl_f8", "ae_vq_f4", "demo/ae"])
def test_the_learned_scale_is_one_word(name):
    words = [f"experiment={name}", "data.shards=shards"]
    assert compose("train", words).stage.logvar is None
    cfg = compose("train", [*words, "logvar=learned", "logvar.initial=0.5"])
    scale = instantiate(cfg.stage.logvar)
    assert isinstance(scale, LearnedLogVar) and scale.s == 0.5
    inline = compose("train", [*words, "stage.logvar={_target_: ldm.losses.logvar.LearnedLogVar}"])
    assert isinstance(instantiate(inline.stage.logvar), LearnedLogVar)


def test_an_experiment_can_name_the_learned_scale(tmp_path):
    """As an experiment's file would: `override /logvar: learned`."""
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
CODES = {"beta": 0.5, "legacy": True, "weight": 2.0, "revive_after": 7}


def moved(words: list[str], place: str, values: dict[str, object]) -> object:
    """What stands there once each of these keys has been given, without a +, and what it says of it."""
    given = [f"{place}.{key}={str(value).lower()}" for key, value in values.items()]
    cfg = compose("train", [*words, *given])
    node = OmegaConf.select(cfg, place)
    assert {key: node[key] for key in values} == values
    with torch.device("meta"):
        return instantiate(node)


@pytest.mark.parametrize("name", options("autoencoder"))
def test_every_bottlenecks_numbers_are_keys(name):
    words = [*STAGE_1, f"autoencoder={name}"]
    with torch.device("meta"):
        bottleneck = instantiate(compose("train", words).autoencoder.bottleneck)
    if isinstance(bottleneck, KLBottleneck):
        assert bottleneck.weight == 1e-6 or not name.startswith("kl_"), "as published"
        assert moved(words, "autoencoder.bottleneck", {"weight": 0.5}).weight == 0.5
    if isinstance(bottleneck, VQBottleneck):
        assert (bottleneck.commitment_weight, bottleneck.codebook_weight, bottleneck.weight) == (0.25, 1, 1)
        assert bottleneck.revive_after == 0
        other = moved(words, "autoencoder.bottleneck", CODES)
        assert (other.commitment_weight, other.codebook_weight, other.weight, other.revive_after) == (
            1,
            0.5,
            2,
            7,
        )


@pytest.mark.parametrize("name", [n for n in options("experiment") if n.startswith("demo/ae_vq")])
def test_a_demos_codebook_weighs_its_loss_as_the_full_sizes_do(name):
    """It stands in the place of a KL bottleneck, whose weight is another's."""
    words = [f"experiment={name}", "data.shards=shards"]
    bottleneck = instantiate(compose("train", words).autoencoder.bottleneck)
    found = (
        bottleneck.commitment_weight,
        bottleneck.codebook_weight,
        bottleneck.weight,
        bottleneck.revive_after,
    )
    assert found == (0.25, 1, 1, 50)
    assert moved(words, "autoencoder.bottleneck", CODES).weight == 2


@pytest.mark.parametrize("name", ["lpips", "random_vgg"])
def test_the_bands_that_stand_for_colours_are_a_key(name):
    words = [*STAGE_1, f"perceptual={name}"]
    assert compose("train", words).perceptual.bands is None
    assert compose("train", [*words, "perceptual.bands=[2,1,0]"]).stage.perceptual.bands == [2, 1, 0]


@pytest.mark.parametrize("name", ["clip_vit_l14", "clip_vit_h14"])
def test_a_text_can_come_in_chunks(name):
    words = [*TRAIN, f"conditioner={name}"]
    place = "conditioner.conditioners.text.tokenizer"
    assert moved(words, place, {"chunks": 1}).chunks == 1
    assert moved(words, place, {"chunks": 3}).chunks == 3


def test_a_prompt_image_can_fill_the_vector_or_be_its_patches():
    words, place = [*TRAIN, "conditioner=clip_image"], "conditioner.conditioners.image"
    with torch.device("meta"):
        plain = instantiate(OmegaConf.select(compose("train", words), place))
    assert (plain.patches, plain.vector, plain.mean, plain.std) == (False, False, MEAN, STD)
    other = moved(words, place, {"patches": True, "vector": True, "mean": [0.5] * 3, "std": [0.25] * 3})
    assert (other.patches, other.vector, other.mean, other.std) == (True, True, (0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("name", ["ae_kl_f8", "ae_vq_f4", "demo/ae"])
def test_equivariance_is_one_word(name):
    words = [f"experiment={name}", "data.shards=shards"]
    assert compose("train", words).stage.equivariance is None
    cfg = compose("train", [*words, "equivariance=eq_vae", "equivariance.smallest=0.75"])
    found = instantiate(cfg.stage.equivariance)
    assert isinstance(found, Equivariance) and (found.probability, found.smallest) == (0.5, 0.75)


def test_the_demo_learns_with_it():
    found = instantiate(compose("train", ["experiment=demo/ae_eq"]).stage.equivariance)
    assert (found.probability, found.smallest) == (0.5, 0.5)

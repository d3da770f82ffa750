"""Loading a model file, and sampling from it: what the images depend on."""

import pytest
import torch
from omegaconf import OmegaConf

from ldm.callbacks.ema import EMA
from ldm.callbacks.export import Export
from ldm.cli.config.compose import compose
from ldm.cli.config.instantiate import instantiate
from ldm.cli.sampling.load import load_model, load_weak_model, pick_device
from ldm.cli.sampling.setup import sampling_options
from ldm.cli.sampling.tasks.base import SampleSpec, SamplingContext, Txt2Img, sample_images
from ldm.diffusion.samplers.ddim import ddim
from ldm.diffusion.times import trailing
from ldm.errors import UserError
from ldm.interop import model_file
from ldm.model import LatentDiffusion
from tests.support import tiny

TIMES = trailing(1000, 3)
SPECS = [("a red square", 3), ("a blue circle", 1), ("a red square", 4)]
TINY = [
    "experiment=debug/text",
    "data.shards=shards",
    "autoencoder.encoder.channel_mult=[1,2,2]",
    "autoencoder.decoder.channel_mult=[1,2,2]",
]
"""Factor 4: 16 pixels are 4 latent positions."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(stage, EMA, model file) after three steps."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    cfg = compose("train", TINY)
    config = OmegaConf.to_container(cfg.stage.model, resolve=True)
    stage, ema, path = tiny.second_stage(instantiate(cfg.stage.model)), EMA(0.5), folder / "out.safetensors"
    trainer = tiny.trainer(3, [ema, Export(str(path), config, "latent_diffusion", 10)])
    trainer.fit(stage, tiny.data(folder / "shards", 3))
    return stage, ema, str(path)


def settings(*words: str):
    return compose("sample", ["ckpt=c", "prompts=[p]", "n=2", *words])


def sample(model: LatentDiffusion, specs=SPECS, *words: str):
    """The images of these (prompt, seed), float32."""
    cfg = settings(*words)
    weak = load_weak_model(cfg.weak, model, "cpu")
    context = SamplingContext(model, [Txt2Img()], sampling_options(cfg), (16, 16), weak)
    return sample_images(
        context, [SampleSpec(prompt, seed) for prompt, seed in specs], sampler=ddim, times=TIMES
    )


def test_the_file_samples_what_the_stage_samples_with_its_ema(trained):
    stage, ema, path = trained
    loaded, header = load_model(path, "cpu")
    assert header["step"] == "3" and not any(module.training for module in loaded.modules())
    stage.eval()
    with ema.use_averages(stage):
        expected = sample(stage.model)
    assert torch.equal(sample(loaded), expected)
    assert not torch.equal(sample(stage.model), expected), "without the EMA the samples differ"


def test_an_image_depends_on_its_own_seed_only(trained):
    model, _ = load_model(trained[2], "cpu")
    specs = [(prompt, seed + 10 * i) for i in range(3) for prompt, seed in SPECS][:7]
    together = sample(model, specs, "batch_size=7")
    alone = sample(model, specs[::-1], "batch_size=1").flip(0)
    assert ((together - alone).norm() / alone.norm()).item() < 1e-5
    assert (together[0] - together[3]).norm() > 1e-3, "another seed, another image"


def test_a_negative_prompt_replaces_the_null(trained):
    model, _ = load_model(trained[2], "cpu")
    assert not torch.equal(sample(model), sample(model, SPECS, "negative='a blue square'"))
    assert torch.equal(sample(model), sample(model, SPECS, "negative=''")), (
        "the null is the empty prompt's encoding"
    )


def test_guidance_is_a_config_group(trained):
    model, _ = load_model(trained[2], "cpu")
    plain = sample(model)
    assert torch.equal(plain, sample(model, SPECS, "guidance=rescaled", "guidance.phi=0"))
    assert torch.equal(
        plain, sample(model, SPECS, "guidance=interval", "guidance.low=0", "guidance.high=1e9")
    )
    for words in (["guidance=rescaled"], ["guidance=interval"], ["guidance=interval_rescaled"]):
        assert not torch.equal(plain, sample(model, SPECS, *words))


def test_autoguidance_by_an_earlier_model(trained, tmp_path):
    model, header = load_model(trained[2], "cpu")
    tensors, config, _ = model_file.load(trained[2], "latent_diffusion")
    assert torch.equal(sample(model, SPECS, f"weak={trained[2]}"), sample(model, SPECS, "scale=1"))
    earlier, other = str(tmp_path / "earlier.safetensors"), str(tmp_path / "other.safetensors")
    moved = {k: v * 0.9 if k.startswith("denoiser.") else v for k, v in tensors.items()}
    model_file.save(earlier, moved, config, "latent_diffusion", header)
    assert not torch.equal(sample(model, SPECS, f"weak={earlier}"), sample(model, SPECS, "scale=1"))
    with pytest.raises(UserError, match="give one of the two"):
        sample(model, SPECS, f"weak={earlier}", "negative=''")
    config = config | {"parameterization": {"_target_": "ldm.diffusion.parameterization.V"}}
    model_file.save(other, tensors, config, "latent_diffusion", header)
    with pytest.raises(UserError, match="another parameterization than ckpt"):
        sample(model, SPECS, f"weak={other}")


def test_another_kind_of_model_file_is_refused(tmp_path):
    path = str(tmp_path / "autoencoder.safetensors")
    model_file.save(path, tiny.autoencoder().state_dict(), {}, "autoencoder", {})
    with pytest.raises(UserError, match=r"'autoencoder' where one of kind 'latent_diffusion' is needed"):
        load_model(path, "cpu")


def test_other_frozen_encoders_than_in_training_are_refused(trained, monkeypatch):
    monkeypatch.setattr(LatentDiffusion, "identity", lambda self: {"text.sha256": "abc"})
    with pytest.raises(UserError, match=r"trained with text\.sha256 None, but this version of ldm has abc"):
        load_model(trained[2], "cpu")


def test_a_missing_gpu_is_reported(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    with pytest.raises(UserError, match="unknown device=gpu: use auto, cpu or cuda"):
        pick_device("gpu")
    with pytest.raises(UserError, match="no GPU on this machine: use device=cpu"):
        pick_device("cuda")

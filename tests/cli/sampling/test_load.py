"""Loading a model file, and what images sampled from it depend on."""

import pytest
import torch

from ldm.cli.sampling.load import load_model, load_weak_model
from ldm.cli.sampling.setup import sampling_options
from ldm.cli.sampling.tasks.base import SampleSpec, SamplingContext, Txt2Img, sample_images
from ldm.diffusion.samplers.ddim import ddim
from ldm.diffusion.times import trailing
from ldm.errors import UserError
from ldm.interop import model_file
from ldm.model import LatentDiffusion
from tests.support import tiny
from tests.support.sampling_models import sample_config

TIMES = trailing(1000, 3)
SPECS = [("a red square", 3), ("a blue circle", 1), ("a red square", 4)]


def sample(model: LatentDiffusion, specs=SPECS, *overrides: str) -> torch.Tensor:
    """Sample one image per (prompt, seed), float32."""
    cfg = sample_config(*overrides)
    weak = load_weak_model(cfg.weak, model, "cpu")
    context = SamplingContext(model, [Txt2Img()], sampling_options(cfg), (16, 16), weak)
    return sample_images(
        context, [SampleSpec(prompt, seed) for prompt, seed in specs], sampler=ddim, times=TIMES
    )


def test_a_model_file_samples_as_the_stage_with_its_ema(trained):
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


def test_a_negative_prompt_replaces_the_null_condition(trained):
    model, _ = load_model(trained[2], "cpu")
    assert not torch.equal(sample(model), sample(model, SPECS, "negative='a blue square'"))
    assert torch.equal(sample(model), sample(model, SPECS, "negative=''")), (
        "the null condition is the empty prompt's encoding"
    )


def test_guidance_is_a_config_group(trained):
    model, _ = load_model(trained[2], "cpu")
    plain = sample(model)
    assert torch.equal(plain, sample(model, SPECS, "guidance=rescaled", "guidance.phi=0"))
    assert torch.equal(
        plain, sample(model, SPECS, "guidance=interval", "guidance.low=0", "guidance.high=1e6")
    )
    for name in ("rescaled", "interval", "interval_rescaled"):
        assert not torch.equal(plain, sample(model, SPECS, f"guidance={name}"))


def test_autoguidance_by_a_weaker_model(trained, tmp_path):
    model, header = load_model(trained[2], "cpu")
    tensors, config, _ = model_file.load(trained[2], "latent_diffusion")
    assert torch.equal(sample(model, SPECS, f"weak={trained[2]}"), sample(model, SPECS, "scale=1"))
    weaker, other = str(tmp_path / "weaker.safetensors"), str(tmp_path / "other.safetensors")
    scaled = {k: v * 0.9 if k.startswith("denoiser.") else v for k, v in tensors.items()}
    model_file.save(weaker, scaled, config, "latent_diffusion", header)
    assert not torch.equal(sample(model, SPECS, f"weak={weaker}"), sample(model, SPECS, "scale=1"))
    with pytest.raises(UserError, match="negative.* weak"):
        sample(model, SPECS, f"weak={weaker}", "negative=''")
    config = config | {"parameterization": {"_target_": "ldm.diffusion.parameterization.V"}}
    model_file.save(other, tensors, config, "latent_diffusion", header)
    with pytest.raises(UserError, match="weak=.* parameterization"):
        sample(model, SPECS, f"weak={other}")


def test_another_kind_of_model_file_is_refused(tmp_path):
    path = str(tmp_path / "autoencoder.safetensors")
    model_file.save(path, tiny.autoencoder().state_dict(), {}, "autoencoder", {})
    with pytest.raises(UserError, match=r"autoencoder.safetensors .*'autoencoder' .*'latent_diffusion'"):
        load_model(path, "cpu")


def test_frozen_encoders_other_than_in_training_are_refused(trained, monkeypatch):
    monkeypatch.setattr(LatentDiffusion, "describe_frozen_weights", lambda self: {"text.sha256": "abc"})
    with pytest.raises(UserError, match=r"text\.sha256 None, .* abc"):
        load_model(trained[2], "cpu")

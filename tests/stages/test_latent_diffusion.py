"""Stage 2: what is trained, what is not, and that training works."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from ldm.callbacks.ema import EMA
from ldm.conditioning.base import Compose
from ldm.conditioning.coordinates import Coordinates
from ldm.conditioning.rescalers import MaxPoolMask
from ldm.conditioning.spatial import LatentImage, Mask
from ldm.diffusion.parameterization import V
from ldm.diffusion.schedule import Cosine
from ldm.errors import UserError
from ldm.interop import model_file
from ldm.model import LatentDiffusion
from ldm.networks.autoencoder import Autoencoder
from ldm.networks.bottleneck import NoBottleneck
from ldm.networks.identity_autoencoder import IdentityDecoder, IdentityEncoder
from ldm.networks.unet import UNet
from tests.support import tiny


@pytest.fixture
def weights(tmp_path):
    """A model file of stage 1."""
    torch.manual_seed(1)
    model, path = tiny.autoencoder(), str(tmp_path / "autoencoder.safetensors")
    model.set_latent_statistics([0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 0.5, 1.5])
    model_file.save(path, model.state_dict(), {}, "autoencoder", {})
    return path


def test_overfits_four_images():
    stage = tiny.second_stage(optimizer=partial(torch.optim.Adam, lr=1e-2))
    losses = []
    stage.log_row = lambda values: losses.append(float(values["train/loss"]))
    tiny.fit(stage, [tiny.batch(4)] * 200)
    assert losses[0] > 0.5 and min(losses) < losses[0] / 20


def test_denoiser_and_conditioner_are_trained_and_the_first_stage_is_not():
    stage = tiny.second_stage()
    before = tiny.snapshot(stage)
    tiny.fit(stage, [tiny.batch(4)] * 4)
    moved = tiny.changed_names(stage, before)
    assert moved == {name for name in before if name.startswith(("model.denoiser.", "model.conditioner."))}
    assert not stage.model.first_stage.training and stage.model.denoiser.training
    assert all(p.grad is None for p in stage.model.first_stage.parameters())


def test_the_optimizer_holds_the_averaged_parameters():
    stage = tiny.second_stage()
    stage.model.conditioner.requires_grad_(False)
    optimizer = stage.configure_optimizers()["optimizer"]
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in stage.model.denoiser.parameters()}
    assert optimized == {id(p) for p in stage.averaged_parameters().values()}


def test_global_step_counts_batches():
    trainer = tiny.fit(tiny.second_stage(micro_batch_size=1), [tiny.batch(2)] * 20, max_steps=7)
    assert trainer.global_step == 7 and trainer.fit_loop.total_batch_idx == 6


def test_noise_time_and_dropout_follow_positions():
    """The mean loss of two ranks on half of a batch each is that of one process on all of it."""
    stage = tiny.second_stage()
    tiny.fit(stage, [tiny.batch(4)] * 2)
    whole = stage.training_losses(tiny.batch(6)).mean()
    halves = [stage.training_losses(tiny.batch(3, first)).mean() for first in (0, 3)]
    torch.testing.assert_close(whole, sum(halves) / 2, rtol=1e-5, atol=1e-6)
    for stream, shape in (("eps", (4, 4, 4)), ("posterior", (4, 4, 4))):
        parts = [stage.normal(tiny.batch(3, first), stream, shape) for first in (0, 3)]
        assert torch.equal(stage.normal(tiny.batch(6), stream, shape), torch.cat(parts))
    for stream, shape in (("u", ()), ("drop", (1,))):
        parts = [stage.uniform(tiny.batch(3, first), stream, shape) for first in (0, 3)]
        assert torch.equal(stage.uniform(tiny.batch(6), stream, shape), torch.cat(parts))
        assert len(torch.cat(parts).unique()) == 6


def test_captions_are_dropped_only_in_training():
    stage = tiny.second_stage()
    u = []
    stage.model.conditioner.register_forward_pre_hook(lambda _, args: u.append(args[1]))
    stage.training_losses(tiny.batch(3))
    stage.validation_losses(tiny.batch(3))
    assert u[0].shape == (3, 1) and u[1] is None


def test_cached_moments_are_the_latents_of_the_images(weights):
    stage = tiny.second_stage(first_stage_weights=weights)
    stage.load_pretrained()
    batch = tiny.batch(4)
    with torch.no_grad():
        posterior = stage.model.first_stage.posterior(stage.pixels(batch))
    moments = torch.cat([posterior.mean, posterior.std], 1).half()
    cached = {"moments": moments, "position": batch["position"], "caption": batch["caption"]}
    torch.testing.assert_close(stage.latents(cached), stage.latents(batch), atol=5e-3, rtol=5e-3)


def test_the_first_stage_is_loaded_from_its_file(weights):
    stage = tiny.second_stage(first_stage_weights=weights)
    stage.load_pretrained()
    tensors, _, _ = model_file.load(weights, "autoencoder")
    assert not tiny.changed_names(stage.model.first_stage, tensors)
    other = tiny.autoencoder()
    other.load_state_dict(tensors)
    assert stage.first_stage_hash() == model_file.content_hash(other)


def test_a_missing_first_stage_is_refused():
    with pytest.raises(UserError, match=r"needs a trained first stage: give first_stage=runs/NAME/autoenc"):
        tiny.second_stage().load_pretrained()
    with pytest.raises(UserError, match=r"no model file /nowhere\.safetensors"):
        tiny.second_stage(first_stage_weights="/nowhere.safetensors").load_pretrained()


def test_a_file_of_the_wrong_kind_is_refused(weights, tmp_path):
    path = str(tmp_path / "latent_diffusion.safetensors")
    model_file.save(path, tiny.diffusion().state_dict(), {}, "latent_diffusion", {})
    with pytest.raises(UserError, match=r"'latent_diffusion' where one of kind 'autoencoder' is needed"):
        tiny.second_stage(first_stage_weights=path).load_pretrained()
    with pytest.raises(UserError, match=r"'autoencoder' where one of kind 'latent_diffusion' is needed"):
        tiny.second_stage(first_stage_weights=weights, init=weights).load_pretrained()


def test_starts_from_a_model_file(weights, tmp_path):
    torch.manual_seed(2)
    other, path = tiny.diffusion(), str(tmp_path / "latent_diffusion.safetensors")
    model_file.save(path, other.state_dict(), {}, "latent_diffusion", {})
    stage = tiny.second_stage(first_stage_weights=weights, init=path)
    stage.load_pretrained()
    assert not tiny.changed_names(stage.model, tiny.snapshot(other))


def test_validation_measures_the_averaged_weights(tmp_path):
    stage, ema = tiny.second_stage(), EMA(0.9)
    trainer = tiny.trainer(3, [ema], tmp_path / "metrics.csv", validate_every=3)
    data = tiny.data(tmp_path / "shards", 3)
    trainer.fit(stage, data)
    logged = tiny.read_column(tmp_path / "metrics.csv", "val/loss")
    batches = list(data.val_dataloader())

    def loss() -> float:
        stage.eval()
        return (
            torch.stack([stage.validation_losses(batch)[0].mean().detach() for batch in batches])
            .mean()
            .item()
        )

    with ema.use_averages(stage):
        averaged = loss()
    assert list(logged) == [3] and logged[3] == pytest.approx(averaged, rel=1e-6)
    assert abs(loss() / averaged - 1) > 1e-4


def test_previews_are_a_row_per_prompt(tmp_path):
    stage = tiny.second_stage(prompts=["a red square", "a blue square"])
    rows = stage.preview_images(tiny.data(tmp_path, 1))
    assert [(label, len(row), row[0].size) for label, row in rows] == [
        ("a red square", 8, (16, 16)),
        ("a blue square", 8, (16, 16)),
    ]
    assert [p.tobytes() for p in rows[0][1]] == [
        p.tobytes() for p in stage.preview_images(tiny.data(tmp_path, 1))[0][1]
    ]


def test_pixel_space_needs_no_first_stage():
    model = tiny.diffusion()
    model.first_stage = Autoencoder(IdentityEncoder(), IdentityDecoder(), NoBottleneck(3))
    tiny.second_stage(model).load_pretrained()
    assert torch.equal(tiny.second_stage(model).latents(tiny.batch(2)), tiny.batch(2)["image"] / 127.5 - 1)
    with pytest.raises(UserError, match="stage 2 needs a trained first stage"):
        tiny.second_stage().load_pretrained()


def inpainting_model(dropout: float = 0.5) -> LatentDiffusion:
    """A model conditioned on text, a mask and the masked image's latent."""
    text = tiny.diffusion().conditioner.conditioners["text"]
    parts = {
        "text": text,
        "mask": Mask(0, dropout, 4, MaxPoolMask()),
        "masked": LatentImage(4, dropout, 4, batch_key="image"),
        "coordinates": Coordinates(4),
    }
    unet = UNet(4 + 1 + 4 + 2, 4, 16, (1, 2), 1, (1,), 2, None, 8, 8)
    compose = Compose(parts, dropped_together=[["mask", "masked"]])
    return LatentDiffusion(unet, tiny.autoencoder(), compose, Cosine(100, 0.008, 0.999), V())


def batch_with_masks(n: int, first: int = 0):
    mask = torch.zeros(n, 1, 16, 16, dtype=torch.uint8)
    mask[..., 8:] = 255
    return {**tiny.batch(n, first), "mask": mask}


def test_image_conditions_are_latents_of_the_frozen_first_stage():
    model = inpainting_model()
    stage = tiny.second_stage(model)
    before = tiny.snapshot(stage)
    conds = []
    model.denoiser.register_forward_pre_hook(lambda _, args: conds.append(args[2]))
    tiny.fit(stage, [batch_with_masks(8)] * 3)
    moved = tiny.changed_names(stage, before)
    assert {name.split(".")[1] for name in moved} == {"denoiser", "conditioner"}
    assert all(p.grad is None for p in model.first_stage.parameters())
    mask, latent = conds[0].concat[:, :1], conds[0].concat[:, 1:5]
    dropped = latent.flatten(1).abs().sum(1) == 0
    assert 0 < dropped.sum() < 8 and torch.equal((mask == 1).flatten(1).all(1), dropped), "dropped together"
    expected = model.encode(stage.pixels(batch_with_masks(8)))
    torch.testing.assert_close(latent[~dropped], expected[~dropped])
    assert mask[~dropped].unique().tolist() == [0, 1]


def test_each_conditions_dropout_follows_positions():
    stage = tiny.second_stage(inpainting_model())
    whole = stage.training_losses(batch_with_masks(6)).mean()
    halves = [stage.training_losses(batch_with_masks(3, first)).mean() for first in (0, 3)]
    torch.testing.assert_close(whole, sum(halves) / 2, rtol=1e-5, atol=1e-6)


def test_previews_use_captions_with_all_other_conditions_null():
    stage = tiny.second_stage(inpainting_model(), prompts=["a red square"])
    ((prompt, images),) = stage.preview_images(SimpleNamespace(size=16))
    assert prompt == "a red square" and len(images) == 8
    with pytest.raises(UserError, match="mask, masked.*give stage.prompts="):
        tiny.second_stage(inpainting_model(dropout=0.0), prompts=["a red square"])
    model = inpainting_model(dropout=0.0)
    model.conditioner.conditioners["text"].dropout = 0.0
    with pytest.raises(UserError, match="stage.preview_scale=5.0 .*give stage.preview_scale=1"):
        tiny.second_stage(model, prompts=["a red square"])
    assert tiny.second_stage(model).prompts == ()

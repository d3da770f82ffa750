"""Stage 1: what is trained, what is not, and that training works."""

import itertools
from functools import partial
from pathlib import Path

import pytest
import torch

from ldm.callbacks.checkpoint import Checkpoint
from ldm.errors import UserError
from ldm.interop import model_file
from ldm.losses.equivariance import Equivariance
from ldm.losses.logvar import LearnedLogVar
from ldm.networks.autoencoder import Autoencoder
from ldm.networks.bottleneck import DiagonalGaussian, NoBottleneck
from ldm.networks.identity_autoencoder import IdentityDecoder, IdentityEncoder
from ldm.networks.patch_autoencoder import PatchDecoder, PatchEncoder
from ldm.networks.vector_quantizer import VQBottleneck
from tests.support import tiny


def sgd(*learning_rates: float):
    """SGD whose n-th optimizer has the n-th learning rate: the autoencoder's, then the discriminator's."""
    remaining = iter(learning_rates)
    return lambda parameters: torch.optim.SGD(parameters, lr=next(remaining))


def test_overfits_four_images():
    stage = tiny.first_stage(optimizer=partial(torch.optim.Adam, lr=1e-2))
    errors = []
    stage.log_row = lambda values: errors.append(float(values["train/rec"]))
    tiny.fit(stage, [tiny.batch(4)] * 150)
    assert errors[0] > 0.3 and min(errors) < errors[0] / 10


def test_global_step_counts_batches_with_two_optimizers():
    stage = tiny.first_stage(adversary=tiny.adversary())
    trainer = tiny.fit(stage, [tiny.batch(2)] * 20, max_steps=7)
    assert trainer.global_step == 7 and trainer.fit_loop.total_batch_idx == 6


@pytest.mark.parametrize("part", ["model", "adversary"])
def test_each_optimizer_changes_only_its_own_weights(part):
    stage = tiny.first_stage(
        adversary=tiny.adversary(start=0),
        optimizer=sgd(0.1, 0.0) if part == "model" else sgd(0.0, 0.1),
    )
    before = tiny.snapshot(stage)
    tiny.fit(stage, [tiny.batch(4)] * 2)
    trained = {f"{part}.{name}" for name, p in getattr(stage, part).named_parameters() if p.requires_grad}
    moved = tiny.changed_names(stage, before)
    assert moved <= trained
    assert {name for name in trained if name.endswith("weight")} <= moved, "a norm cancels some biases"


def test_before_its_warm_up_the_discriminator_is_not_trained():
    stage = tiny.first_stage(adversary=tiny.adversary(start=9, warmup=6))
    before = tiny.snapshot(stage.adversary)
    tiny.fit(stage, [tiny.batch(4)] * 3)
    assert tiny.changed_names(stage.adversary, before) == set()


def test_the_discriminator_trains_before_the_generator_uses_it():
    def train(steps, adversary):
        torch.manual_seed(0)
        stage = tiny.first_stage(adversary=None)
        stage.adversary = adversary
        tiny.fit(stage, [tiny.batch(4)] * steps)
        return tiny.snapshot(stage.model)

    adversary = tiny.adversary(start=3, warmup=2)
    fresh = tiny.snapshot(adversary)
    before, without = train(3, adversary), train(3, None)
    assert tiny.changed_names(adversary, fresh), "trained for two steps"
    assert all(torch.equal(before[name], without[name]) for name in without), "unused before its start"
    after, without = train(4, tiny.adversary(start=3, warmup=2)), train(4, None)
    assert not torch.equal(after["decoder.conv_out.weight"], without["decoder.conv_out.weight"])


def test_decoder_only_does_not_change_the_latents(tmp_path):
    stage = tiny.first_stage(decoder_only=True)
    before = tiny.snapshot(stage.model)
    tiny.fit(stage, [tiny.batch(4)] * 2)
    stage.on_export(tiny.data(tmp_path, 4))
    moved = tiny.changed_names(stage.model, before)
    assert moved and all(name.startswith("decoder.") for name in moved)


def test_the_perceptual_network_is_frozen():
    stage = tiny.first_stage(adversary=tiny.adversary(start=0))
    before = [weight.clone() for weight in stage.perceptual.buffers()]
    tiny.fit(stage, [tiny.batch(4)] * 2)
    assert before and all(torch.equal(a, b) for a, b in zip(before, stage.perceptual.buffers(), strict=True))
    assert not list(stage.perceptual.parameters())


def test_latents_have_mean_0_and_std_1_after_measuring():
    stage = tiny.first_stage()
    with torch.no_grad():
        stage.model.bottleneck.to_moments.bias += torch.tensor([3.0, -2, 0, 1, 1, 0, -1, -5])
    stage.measure_latents([tiny.batch(4), tiny.batch(4, 4)])
    x = torch.cat([stage.pixels(tiny.batch(4, first)) for first in (0, 4)]).repeat(100, 1, 1, 1)
    z_0 = stage.model.encode(x, torch.randn(800, 4, 4, 4))
    torch.testing.assert_close(z_0.mean((0, 2, 3)), torch.zeros(4), atol=0.02, rtol=0)
    torch.testing.assert_close(z_0.std((0, 2, 3)), torch.ones(4), atol=0.02, rtol=0)


def test_export_measures_the_first_training_batches(tmp_path):
    stage = tiny.first_stage()
    data = tiny.data(tmp_path, 6)
    stage.on_export(data)
    mean = stage.model.latent_mean.clone()
    stage.measure_latents(itertools.islice(data.train_dataloader(), 3))
    assert torch.equal(mean, stage.model.latent_mean) and mean.abs().min() > 0


def test_the_kl_is_weighted_per_image_dimension():
    """1e-6 times nats per image dimension; 16x16 pixels have 768 dimensions."""
    stage, x = tiny.first_stage(), torch.zeros(2, 3, 16, 16)
    posterior = DiagonalGaussian(torch.full((2, 4, 4, 4), 2.0), torch.ones(2, 4, 4, 4))
    terms = stage.generator_terms(x, x, posterior)
    assert terms["kl"].item() == pytest.approx(0.5 * 4 * 64 / (3 * 16 * 16))
    assert terms["loss"].item() == pytest.approx(1e-6 * terms["kl"].item())


def test_noise_follows_positions():
    """Two ranks reconstruct their halves of a batch as one process reconstructs all of it."""
    stage = tiny.first_stage()
    with torch.no_grad():
        x, whole, _ = stage.reconstruct(tiny.batch(6))
        halves = [stage.reconstruct(tiny.batch(3, first)) for first in (0, 3)]
    assert torch.equal(x, torch.cat([half[0] for half in halves]))
    torch.testing.assert_close(whole, torch.cat([half[1] for half in halves]), rtol=1e-5, atol=1e-5)
    moved = stage.reconstruct(tiny.batch(6) | {"position": torch.arange(6) + 1})[1]
    assert (whole - moved).abs().max() > 1e-2


def test_an_adversary_that_starts_after_training_is_refused():
    stage = tiny.first_stage(adversary=tiny.adversary(start=100))
    with pytest.raises(
        UserError,
        match=r"start=100 is not before the end of training, trainer.max_steps=100: lower adversary.start",
    ):
        stage.check_steps(100)
    stage.check_steps(101)


def test_starts_from_a_model_file(tmp_path):
    torch.manual_seed(1)
    other, path = tiny.autoencoder(), str(tmp_path / "other.safetensors")
    other.set_latent_statistics(0.5, 2.0)
    model_file.save(path, other.state_dict(), {}, "autoencoder", {})
    stage = tiny.first_stage(init=path)
    stage.load_pretrained()
    assert not tiny.changed_names(stage.model, tiny.snapshot(other))


def test_validation_logs_psnr():
    stage, logged = tiny.first_stage(), {}
    stage.log_dict = lambda values, **_: logged.update(values)
    stage.log = lambda *_, **__: None
    with torch.no_grad():
        stage.validation_step(tiny.batch(3), 0)
        x = stage.pixels(tiny.batch(3))
        x_hat = stage.model.reconstruct(stage.model.posterior(x).mean).clamp(-1, 1)
    mse = ((x_hat - x) / 2).square().mean((1, 2, 3))
    assert logged["val/psnr"].item() == pytest.approx((-10 * mse.log10()).mean().item(), rel=1e-5)
    assert logged["val/rec"].item() == pytest.approx((x_hat - x).abs().mean().item(), rel=1e-5)


def vq_model(revive_after: int = 0) -> Autoencoder:
    encoder = PatchEncoder(patch=4, channels=16, num_res_blocks=1, out_channels=4)
    decoder = PatchDecoder(patch=4, channels=16, num_res_blocks=1, in_channels=4)
    return Autoencoder(encoder, decoder, VQBottleneck(4, 8, revive_after=revive_after))


def test_a_codebook_is_trained_and_its_usage_logged():
    stage, rows = tiny.first_stage(model=vq_model()), []
    stage.log_row = rows.append
    before = tiny.snapshot(stage.model)
    tiny.fit(stage, [tiny.batch(4)] * 2)
    assert "bottleneck.codebook.weight" in tiny.changed_names(stage.model, before)
    assert 0 < rows[0]["train/codes_used"] <= 1 <= rows[0]["train/perplexity"] <= 8.001
    total = rows[0]["train/nll"] + rows[0]["train/codebook"]
    assert float(rows[0]["train/loss"]) == pytest.approx(float(total))


def log_codebook_usage(run: Path, checkpoint: Path | None = None) -> dict:
    """Train with a log row every third step and a checkpoint every second; return the logged columns."""
    torch.manual_seed(0)
    stage = tiny.first_stage(model=vq_model(), micro_batch_size=1, log_every=3)
    saver = Checkpoint(str(run / "checkpoints"), every_n_steps=2, keep=9)
    trainer = tiny.trainer(6, [saver], run / "metrics.csv", validate_every=2)
    trainer.fit(stage, tiny.data(run.parent / "shards", 6), ckpt_path=checkpoint, weights_only=True)
    names = ("train/codes_used", "train/perplexity", "val/codes_used", "val/perplexity")
    return {name: tiny.read_column(run / "metrics.csv", name) for name in names}


def test_usage_covers_all_steps_since_the_last_row_also_in_a_resumed_run(tmp_path, monkeypatch):
    totals, metrics = [], VQBottleneck.metrics

    def recorded_metrics(bottleneck: VQBottleneck) -> dict:
        totals.append((bottleneck.training, int(bottleneck.total_counts(bottleneck.training).sum())))
        return metrics(bottleneck)

    monkeypatch.setattr(VQBottleneck, "metrics", recorded_metrics)
    straight = log_codebook_usage(tmp_path / "straight")
    assert sorted(straight["train/codes_used"]) == [3, 6] and sorted(straight["val/codes_used"]) == [2, 4, 6]
    per_row, per_validation = 3 * 4 * 16, 2 * 4 * 16  # steps or batches, images, latent positions
    assert sorted(set(totals)) == [(False, per_validation), (True, per_row)]
    saved = tmp_path / "straight" / "checkpoints" / "step00000004.ckpt"
    counts = torch.load(saved, weights_only=True)["codebook_counts"]
    assert counts.sum() == 4 * 16, "of the one step since the last row"
    resumed = log_codebook_usage(tmp_path / "resumed", saved)
    for name, column in resumed.items():
        assert column == {step: straight[name][step] for step in column} and 6 in column, name


def test_dead_codes_are_revived_after_the_step_for_any_micro_batches():
    stage = tiny.first_stage(model=vq_model(revive_after=2), micro_batch_size=2)
    codebook = stage.model.bottleneck.codebook
    codebook.weight.data += 100 * (torch.arange(8) > 0)[:, None]  # one code is near, seven are out of reach
    tiny.fit(stage, [tiny.batch(4)] * 3)
    assert codebook.weight.abs().max() < 50


def test_equivariance_reconstructs_the_rotated_and_downscaled_image():
    stage = tiny.first_stage(equivariance=Equivariance(probability=1.0, smallest=0.5))
    latents, reconstruct = [], stage.model.reconstruct
    stage.model.reconstruct = lambda z: latents.append(z) or reconstruct(z)
    with torch.no_grad():
        x, x_hat, posterior = stage.reconstruct(tiny.batch(2))
        again = stage.reconstruct(tiny.batch(2, 4))[0]
    assert x.shape == x_hat.shape == again.shape, "the same for all micro-batches of a step"
    assert x.shape[-1] == 4 * latents[0].shape[-1] and posterior.mean.shape[-1] == 4
    plain = tiny.first_stage(equivariance=Equivariance(probability=0.0)).reconstruct(tiny.batch(2))[0]
    assert torch.equal(plain, stage.pixels(tiny.batch(2))) and not torch.equal(plain, x)


def test_the_learned_logvar_is_trained_and_not_averaged():
    stage, rows = tiny.first_stage(logvar=LearnedLogVar()), []
    stage.log_row = rows.append
    tiny.fit(stage, [tiny.batch(4)] * 2)
    assert stage.logvar.s != 0
    assert rows[0]["train/scale"] == 1 != rows[1]["train/scale"]
    assert not any("logvar" in name for name in stage.averaged_parameters())


def test_an_autoencoder_without_weights_is_refused():
    stage = tiny.first_stage(model=Autoencoder(IdentityEncoder(), IdentityDecoder(), NoBottleneck(3)))
    with pytest.raises(UserError, match="no trainable parameters: in pixel space train only stage 2"):
        stage.check_steps(100)

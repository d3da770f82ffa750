"""Stage 1: what learns, what does not, and that it learns."""

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
from ldm.networks.identity_autoencoder import PixelDecoder, PixelEncoder
from ldm.networks.patch_autoencoder import PatchDecoder, PatchEncoder
from ldm.networks.vector_quantizer import VQBottleneck
from tests.support import tiny


def rates(*each: float):
    """SGD whose n-th optimizer has the n-th rate: the autoencoder's, then the discriminator's."""
    rate = iter(each)
    return lambda parameters: torch.optim.SGD(parameters, lr=next(rate))


def test_overfits_a_handful():
    stage = tiny.first_stage(optimizer=partial(torch.optim.Adam, lr=1e-2))
    errors = []
    stage.record = lambda values: errors.append(float(values["train/rec"]))
    tiny.fit(stage, [tiny.batch(4)] * 150)
    assert errors[0] > 0.3 and min(errors) < errors[0] / 10


def test_global_step_counts_batches_with_two_optimizers():
    stage = tiny.first_stage(adversary=tiny.adversary())
    trainer = tiny.fit(stage, [tiny.batch(2)] * 20, max_steps=7)
    assert trainer.global_step == 7 and trainer.fit_loop.total_batch_idx == 6


@pytest.mark.parametrize("learns", ["model", "adversary"])
def test_each_optimizer_moves_its_own_weights_alone(learns):
    stage = tiny.first_stage(
        adversary=tiny.adversary(start=0),
        optimizer=rates(0.1, 0.0) if learns == "model" else rates(0.0, 0.1),
    )
    before = tiny.snapshot(stage)
    tiny.fit(stage, [tiny.batch(4)] * 2)
    trained = {f"{learns}.{name}" for name, p in getattr(stage, learns).named_parameters() if p.requires_grad}
    moved = tiny.changed(stage, before)
    assert moved <= trained
    assert {name for name in trained if name.endswith("weight")} <= moved, "a norm swallows some biases"


def test_before_its_warm_up_the_discriminator_rests():
    stage = tiny.first_stage(adversary=tiny.adversary(start=9, warmup=6))
    before = tiny.snapshot(stage.adversary)
    tiny.fit(stage, [tiny.batch(4)] * 3)
    assert tiny.changed(stage.adversary, before) == set()


def test_the_discriminator_learns_before_the_generator_hears_it():
    def after(steps, adversary):
        torch.manual_seed(0)
        stage = tiny.first_stage(adversary=None)
        stage.adversary = adversary
        tiny.fit(stage, [tiny.batch(4)] * steps)
        return tiny.snapshot(stage.model)

    adversary = tiny.adversary(start=3, warmup=2)
    fresh = tiny.snapshot(adversary)
    deaf, alone = after(3, adversary), after(3, None)
    assert tiny.changed(adversary, fresh), "two steps of its own"
    assert all(torch.equal(deaf[name], alone[name]) for name in alone), "unheard before its start"
    hearing, alone = after(4, tiny.adversary(start=3, warmup=2)), after(4, None)
    assert not torch.equal(hearing["decoder.conv_out.weight"], alone["decoder.conv_out.weight"])


def test_decoder_only_leaves_the_latents_as_they_are(tmp_path):
    stage = tiny.first_stage(decoder_only=True)
    before = tiny.snapshot(stage.model)
    tiny.fit(stage, [tiny.batch(4)] * 2)
    stage.on_export(tiny.data(tmp_path, 4))
    moved = tiny.changed(stage.model, before)
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


def test_finish_measures_the_first_training_batches(tmp_path):
    stage = tiny.first_stage()
    data = tiny.data(tmp_path, 6)
    stage.on_export(data)
    found = stage.model.latent_mean.clone()
    stage.measure_latents(itertools.islice(data.train_dataloader(), 3))
    assert torch.equal(found, stage.model.latent_mean) and found.abs().min() > 0


def test_the_kl_counts_by_its_weight():
    """1e-6 of nats per image dimension, of which 16x16 pixels have 768."""
    stage, x = tiny.first_stage(), torch.zeros(2, 3, 16, 16)
    posterior = DiagonalGaussian(torch.full((2, 4, 4, 4), 2.0), torch.ones(2, 4, 4, 4))
    terms = stage.generator_loss(x, x, posterior)
    assert terms["kl"].item() == pytest.approx(0.5 * 4 * 64 / (3 * 16 * 16))
    assert terms["loss"].item() == pytest.approx(1e-6 * terms["kl"].item())


def test_noise_follows_positions():
    """Two ranks' halves of a batch are reconstructed as one process reconstructs the whole."""
    stage = tiny.first_stage()
    with torch.no_grad():
        x, whole, _ = stage.reconstruct(tiny.batch(6))
        halves = [stage.reconstruct(tiny.batch(3, first)) for first in (0, 3)]
    assert torch.equal(x, torch.cat([half[0] for half in halves]))
    torch.testing.assert_close(whole, torch.cat([half[1] for half in halves]), rtol=1e-5, atol=1e-5)
    moved = stage.reconstruct(tiny.batch(6) | {"position": torch.arange(6) + 1})[1]
    assert (whole - moved).abs().max() > 1e-2


def test_an_adversary_that_nobody_would_hear_is_refused():
    stage = tiny.first_stage(adversary=tiny.adversary(start=100))
    with pytest.raises(UserError, match=r"starts at step 100, past the end of training at 100: lower"):
        stage.check_steps(100)
    stage.check_steps(101)


def test_goes_on_from_a_sampling_file(tmp_path):
    torch.manual_seed(1)
    other, path = tiny.autoencoder(), str(tmp_path / "other.safetensors")
    other.set_latent_statistics(0.5, 2.0)
    model_file.save(path, other.state_dict(), {}, "autoencoder", {})
    stage = tiny.first_stage(init=path)
    stage.load_pretrained()
    assert not tiny.changed(stage.model, tiny.snapshot(other))


def test_validation_reports_psnr():
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


def quantised(revive_after: int = 0) -> Autoencoder:
    encoder = PatchEncoder(patch=4, channels=16, num_res_blocks=1, out_channels=4)
    decoder = PatchDecoder(patch=4, channels=16, num_res_blocks=1, in_channels=4)
    return Autoencoder(encoder, decoder, VQBottleneck(4, 8, revive_after=revive_after))


def test_a_codebook_learns_and_says_how_it_is_used():
    stage, rows = tiny.first_stage(model=quantised()), []
    stage.record = rows.append
    before = tiny.snapshot(stage.model)
    tiny.fit(stage, [tiny.batch(4)] * 2)
    assert "bottleneck.codebook.weight" in tiny.changed(stage.model, before)
    assert 0 < rows[0]["train/codes_used"] <= 1 <= rows[0]["train/perplexity"] <= 8.001
    total = rows[0]["train/nll"] + rows[0]["train/codebook"]
    assert float(rows[0]["train/loss"]) == pytest.approx(float(total))


def usage_of(run: Path, checkpoint: Path | None = None) -> dict:
    """Training's rows of every third step; a checkpoint every second."""
    torch.manual_seed(0)
    stage = tiny.first_stage(model=quantised(), micro_batch_size=1, log_every=3)
    saver = Checkpoint(str(run / "checkpoints"), every_n_steps=2, keep=9)
    trainer = tiny.trainer(6, [saver], run / "metrics.csv", validate_every=2)
    trainer.fit(stage, tiny.data(run.parent / "shards", 6), ckpt_path=checkpoint, weights_only=True)
    names = ("train/codes_used", "train/perplexity", "val/codes_used", "val/perplexity")
    return {name: tiny.column(run / "metrics.csv", name) for name in names}


def test_usage_is_of_all_steps_from_row_to_row_and_goes_on_in_a_resumed_run(tmp_path, monkeypatch):
    counted, count = [], VQBottleneck.metrics

    def watched(bottleneck: VQBottleneck) -> dict:
        counted.append((bottleneck.training, int(bottleneck.counted(bottleneck.training).sum())))
        return count(bottleneck)

    monkeypatch.setattr(VQBottleneck, "usage", watched)
    straight = usage_of(tmp_path / "straight")
    assert sorted(straight["train/codes_used"]) == [3, 6] and sorted(straight["val/codes_used"]) == [2, 4, 6]
    row, pass_ = (
        3 * 4 * 16,
        2 * 4 * 16,
    )  # preview_images of 16 places: 3 steps, 2 batches of validation, of 4 each
    assert sorted(set(counted)) == [(False, pass_), (True, row)]
    saved = tmp_path / "straight" / "checkpoints" / "step00000004.ckpt"
    assert torch.load(saved, weights_only=True)["codebook_counts"].sum() == 4 * 16, (
        "of the step since the row"
    )
    resumed = usage_of(tmp_path / "resumed", saved)
    for name, column in resumed.items():
        assert column == {step: straight[name][step] for step in column} and 6 in column, name


def test_dead_codes_revive_behind_the_step_whatever_the_micro_batches():
    stage = tiny.first_stage(model=quantised(revive_after=2), micro_batch_size=2)
    codebook = stage.model.bottleneck.codebook
    codebook.weight.data += 100 * (torch.arange(8) > 0)[:, None]  # one code is near, seven are out of reach
    tiny.fit(stage, [tiny.batch(4)] * 3)
    assert codebook.weight.abs().max() < 50


def test_equivariance_asks_for_the_turned_and_shrunk_image():
    stage = tiny.first_stage(equivariance=Equivariance(probability=1.0, smallest=0.5))
    seen, reconstruct = [], stage.model.reconstruct
    stage.model.reconstruct = lambda z: seen.append(z) or reconstruct(z)
    with torch.no_grad():
        x, x_hat, posterior = stage.reconstruct(tiny.batch(2))
        again = stage.reconstruct(tiny.batch(2, 4))[0]
    assert x.shape == x_hat.shape == again.shape, "the same in all micro-batches of a step"
    assert x.shape[-1] == 4 * seen[0].shape[-1] and posterior.mean.shape[-1] == 4
    plain = tiny.first_stage(equivariance=Equivariance(probability=0.0)).reconstruct(tiny.batch(2))[0]
    assert torch.equal(plain, stage.pixels(tiny.batch(2))) and not torch.equal(plain, x)


def test_the_likelihoods_scale_is_trained_and_not_averaged():
    stage, rows = tiny.first_stage(logvar=LearnedLogVar()), []
    stage.record = rows.append
    tiny.fit(stage, [tiny.batch(4)] * 2)
    assert stage.logvar.s != 0
    assert rows[0]["train/scale"] == 1 != rows[1]["train/scale"]
    assert not any("logvar" in name for name in stage.averaged_parameters())


def test_an_autoencoder_without_weights_is_refused():
    stage = tiny.first_stage(model=Autoencoder(PixelEncoder(), PixelDecoder(), NoBottleneck(3)))
    with pytest.raises(UserError, match="nothing to train: in pixel space go on to stage 2"):
        stage.check_steps(100)

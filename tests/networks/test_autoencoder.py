import pytest
import torch
from diffusers import AutoencoderKL, VQModel

from ldm.networks.autoencoder import Autoencoder, Decoder, Encoder
from ldm.networks.bottleneck import KLBottleneck, NoBottleneck
from ldm.networks.identity_autoencoder import IdentityDecoder, IdentityEncoder
from ldm.networks.vector_quantizer import VQBottleneck
from tests.support.diffusers_names import autoencoder_state
from tests.support.gradients import assert_same_gradients


def small(attention_levels: tuple[int, ...] = (), **statistics: float | list[float]) -> Autoencoder:
    encoder = Encoder(3, 32, (1, 2), 1, attention_levels, out_channels=8)
    decoder = Decoder(3, 32, (1, 2), 1, attention_levels, in_channels=4)
    return Autoencoder(encoder, decoder, KLBottleneck(4), **statistics)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("attention", [False, True])
def test_it_equals_diffusers_with_its_gradients(attention: bool) -> None:
    kind = "Attn{}EncoderBlock2D" if attention else "{}EncoderBlock2D"
    theirs = AutoencoderKL(
        down_block_types=(kind.format("Down"),) * 2,
        up_block_types=(kind.format("Up").replace("Encoder", "Decoder"),) * 2,
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=16,
    )
    for p in theirs.parameters():
        p.data += 0.05 * torch.randn_like(p)
    ours = small((0, 1) if attention else ())
    statistics = {"latent_mean": ours.latent_mean, "latent_std": ours.latent_std}
    ours.load_state_dict(autoencoder_state(theirs.state_dict()) | statistics)

    x = torch.randn(2, 3, 16, 24)
    results = []
    for model in (ours, theirs):
        pixels = x.clone().requires_grad_()
        if model is ours:
            posterior = ours.posterior(pixels)
            x_hat = ours.reconstruct(posterior.mean)
        else:
            posterior = theirs.encode(pixels).latent_dist
            x_hat = theirs.decode(posterior.mean).sample
        (x_hat.square().mean() + posterior.kl().mean() / x[0].numel()).backward()
        results.append((posterior.mean, posterior.std, x_hat, pixels.grad))
    for mine, other in zip(*results, strict=True):
        assert relative_error(mine, other) < 1e-4
    assert_same_gradients(ours, autoencoder_state({name: p.grad for name, p in theirs.named_parameters()}))


@pytest.mark.slow
def test_it_equals_diffusers_at_full_size() -> None:
    theirs = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
    )
    ours = Autoencoder(Encoder(), Decoder(), KLBottleneck(4))
    statistics = {"latent_mean": ours.latent_mean, "latent_std": ours.latent_std}
    ours.load_state_dict(autoencoder_state(theirs.state_dict()) | statistics)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        mean, expected = ours.posterior(x).mean, theirs.encode(x).latent_dist.mean
        assert relative_error(mean, expected) < 1e-4
        assert relative_error(ours.reconstruct(mean), theirs.decode(expected).sample) < 1e-4


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("attention", [False, True])
def test_vq_equals_diffusers_with_its_gradients(legacy: bool, attention: bool) -> None:
    kind = "Attn{}EncoderBlock2D" if attention else "{}EncoderBlock2D"
    theirs = VQModel(
        down_block_types=(kind.format("Down"),) * 2,
        up_block_types=(kind.format("Up").replace("Encoder", "Decoder"),) * 2,
        block_out_channels=(32, 64),
        num_vq_embeddings=20,
        mid_block_add_attention=attention,
    )
    theirs.quantize.legacy = legacy
    for p in theirs.parameters():
        p.data += 0.05 * torch.randn_like(p)
    theirs.quantize.embedding.weight.data.normal_()
    levels = (0, 1) if attention else ()
    encoder = Encoder(3, 32, (1, 2), 1, levels, attention, out_channels=3)
    decoder = Decoder(3, 32, (1, 2), 1, levels, attention, in_channels=3)
    ours = Autoencoder(encoder, decoder, VQBottleneck(3, 20, legacy=legacy))
    statistics = {"latent_mean": ours.latent_mean, "latent_std": ours.latent_std}
    ours.load_state_dict(autoencoder_state(theirs.state_dict()) | statistics)

    x, results = torch.randn(2, 3, 16, 24), []
    for model in (ours, theirs):
        pixels = x.clone().requires_grad_()
        if model is ours:
            posterior = ours.posterior(pixels)
            latents, x_hat = posterior.mean, ours.reconstruct(posterior.sample(torch.randn(2, 3, 8, 12)))
            loss = ours.bottleneck.terms(posterior, 1)["penalty"]
        else:
            latents = theirs.encode(pixels).latents
            decoded = theirs.decode(latents)
            x_hat, loss = decoded.sample, decoded.commit_loss.mean()
        (x_hat.square().mean() + loss).backward()
        results.append((latents, x_hat, loss, pixels.grad))
    assert ours.bottleneck.codes(results[0][0]).unique().numel() > 5
    for mine, other in zip(*results, strict=True):
        assert relative_error(mine, other) < 1e-4
    assert_same_gradients(ours, autoencoder_state({name: p.grad for name, p in theirs.named_parameters()}))


def test_the_identity_autoencoder_changes_nothing() -> None:
    model, x = Autoencoder(IdentityEncoder(), IdentityDecoder(), NoBottleneck(3)), torch.randn(2, 3, 5, 7)
    assert torch.equal(model.encode(x, torch.randn_like(x)), x) and torch.equal(model.decode(x), x)
    assert model.downsampling == 1 and not list(model.parameters())


@pytest.mark.parametrize("channels", [1, 5])
def test_any_number_of_channels(channels: int) -> None:
    encoder = Encoder(channels, 8, (1, 2), 1, out_channels=4)
    model = Autoencoder(encoder, Decoder(channels, 8, (1, 2), 1, in_channels=2), KLBottleneck(2))
    x = torch.randn(2, channels, 8, 8)
    assert model.reconstruct(model.posterior(x).mean).shape == x.shape
    assert model.dimensions(model.posterior(x)) == channels * 64


def test_normalize_and_denormalize_are_inverse() -> None:
    model = small(latent_mean=[1.0, -2.0, 0.0, 3.0], latent_std=[0.5, 2.0, 1.0, 4.0])
    z = torch.randn(5, 4, 8, 8) * model.latent_std[:, None, None] + model.latent_mean[:, None, None]
    z_0 = model.normalize(z)
    assert z_0.mean((0, 2, 3)).abs().max() < 0.2 and (z_0.std((0, 2, 3)) - 1).abs().max() < 0.2
    torch.testing.assert_close(model.denormalize(z_0), z)


def test_encode_and_decode_use_normalised_latents() -> None:
    model, x, noise = small(), torch.randn(2, 3, 16, 16), torch.randn(2, 4, 8, 8)
    raw = model.posterior(x).sample(noise)
    model.set_latent_statistics(raw.mean((0, 2, 3)), raw.std((0, 2, 3)))
    torch.testing.assert_close(model.encode(x, noise), model.normalize(raw))
    torch.testing.assert_close(model.decode(model.encode(x, noise)), model(x, noise)[0], atol=1e-4, rtol=1e-4)


def test_latent_std_is_the_inverse_of_the_published_factor() -> None:
    z = torch.randn(1, 4, 2, 2)
    torch.testing.assert_close(small(latent_std=1 / 0.18215).normalize(z), 0.18215 * z)


def test_statistics_are_saved_and_bad_ones_refused() -> None:
    model = small(latent_mean=0.25)
    assert model.state_dict()["latent_mean"].tolist() == [0.25] * 4
    with pytest.raises(ValueError, match="3 latent statistics: .* 4"):
        model.set_latent_statistics([0.0] * 3, 1.0)
    with pytest.raises(ValueError, match=r"latent_std .* 0\.0"):
        model.set_latent_statistics(0.0, [1.0, 0.0, 1.0, 1.0])
    assert model.latent_mean.tolist() == [0.25] * 4 and model.latent_std.tolist() == [1.0] * 4


def test_freeze_encoder_leaves_the_decoder_trainable() -> None:
    model = small()
    model.freeze_encoder()
    assert all(name.startswith("decoder.") == p.requires_grad for name, p in model.named_parameters())
    assert model.last_layer is model.decoder.conv_out.weight


def test_a_size_that_is_no_multiple_of_the_factor_is_refused() -> None:
    with pytest.raises(ValueError, match="16x15 pixels: .* multiples of 2"):
        small().posterior(torch.randn(1, 3, 16, 15))


def test_attention_at_a_level_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"attention levels \[2\]: .* 0\.\.1"):
        small((2,))


def test_channels_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="encoder.out_channels=8 and decoder.in_channels=4 .* use 6 and 3"):
        Autoencoder(Encoder(channels=8), Decoder(channels=8), KLBottleneck(3))


def test_fp16_is_left_for_training_since_activations_may_exceed_its_range() -> None:
    torch.manual_seed(0)
    model = small()
    torch.nn.init.constant_(model.decoder.conv_in.bias, 1e6)  # above 65,504, and removed by the next norm
    torch.nn.init.constant_(model.encoder.conv_in.bias, 1e6)
    z, x = torch.randn(1, 4, 4, 4), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        exact = model.decode(z), model.encode(x, z)
        with torch.autocast("cpu", torch.float16):
            assert model.training and not model.decode(z).isfinite().all()
            model.eval()
            assert torch.equal(model.decode(z), exact[0]) and torch.equal(model.encode(x, z), exact[1])
        with torch.autocast("cpu", torch.bfloat16):
            assert model.decode(z).dtype == torch.bfloat16, "whose range is that of fp32"

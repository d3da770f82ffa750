"""Measurements on images whose reconstruction error is known."""

import pytest
import torch
from torch import nn

from ldm.evaluation import reconstruction
from ldm.evaluation.reconstruction import Reconstruction, measure, psnr, reconstruct, ssim, table
from ldm.losses.perceptual import RandomVGG
from ldm.networks.autoencoder import Autoencoder
from ldm.networks.bottleneck import NoBottleneck
from ldm.networks.identity_autoencoder import IdentityDecoder, IdentityEncoder
from ldm.networks.vector_quantizer import VQBottleneck


def images(n: int = 6) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return list(torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8).split(4))


def test_the_identity_autoencoder_is_lossless() -> None:
    model = Autoencoder(IdentityEncoder(), IdentityDecoder(), NoBottleneck(3))
    result = measure(model, images(), RandomVGG([4], [1]))
    assert (result.images, result.latent, result.compression) == (6, (1, 3, 0), 1.0)
    assert result.psnr == pytest.approx(100, abs=0.1) and result.ssim == pytest.approx(1)
    assert result.perceptual == pytest.approx(0, abs=1e-6) and result.codes_used is None
    x = torch.cat(images()).double() / 127.5 - 1
    std = x.std((0, 2, 3), unbiased=False)
    assert result.latent_std == pytest.approx((std.min().item(), std.max().item()))
    assert result.latent_mean == pytest.approx((x.mean((0, 2, 3)) / std).abs().max().item())


def test_codebook_use_is_measured_over_all_images() -> None:
    bottleneck = VQBottleneck(3, 8)
    bottleneck.to_latent = bottleneck.from_latent = nn.Identity()
    corners = torch.tensor([[a, b, c] for a in (-1.0, 1) for b in (-1.0, 1) for c in (-1.0, 1)])
    bottleneck.codebook.weight.data = corners + 100 * (torch.arange(8) > 3)[:, None]
    result = measure(
        Autoencoder(IdentityEncoder(), IdentityDecoder(), bottleneck), images(), RandomVGG([4], [1])
    )
    assert result.codes_used == 0.5 and 3.9 < result.perplexity <= 4
    assert "| 50 % | 4 |" in table({"corners": result})


def test_times_are_of_the_median_batch_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warm-up of 90 s, then 4, 8 and 20 s to encode 4, 4 and 2 images; decoding takes half as long."""
    durations = [90.0, 90, 4, 2, 8, 4, 20, 10]
    ends = [[sum(durations[:i]), sum(durations[: i + 1]), sum(durations[: i + 2])] for i in range(0, 8, 2)]
    clock = iter(sum(ends, []))
    monkeypatch.setattr(reconstruction, "_synchronized_time", lambda _: next(clock))
    model = Autoencoder(IdentityEncoder(), IdentityDecoder(), NoBottleneck(3))
    result = measure(model, images(10), RandomVGG([4], [1]))
    assert (result.encode_ms, result.decode_ms) == (2000, 1000)


def test_psnr_and_ssim_of_a_known_error() -> None:
    x = torch.zeros(2, 3, 16, 16)
    torch.testing.assert_close(psnr(x + 0.2, x), torch.full((2,), 20.0))
    torch.testing.assert_close(ssim(x, x), torch.ones(2))
    assert (ssim(x + torch.randn_like(x), x) < 0.5).all()


def test_the_table_has_a_row_per_first_stage() -> None:
    row = Reconstruction(9, (8, 4, 83_653_863), 48.0, 24.19, 0.7, 0.1, 0.2, (1.0, 2.0), None, None, 1.0, 2.0)
    head, rule, line = table({"kl_f8": row}).splitlines()
    assert head.count("|") == rule.count("|") == line.count("|")
    assert line.startswith("| kl_f8 | f8, 4 channels | 83.7 M | 48.0 | 24.19 |")


def test_reconstruction_is_clamped_and_complete_for_any_number_of_images() -> None:
    model = Autoencoder(IdentityEncoder(), IdentityDecoder(), NoBottleneck(3))
    x = torch.linspace(-1.5, 1.5, 101 * 3 * 4 * 4).view(101, 3, 4, 4)
    torch.testing.assert_close(reconstruct(model, x), x.clamp(-1, 1))

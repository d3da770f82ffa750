"""The measures against images whose loss is known."""

import pytest
import torch
from torch import nn

from ldm.evaluation import reconstruction
from ldm.evaluation.reconstruction import Reconstruction, measure, psnr, similarity, table
from ldm.losses.perceptual import RandomVGG
from ldm.networks.autoencoder import Autoencoder
from ldm.networks.bottleneck import NoBottleneck
from ldm.networks.identity_autoencoder import PixelDecoder, PixelEncoder
from ldm.networks.vector_quantizer import VQBottleneck


def images(n: int = 6) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return list(torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8).split(4))


def test_the_identity_loses_nothing() -> None:
    model = Autoencoder(PixelEncoder(), PixelDecoder(), NoBottleneck(3))
    found = measure(model, images(), RandomVGG([4], [1]))
    assert (found.images, found.latent, found.compression) == (6, (1, 3, 0), 1.0)
    assert found.psnr == pytest.approx(100, abs=0.1) and found.ssim == pytest.approx(1)
    assert found.perceptual == pytest.approx(0, abs=1e-6) and found.codes_used is None
    x = torch.cat(images()).double() / 127.5 - 1
    std = x.std((0, 2, 3), unbiased=False)
    assert found.latent_std == pytest.approx((std.min().item(), std.max().item()))
    assert found.latent_mean == pytest.approx((x.mean((0, 2, 3)) / std).abs().max().item())


def test_a_codebook_is_measured_over_all_images() -> None:
    bottleneck = VQBottleneck(3, 8)
    bottleneck.to_latent = bottleneck.from_latent = nn.Identity()
    corners = torch.tensor([[a, b, c] for a in (-1.0, 1) for b in (-1.0, 1) for c in (-1.0, 1)])
    bottleneck.codebook.weight.data = corners + 100 * (torch.arange(8) > 3)[:, None]
    found = measure(Autoencoder(PixelEncoder(), PixelDecoder(), bottleneck), images(), RandomVGG([4], [1]))
    assert found.codes_used == 0.5 and 3.9 < found.perplexity <= 4
    assert "| 50 % | 4 |" in table({"corners": found})


def test_a_time_is_the_median_batchs_after_one_untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first pass of 90 s, then 4, 8 and 20 s to encode 4, 4 and 2 images, half of it to decode them."""
    took = [90.0, 90, 4, 2, 8, 4, 20, 10]
    ends = [[sum(took[:i]), sum(took[: i + 1]), sum(took[: i + 2])] for i in range(0, 8, 2)]
    clock = iter(sum(ends, []))
    monkeypatch.setattr(reconstruction, "_now", lambda _: next(clock))
    model = Autoencoder(PixelEncoder(), PixelDecoder(), NoBottleneck(3))
    found = measure(model, images(10), RandomVGG([4], [1]))
    assert (found.encode_ms, found.decode_ms) == (2000, 1000)


def test_psnr_and_ssim_of_a_known_error() -> None:
    x = torch.zeros(2, 3, 16, 16)
    torch.testing.assert_close(psnr(x + 0.2, x), torch.full((2,), 20.0))
    torch.testing.assert_close(similarity(x, x), torch.ones(2))
    assert (similarity(x + torch.randn_like(x), x) < 0.5).all()


def test_the_table_has_a_row_each() -> None:
    row = Reconstruction(9, (8, 4, 83_653_863), 48.0, 24.19, 0.7, 0.1, 0.2, (1.0, 2.0), None, None, 1.0, 2.0)
    head, rule, line = table({"kl_f8": row}).splitlines()
    assert head.count("|") == rule.count("|") == line.count("|")
    assert line.startswith("| kl_f8 | f8, 4 channels | 83.7 M | 48.0 | 24.19 |")

"""Measure a first stage: reconstruction quality, statistics of its latents, speed."""

import math
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from ldm.networks.autoencoder import Autoencoder
from ldm.networks.bottleneck import DiagonalGaussian
from ldm.networks.vector_quantizer import VQBottleneck, count_codes, perplexity
from ldm.typing import Image


@dataclass(frozen=True)
class Reconstruction:
    """Measurements of a first stage; means over images unless stated otherwise."""

    images: int
    latent: tuple[int, int, int]
    """Downsampling factor, channels, parameters of the whole autoencoder."""
    compression: float
    """Values of an image per value of its latent."""
    psnr: float
    """dB, of images in [0, 1]."""
    ssim: float
    perceptual: float
    latent_mean: float
    """Largest |mean| / std of any channel."""
    latent_std: tuple[float, float]
    """Smallest and largest std of any channel, before normalization."""
    codes_used: float | None
    """Proportion of the codes that are used anywhere in these images; None without a codebook."""
    perplexity: float | None
    encode_ms: float
    """Per image, in the median batch; the first, untimed pass compiles the kernels."""
    decode_ms: float


@torch.no_grad()
def measure(
    model: Autoencoder, images: Iterable[UInt8[Tensor, "_ c h w"]], perceptual: nn.Module
) -> Reconstruction:
    """Measure `model` on all images, reconstructed from the mean of the posterior."""
    device, bottleneck = model.latent_mean.device, model.bottleneck
    quality, moments, chosen = [], [], []
    seconds: list[tuple[float, float]] = []
    for batch in images:
        x = batch.to(device).float() / 127.5 - 1
        if not seconds:
            reconstruct_timed(model, x)
        posterior, x_hat, durations = reconstruct_timed(model, x)
        seconds.append(durations)
        distance = perceptual(x_hat, x)
        quality.append(torch.stack([psnr(x_hat, x), ssim(x_hat, x), distance], 1).cpu())
        mean, std = posterior.mean.cpu().double(), posterior.std.cpu().double()  # Apple GPUs lack float64
        moments.append(torch.stack([mean, mean.square() + std.square()], 1).mean((3, 4)))  # b 2 z
        if isinstance(bottleneck, VQBottleneck):
            chosen.append(count_codes(bottleneck.codes(posterior.mean), bottleneck.num_codes).cpu())
        shape = (x[0].numel(), posterior.mean[0].numel())
    n = sum(len(part) for part in quality)
    signal, structure, distance = torch.cat(quality).mean(0).tolist()
    mean, square = torch.cat(moments).mean(0)  # z
    std = (square - mean.square()).clamp(min=1e-20).sqrt()
    codes = torch.stack(chosen).sum(0) if chosen else None
    encode_ms, decode_ms = (1000 * statistics.median(part) for part in zip(*seconds, strict=True))
    return Reconstruction(
        images=n,
        latent=(model.downsampling, model.latent_channels, sum(p.numel() for p in model.parameters())),
        compression=shape[0] / shape[1],
        psnr=signal,
        ssim=structure,
        perceptual=distance,
        latent_mean=(mean / std).abs().max().item(),
        latent_std=(std.min().item(), std.max().item()),
        codes_used=None if codes is None else (codes > 0).float().mean().item(),
        perplexity=None if codes is None else perplexity(codes).item(),
        encode_ms=encode_ms,
        decode_ms=decode_ms,
    )


@torch.no_grad()
def reconstruct(model: Autoencoder, x: Image) -> Image:
    """Return reconstructions from the mean of the posterior, in [-1, 1] on the CPU, in batches of 100."""
    device = model.latent_mean.device
    parts = [model.reconstruct(model.posterior(part.to(device)).mean).float().cpu() for part in x.split(100)]
    return torch.cat(parts).clamp(-1, 1)


def reconstruct_timed(model: Autoencoder, x: Image) -> tuple[DiagonalGaussian, Image, tuple[float, float]]:
    """Return the posterior, the reconstruction, and the seconds per image for encoding and for decoding."""
    device = model.latent_mean.device
    start = _synchronized_time(device)
    posterior = model.posterior(x)
    middle = _synchronized_time(device)
    x_hat = model.reconstruct(posterior.mean)
    end = _synchronized_time(device)
    return posterior, x_hat.float().clamp(-1, 1), ((middle - start) / len(x), (end - middle) / len(x))


def psnr(x_hat: Image, x: Image) -> Float[Tensor, " b"]:
    """-10 log10 MSE of images in [0, 1], in dB, at most 100."""
    mse = (x_hat - x).square().mean((1, 2, 3)) / 4
    return -10 * mse.clamp(min=1e-10).log10()


def ssim(x_hat: Image, x: Image) -> Float[Tensor, " b"]:
    """SSIM with an 11-pixel Gaussian window (Wang et al. 2004, equation 13)."""
    values = structural_similarity_index_measure(
        (x_hat + 1) / 2, (x + 1) / 2, data_range=1.0, reduction="none"
    )
    assert isinstance(values, Tensor)
    return values


def table(rows: dict[str, Reconstruction]) -> str:
    """Return a Markdown table with one row per first stage."""
    head = (
        "| first stage | latent | parameters | compression | PSNR, dB | SSIM | perceptual "
        "| latent std | latent mean/std | codes used | perplexity | encode, ms per image "
        "| decode, ms per image |"
    )
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for name, r in rows.items():
        factor, channels, parameters = r.latent
        used = "" if r.codes_used is None else f"{100 * r.codes_used:.0f} %"
        spread = "" if r.perplexity is None else f"{r.perplexity:.0f}"
        cells = [
            name, f"f{factor}, {channels} channels", f"{_abbreviate(parameters)}", f"{r.compression:.1f}",
            f"{r.psnr:.2f}", f"{r.ssim:.3f}", f"{r.perceptual:.4f}",
            f"{r.latent_std[0]:.2f} to {r.latent_std[1]:.2f}", f"{r.latent_mean:.2f}", used, spread,
            f"{r.encode_ms:.2f}", f"{r.decode_ms:.2f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _abbreviate(n: int) -> str:
    """Return a number with about 3 digits and its unit: 83.7 M."""
    power = 0 if n < 1000 else min(3, int(math.log10(n)) // 3)
    return f"{n / 1000**power:.3g} {['', 'K', 'M', 'B'][power]}".strip()


def _synchronized_time(device: torch.device) -> float:
    """Return the time in seconds, once the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()

"""The bottleneck of vector quantisation."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ldm.networks.blocks import autocast_off
from ldm.networks.bottleneck import Bottleneck, DiagonalGaussian

DISTANCES_AT_ONCE = 2**26
"""Distances of latents to codes that are held in memory at a time."""


class VQBottleneck(Bottleneck):
    """The decoder hears e_k, k = argmin_j ‖z − e_j‖; the gradient passes straight (van den Oord et al. 2017).

    L = ‖sg[z] − e‖² + β ‖z − sg[e]‖², means over a latent (their equation 3). Diffusion models z as it is
    before it is quantised, and `expand` quantises: that belongs to the decoder (Rombach et al. 2022, 4.1).

    Args:
        num_codes: vectors e_j in the codebook.
        beta: of the commitment; with `legacy` of the other term, as the published models were trained.
        weight: of L beside the error's mean.
        revive_after: steps without a place that chose it after which a code moves to a latent of the batch
            (Dhariwal et al. 2020, Jukebox, 4.2); 0 is never.
    """

    idle: Tensor

    def __init__(
        self,
        latent_channels: int,
        num_codes: int,
        beta: float = 0.25,
        weight: float = 1.0,
        legacy: bool = False,
        revive_after: int = 0,
    ) -> None:
        super().__init__()
        self.in_channels = self.latent_channels = latent_channels
        self.num_codes, self.weight, self.revive_after = num_codes, weight, revive_after
        self.commitment, self.attraction = (1.0, beta) if legacy else (beta, 1.0)
        self.to_latent = nn.Conv2d(latent_channels, latent_channels, 1)
        self.codebook = nn.Embedding(num_codes, latent_channels)
        nn.init.uniform_(self.codebook.weight, -1 / num_codes, 1 / num_codes)
        self.from_latent = nn.Conv2d(latent_channels, latent_channels, 1)
        idle = torch.zeros(num_codes, dtype=torch.int64) if revive_after else None
        self.register_buffer("idle", idle)  # steps since each code was chosen
        self.counts: dict[
            bool, Tensor
        ] = {}  # in training or not: how often each code was chosen, for `metrics`
        # of this step: how often each code was chosen, and the latents of its last pass
        self.seen: tuple[Tensor, Tensor] | None = None

    def posterior(self, h: Float[Tensor, "b z h w"]) -> DiagonalGaussian:
        """The latent before it is quantised, in fp32 and without noise."""
        z = self.to_latent(h).float()
        return DiagonalGaussian(z, torch.zeros_like(z))

    @torch.no_grad()
    def codes(self, z: Float[Tensor, "b z h w"]) -> Int64[Tensor, "b h w"]:
        """The nearest code of each place."""
        places, codebook = rearrange(z, "b z h w -> (b h w) z").float(), self.codebook.weight.float()
        nearest = []
        with autocast_off(z):
            for some in places.split(max(1, DISTANCES_AT_ONCE // self.num_codes)):
                # ‖z − e‖² = ‖z‖² − 2 z e + ‖e‖², whose first term is the same for every code.
                nearest.append((codebook.square().sum(1) - 2 * some @ codebook.mT).argmin(1))
        return rearrange(torch.cat(nearest), "(b h w) -> b h w", h=z.shape[2], w=z.shape[3])

    def lookup(self, codes: Int64[Tensor, "b h w"]) -> Float[Tensor, "b z h w"]:
        """The vectors e_k."""
        return rearrange(F.embedding(codes, self.codebook.weight), "b h w z -> b z h w")

    def expand(self, z: Float[Tensor, "b z h w"]) -> Float[Tensor, "b z h w"]:
        """The decoder's input, z quantised on the way."""
        return self.from_latent(z + (self.lookup(self.codes(z)) - z).detach())

    def terms(self, posterior: DiagonalGaussian, dimensions: int) -> dict[str, Float[Tensor, ""]]:
        """L, and the codes are counted for `metrics`."""
        z = posterior.mean
        codes = self.codes(z)
        e = self.lookup(codes)
        distance = self.commitment * F.mse_loss(z, e.detach()) + self.attraction * F.mse_loss(e, z.detach())
        chosen = count(codes, self.num_codes)
        before = self.counts.get(self.training, torch.zeros_like(chosen, dtype=torch.int64))
        self.counts[self.training] = before.to(chosen.device) + chosen.long()
        if self.training and self.revive_after and self.codebook.weight.requires_grad:
            chosen = chosen if self.seen is None else self.seen[0] + chosen
            self.seen = (chosen, rearrange(z.detach(), "b z h w -> (b h w) z"))
        return {"codebook": distance.detach(), "penalty": self.weight * distance}

    @torch.no_grad()
    def metrics(self) -> dict[str, Float[Tensor, ""]]:
        """The share of the codes that some place chose, and the perplexity exp(−Σ p log p) of the choice."""
        counts = self.counted(self.training)
        self.counts.pop(self.training, None)
        return {"codes_used": (counts > 0).float().mean(), "perplexity": perplexity(counts)}

    def codebook_counts(self) -> Int64[Tensor, " n"] | None:
        """How often each code was chosen in training since `metrics` told it."""
        return self.counted(training=True)

    def restore(self, codebook_counts: Int64[Tensor, " n"]) -> None:
        """Count on from there."""
        self.counts[True] = codebook_counts

    def counted(self, training: bool) -> Int64[Tensor, " n"]:
        """How often each code was chosen since `metrics` told it, over all ranks."""
        none = torch.zeros(self.num_codes, dtype=torch.int64, device=self.codebook.weight.device)
        counts = none + self.counts.get(training, none).to(none.device)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        return counts

    @torch.no_grad()
    def after_step(self, taken: Bool[Tensor, ""]) -> None:
        """Move codes that were not chosen for `revive_after` steps to random latents, alike on all ranks."""
        if self.seen is None:
            return
        (chosen, latents), self.seen = self.seen, None
        fresh = latents[torch.randint(len(latents), (self.num_codes,), device=latents.device)]
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(chosen)
            dist.broadcast(fresh, src=0)
        idle = torch.where(chosen > 0, 0, self.idle + 1)
        dead = taken & (idle >= self.revive_after)  # the latents of a step that was not may be NaN
        self.codebook.weight.copy_(torch.where(dead[:, None], fresh, self.codebook.weight))
        self.idle = torch.where(taken, idle.masked_fill(dead, 0), self.idle)


def count(codes: Int64[Tensor, "b h w"], num_codes: int) -> Float[Tensor, " n"]:
    """How often each code stands there; no bincount, for which the CPU would wait on the device."""
    ones = torch.ones(codes.numel(), device=codes.device)
    return torch.zeros(num_codes, device=codes.device).index_add_(0, codes.flatten(), ones)


def perplexity(counts: Float[Tensor, " n"] | Int64[Tensor, " n"]) -> Float[Tensor, ""]:
    """exp(−Σ p log p): as many codes, all used alike, would be as hard to guess."""
    p = counts / counts.sum()
    return torch.exp(torch.special.entr(p).sum())

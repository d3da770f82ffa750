"""Vector quantisation (VQ) as a bottleneck."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ldm.networks.blocks import autocast_off
from ldm.networks.bottleneck import Bottleneck, DiagonalGaussian
from ldm.typing import Channels, NonNegativeFloat, NonNegativeInt, PositiveInt

DISTANCES_AT_ONCE = 2**26
"""Maximum number of latent-to-code distances held in memory."""


class VQBottleneck(Bottleneck):
    """e_k, k = argmin_j ‖z − e_j‖, with a straight-through gradient (van den Oord et al. 2017).

    L = ‖sg[z] − e‖² + β ‖z − sg[e]‖², means over a latent (their equation 3). Diffusion models z before
    quantisation; `expand` quantises, as part of the decoder (Rombach et al. 2022, 4.1).

    Args:
        num_codes: number of codebook vectors e_j.
        beta: weight of the commitment term; with `legacy` of the other term, as in the published training.
        weight: weight of L relative to the mean reconstruction error.
        revive_after: a code that no latent has chosen for this many steps moves to a random latent of the
            batch (Dhariwal et al. 2020, Jukebox, 4.2); 0 disables this.
    """

    idle: Tensor

    def __init__(
        self,
        latent_channels: Channels,
        num_codes: PositiveInt,
        beta: NonNegativeFloat = 0.25,
        weight: NonNegativeFloat = 1.0,
        legacy: bool = False,
        revive_after: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.in_channels = self.latent_channels = latent_channels
        self.num_codes, self.weight, self.revive_after = num_codes, weight, revive_after
        self.commitment_weight, self.codebook_weight = (1.0, beta) if legacy else (beta, 1.0)
        self.to_latent = nn.Conv2d(latent_channels, latent_channels, 1)
        self.codebook = nn.Embedding(num_codes, latent_channels)
        nn.init.uniform_(self.codebook.weight, -1 / num_codes, 1 / num_codes)
        self.from_latent = nn.Conv2d(latent_channels, latent_channels, 1)
        idle = torch.zeros(num_codes, dtype=torch.int64) if revive_after else None
        self.register_buffer("idle", idle)  # steps since each code was last chosen
        # For `metrics`, by `self.training`: how often each code was chosen.
        self.counts: dict[bool, Tensor] = {}
        # For `after_step`: how often each code was chosen in this step, and the last micro-batch's latents.
        self.step_counts_and_latents: tuple[Tensor, Tensor] | None = None

    def posterior(self, h: Float[Tensor, "b z h w"]) -> DiagonalGaussian:
        """Return the latent before quantisation, in fp32, with std 0."""
        z = self.to_latent(h).float()
        return DiagonalGaussian(z, torch.zeros_like(z))

    @torch.no_grad()
    def codes(self, z: Float[Tensor, "b z h w"]) -> Int64[Tensor, "b h w"]:
        """Return the nearest code at each latent position."""
        vectors, codebook = rearrange(z, "b z h w -> (b h w) z").float(), self.codebook.weight.float()
        nearest = []
        with autocast_off(z):
            for chunk in vectors.split(max(1, DISTANCES_AT_ONCE // self.num_codes)):
                # ‖z − e‖² = ‖z‖² − 2 z e + ‖e‖², whose first term is the same for every code.
                nearest.append((codebook.square().sum(1) - 2 * chunk @ codebook.mT).argmin(1))
        return rearrange(torch.cat(nearest), "(b h w) -> b h w", h=z.shape[2], w=z.shape[3])

    def lookup(self, codes: Int64[Tensor, "b h w"]) -> Float[Tensor, "b z h w"]:
        """Return the codebook vectors e_k."""
        return rearrange(F.embedding(codes, self.codebook.weight), "b h w z -> b z h w")

    def expand(self, z: Float[Tensor, "b z h w"]) -> Float[Tensor, "b z h w"]:
        """Quantise z, with a straight-through gradient, and return the decoder's input."""
        return self.from_latent(z + (self.lookup(self.codes(z)) - z).detach())

    def terms(self, posterior: DiagonalGaussian, dimensions: int) -> dict[str, Float[Tensor, ""]]:
        """Return L, and count the codes for `metrics`."""
        z = posterior.mean
        codes = self.codes(z)
        e = self.lookup(codes)
        commitment_loss, codebook_loss = F.mse_loss(z, e.detach()), F.mse_loss(e, z.detach())
        loss = self.commitment_weight * commitment_loss + self.codebook_weight * codebook_loss
        counts = count_codes(codes, self.num_codes)
        previous = self.counts.get(self.training, torch.zeros_like(counts, dtype=torch.int64))
        self.counts[self.training] = previous.to(counts.device) + counts.long()
        if self.training and self.revive_after and self.codebook.weight.requires_grad:
            earlier = self.step_counts_and_latents
            counts = counts if earlier is None else earlier[0] + counts
            self.step_counts_and_latents = (counts, rearrange(z.detach(), "b z h w -> (b h w) z"))
        return {"codebook": loss.detach(), "penalty": self.weight * loss}

    @torch.no_grad()
    def metrics(self) -> dict[str, Float[Tensor, ""]]:
        """Return the fraction of codes in use and the perplexity exp(−Σ p log p) of their frequencies."""
        counts = self.total_counts(self.training)
        self.counts.pop(self.training, None)
        return {"codes_used": (counts > 0).float().mean(), "perplexity": perplexity(counts)}

    def codebook_counts(self) -> Int64[Tensor, " n"] | None:
        """Return how often each code was chosen in training since the last `metrics`, over all ranks."""
        return self.total_counts(training=True)

    def restore(self, codebook_counts: Int64[Tensor, " n"]) -> None:
        """Continue counting from a checkpoint's `codebook_counts`."""
        self.counts[True] = codebook_counts

    def total_counts(self, training: bool) -> Int64[Tensor, " n"]:
        """Return how often each code was chosen since the last `metrics`, summed over all ranks."""
        zeros = torch.zeros(self.num_codes, dtype=torch.int64, device=self.codebook.weight.device)
        counts = zeros + self.counts.get(training, zeros).to(zeros.device)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        return counts

    @torch.no_grad()
    def after_step(self, accepted: Bool[Tensor, ""]) -> None:
        """Move codes unused for `revive_after` steps to random latents, the same on all ranks."""
        if self.step_counts_and_latents is None:
            return
        (counts, latents), self.step_counts_and_latents = self.step_counts_and_latents, None
        replacements = latents[torch.randint(len(latents), (self.num_codes,), device=latents.device)]
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
            dist.broadcast(replacements, src=0)
        idle = torch.where(counts > 0, 0, self.idle + 1)
        dead = accepted & (idle >= self.revive_after)  # latents of a rejected step may be NaN
        self.codebook.weight.copy_(torch.where(dead[:, None], replacements, self.codebook.weight))
        self.idle = torch.where(accepted, idle.masked_fill(dead, 0), self.idle)


def count_codes(codes: Int64[Tensor, "b h w"], num_codes: int) -> Float[Tensor, " n"]:
    """Return how often each code occurs; bincount would synchronise with the device."""
    ones = torch.ones(codes.numel(), device=codes.device)
    return torch.zeros(num_codes, device=codes.device).index_add_(0, codes.flatten(), ones)


def perplexity(counts: Float[Tensor, " n"] | Int64[Tensor, " n"]) -> Float[Tensor, ""]:
    """exp(−Σ p log p): the number of equally frequent codes with the same entropy."""
    p = counts / counts.sum()
    return torch.exp(torch.special.entr(p).sum())

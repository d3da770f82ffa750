"""Stage 1: an autoencoder with reconstruction, perceptual, adversarial and bottleneck losses."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import PIL.Image
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ldm import rng
from ldm.errors import Diverged, UserError
from ldm.evaluation.reconstruction import psnr
from ldm.grid import to_pil
from ldm.interop import model_file
from ldm.losses.adversary import Adversary
from ldm.losses.equivariance import Equivariance
from ldm.losses.logvar import LearnedLogVar
from ldm.losses.perceptual import Perceptual
from ldm.networks.autoencoder import Autoencoder
from ldm.networks.bottleneck import DiagonalGaussian
from ldm.stages.base import OptimizerFactory, Stage, split_batch
from ldm.typing import Batch, NonNegativeFloat, NonNegativeInt, PositiveInt, Seed


class AutoencoderStage(Stage):
    """L = L_rec + w L_perceptual + L_bottleneck + w_adv λ L_adv (Rombach et al. 2022; Esser et al. 2021).

    w_adv is the adversary's ramped weight, λ the adaptive one. All terms are divided by the number of an
    image's dimensions (C H W). The KL's weight is then the published one: there, 1e-6 multiplies a KL summed
    over the latent, and the reconstruction error is summed over the image.

    Args:
        adversary: the discriminator, with its start and ramp; None trains without one.
        logvar: converts the distance to a negative log-likelihood; None uses the distance itself.
        equivariance: rotates and downscales latents and images in some steps (EQ-VAE); None never does.
        decoder_only: freeze encoder and bottleneck, to finetune a decoder for existing latents.
        init: a model file of stage 1 with the initial weights.
        statistics_batches: number of training batches over which the latents' mean and std are measured.
        The others are as in `Stage`.
    """

    model: Autoencoder

    def __init__(
        self,
        model: Autoencoder,
        reconstruction: nn.Module,
        perceptual: Perceptual,
        adversary: Adversary | None,
        optimizer: OptimizerFactory,
        learning_rate: Callable[[int], float],
        perceptual_weight: NonNegativeFloat = 1.0,
        logvar: LearnedLogVar | None = None,
        equivariance: Equivariance | None = None,
        decoder_only: bool = False,
        init: str | None = None,
        statistics_batches: PositiveInt = 32,
        seed: Seed = 0,
        gradient_clip: NonNegativeFloat = 0.0,
        micro_batch_size: NonNegativeInt = 0,
        log_every: PositiveInt = 50,
    ) -> None:
        super().__init__(seed, learning_rate, gradient_clip, micro_batch_size, log_every)
        self.model, self.adversary, self.optimizer = model, adversary, optimizer
        self.reconstruction, self.perceptual = reconstruction, perceptual
        self.perceptual_weight = perceptual_weight
        self.logvar, self.equivariance = logvar, equivariance
        self.init, self.statistics_batches, self.decoder_only = init, statistics_batches, decoder_only
        if decoder_only:
            model.freeze_encoder()

    def load_pretrained(self) -> None:
        """Load the perceptual network's weights and those of `init`."""
        self.perceptual.load_pretrained()
        if self.init is not None:
            tensors, _, _ = model_file.load(self.init, "autoencoder")
            model_file.load_state(self.model, tensors, self.init)

    def check_steps(self, max_steps: int) -> None:
        """Raise UserError if nothing is trainable or the adversarial loss starts after the last step."""
        if not self.averaged_parameters():
            raise UserError(
                "this autoencoder has no trainable parameters: in pixel space train only stage 2, with "
                "autoencoder=identity and without first_stage"
            )
        if self.adversary is not None and self.adversary.start >= max_steps:
            raise UserError(
                f"adversary.start={self.adversary.start} is not before the end of training, "
                f"trainer.max_steps={max_steps}: lower adversary.start, raise trainer.max_steps, or train "
                "without the discriminator by stage.adversary=null"
            )

    def reconstruct(self, batch: Batch) -> tuple[Tensor, Tensor, DiagonalGaussian]:
        """Return (x, x_hat, posterior), or (τ x, D(τ z), posterior) where `equivariance` draws a τ."""
        x = self.pixels(batch)
        posterior = self.model.posterior(x)
        z = posterior.sample(self.normal(batch, "posterior", posterior.mean.shape[1:]))
        if self.equivariance is not None:
            u = rng.uniform(self.seed, [self.global_step], "equivariance", (3,))[0]
            z, x = self.equivariance(z, x, u)
        return x, self.model.reconstruct(z).float(), posterior

    def reconstruction_terms(self, x_hat: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Return the reconstruction and perceptual terms and their `nll`, and with `logvar` its `scale`."""
        rec, perceptual = self.reconstruction(x_hat, x).mean(), self.perceptual(x_hat, x).mean()
        distance = rec + self.perceptual_weight * perceptual
        terms = {"rec": rec, "perceptual": perceptual, "nll": distance}
        if self.logvar is not None:
            terms |= {"nll": self.logvar(distance), "scale": self.logvar.s.exp()}
        return terms

    def generator_terms(self, x: Tensor, x_hat: Tensor, posterior: DiagonalGaussian) -> dict[str, Tensor]:
        """Return all terms of the autoencoder's loss, and `loss`, their weighted sum."""
        terms = self.reconstruction_terms(x_hat, x)
        terms |= self.model.bottleneck.terms(posterior, self.model.dimensions(posterior))
        terms["loss"] = terms["nll"] + terms["penalty"]
        if self.adversary is not None and self.adversary.weight_at(self.global_step) > 0:
            adversarial, weight = self.adversary.generator_term(
                x_hat, terms["nll"], self.model.last_layer, self.global_step, self.loss_factor
            )
            terms |= {
                "adversarial": adversarial,
                "lambda": weight,
                "loss": terms["loss"] + weight * adversarial,
            }
        terms |= {"latent_mean": posterior.mean.mean(), "latent_std": posterior.mean.std()}
        return terms

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Train on one global batch: accumulate the gradients of both networks, then step both optimizers."""
        logs: dict[str, Tensor] = {}
        for part, fraction in self.micro_batches(batch):
            x, x_hat, posterior = self.reconstruct(part)
            terms = self.generator_terms(x, x_hat, posterior)
            self.accumulate_gradient(terms["loss"] * fraction)
            if self.trains_discriminator:
                terms |= self.backward_discriminator(x, x_hat.detach(), fraction)
            for name, value in terms.items():
                logs[name] = logs.get(name, torch.zeros((), device=self.device)) + value.detach() * fraction
        self.log_training(logs | self.step_optimizers())

    @property
    def trains_discriminator(self) -> bool:
        """Whether this step trains the discriminator: `adversary.warmup` steps before its use, and after."""
        return self.adversary is not None and self.adversary.trains_at(self.global_step)

    def backward_discriminator(self, x: Tensor, x_hat: Tensor, fraction: float) -> dict[str, Tensor]:
        """Accumulate the discriminator's gradient; return its terms for the log."""
        assert self.adversary is not None
        terms = self.adversary.discriminator_terms(x, x_hat)
        self.accumulate_gradient(terms["discriminator"] * fraction)
        return terms

    def step_optimizers(self) -> dict[str, Any]:
        """Clip, step; only the autoencoder's optimizer through Lightning, so global_step counts batches."""
        (generator, *discriminators), schedulers = self.optimizers_and_schedulers()
        logs = {"learning_rate": schedulers[0].get_last_lr()[0]}
        norms = {"gradient_norm": self.clip_gradient(self.trained_parameters())}
        if self.adversary is not None:
            norms["discriminator_gradient_norm"] = self.clip_gradient(self.adversary.parameters())
        accepted = self.apply_step_guard(*norms.values())
        # The discriminator steps first, since the generator's step advances global_step. Before it is trained
        # it has no gradients, and its step changes nothing.
        if self.adversary is not None:
            (discriminator,) = discriminators
            discriminator.optimizer.step()
            discriminator.zero_grad()
            self.adversary.after_step(accepted)
        generator.step()
        generator.zero_grad()
        self.model.bottleneck.after_step(accepted)
        for scheduler in schedulers:
            scheduler.step()
        return logs | norms

    def accumulated_metrics(self) -> dict[str, Tensor]:
        """Return the bottleneck's metrics, such as the fraction of codes in use."""
        return self.model.bottleneck.metrics()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the codebook counts since the last log row as well, so that a resumed run logs the same."""
        super().on_save_checkpoint(checkpoint)
        counts = self.model.bottleneck.codebook_counts()
        if counts is not None:
            checkpoint["codebook_counts"] = counts.cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counts of all ranks on rank 0 alone, since the number of ranks may have changed."""
        super().on_load_checkpoint(checkpoint)
        if "codebook_counts" in checkpoint and self.global_rank == 0:
            self.model.bottleneck.restore(checkpoint["codebook_counts"])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the terms, and the PSNR in dB of reconstructions from the posterior mean."""
        x = self.pixels(batch)
        posterior = self.model.posterior(x)
        x_hat = self.model.reconstruct(posterior.mean).float().clamp(-1, 1)
        terms = self.reconstruction_terms(x_hat, x)
        terms["psnr"] = psnr(x_hat, x).mean()
        terms |= self.model.bottleneck.terms(posterior, self.model.dimensions(posterior))
        logged = {f"val/{k}": v for k, v in terms.items()}
        self.log_dict(logged, batch_size=len(x), logger=False, sync_dist=True)
        self.log("psnr", terms["psnr"], prog_bar=True, logger=False, batch_size=len(x), sync_dist=True)

    @torch.no_grad()
    def preview_images(self, data: Any) -> list[tuple[str, list[PIL.Image.Image]]]:
        """Return rows of validation images, or else training images, each row above its reconstructions."""
        batch = next(iter(data.val_dataloader() or data.train_dataloader()))
        x = self.pixels(batch)[:16]
        x_hat = self.model.reconstruct(self.model.posterior(x).mean)
        rows = []
        for i in range(0, len(x), 8):
            rows.append(("images", [to_pil(p) for p in x[i : i + 8]]))
            rows.append(("reconstructions", [to_pil(p) for p in x_hat[i : i + 8]]))
        return rows

    def on_export(self, data: Any) -> None:
        """Measure the latents' mean and std over `statistics_batches` batches, unless the encoder is frozen.

        One rank measures global batches, in parts as large as it trains on.
        """
        if not self.decoder_only:
            ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
            batches = islice(data.train_dataloader(), self.statistics_batches)
            self.measure_latents(
                part for batch in batches for part in split_batch(batch, len(batch["position"]) // ranks)
            )

    @torch.no_grad()
    def measure_latents(self, batches: Iterable[Batch]) -> None:
        """Measure the latents' mean and std per channel, by which the model normalises them for stage 2."""
        moments = []  # per batch, E[z] and E[z²] under the posterior
        for batch in batches:
            posterior = self.model.posterior(self.pixels(batch))
            mean, std = posterior.mean.cpu().double(), posterior.std.cpu().double()  # Apple GPUs lack float64
            moments.append(torch.stack([mean, mean.square() + std.square()]).mean((1, 3, 4)))
        mean, square = torch.stack(moments).mean(0)
        if not bool(mean.isfinite().all() and square.isfinite().all()):
            raise Diverged(
                f"the latents are not finite at step {self.global_step}: start again, or resume from an "
                "earlier checkpoint (resume=PATH run=FOLDER), with a lower optimizer.lr"
            )
        self.model.set_latent_statistics(mean.float(), (square - mean.square()).sqrt().float())

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the autoencoder's optimizer: the autoencoder's and that of `logvar`."""
        scale = [] if self.logvar is None else self.logvar.parameters()
        return [*self.averaged_parameters().values(), *scale]

    def configure_optimizers(self) -> Any:
        """Return the optimizers of autoencoder and discriminator, with the same learning-rate schedule."""
        pairs = [self.with_scheduler(self.optimizer(self.trained_parameters()))]
        if self.adversary is not None:
            pairs.append(self.with_scheduler(self.optimizer(self.adversary.parameters())))
        return [optimizer for optimizer, _ in pairs], [scheduler for _, scheduler in pairs]

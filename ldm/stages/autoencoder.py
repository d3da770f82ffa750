"""Stage 1: the autoencoder, by reconstruction, perceptual and adversarial terms and its bottleneck's."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import PIL.Image
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ldm import rng
from ldm.errors import UserError
from ldm.evaluation.reconstruction import psnr
from ldm.grid import to_pil
from ldm.interop import model_file
from ldm.losses.adversary import Adversary
from ldm.losses.equivariance import Equivariance
from ldm.losses.logvar import LearnedLogVar
from ldm.networks.autoencoder import Autoencoder
from ldm.networks.bottleneck import DiagonalGaussian
from ldm.stages.base import OptimizerFactory, Stage, split
from ldm.typing import Batch


class AutoencoderStage(Stage):
    """L = L_rec + w L_perceptual + L_bottleneck + ramp λ L_adv (Rombach et al. 2022; Esser et al. 2021).

    Everything is counted per image dimension (C H W), which makes a KL's weight the published one: 1e-6
    there multiplies a KL summed over the latent beside an error summed over the image.

    Args:
        likelihood: distance to negative log-likelihood, see `LearnedLogVar`; None takes the distance itself.
        equivariance: decodes turned and shrunk latents at some steps; None at none.
        adversary: discriminator with its start and ramp; None trains without.
        decoder_only: freeze encoder and bottleneck, to finetune a decoder on published latents.
        init: a model file of stage 1 to go on from.
        statistics_batches: of training images, to measure the latents' mean and std over at the end.
        The others as in `Stage`.
    """

    model: Autoencoder

    def __init__(
        self,
        model: Autoencoder,
        reconstruction: nn.Module,
        perceptual: nn.Module,
        adversary: Adversary | None,
        optimizer: OptimizerFactory,
        learning_rate: Callable[[int], float],
        perceptual_weight: float = 1.0,
        logvar: LearnedLogVar | None = None,
        equivariance: Equivariance | None = None,
        decoder_only: bool = False,
        init: str | None = None,
        statistics_batches: int = 32,
        seed: int = 0,
        gradient_clip: float = 0.0,
        micro_batch_size: int = 0,
        log_every: int = 50,
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
        """The perceptual network's weights, and those to go on from."""
        self.perceptual.load_pretrained()
        if self.init is not None:
            tensors, _, _ = model_file.load(self.init, "autoencoder")
            model_file.load_state(self.model, tensors, self.init)

    def check_steps(self, max_steps: int) -> None:
        """UserError for an adversary that training would never hear, or where there is nothing to train."""
        if not self.averaged_parameters():
            raise UserError(
                "this autoencoder has nothing to train: in pixel space go on to stage 2, with "
                "autoencoder=identity and without first_stage"
            )
        if self.adversary is not None and self.adversary.start >= max_steps:
            raise UserError(
                f"the discriminator starts at step {self.adversary.start}, past the end of training "
                f"at {max_steps}: lower adversary.start, raise trainer.max_steps, "
                "or switch it off with stage.adversary=null"
            )

    def reconstruct(self, batch: Batch) -> tuple[Tensor, Tensor, DiagonalGaussian]:
        """(x, x_hat, posterior) with each sample's own posterior noise; with `equivariance`, τ x for x."""
        x = self.pixels(batch)
        posterior = self.model.posterior(x)
        z = posterior.sample(self.normal(batch, "posterior", posterior.mean.shape[1:]))
        if self.equivariance is not None:
            u = rng.uniform(self.seed, [self.global_step], "equivariance", (3,))[0]
            z, x = self.equivariance(z, x, u)
        return x, self.model.reconstruct(z).float(), posterior

    def reconstruction_terms(self, x_hat: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Reconstruction and perceptual terms, and their `nll`, with its `scale` where that is learned."""
        rec, perceptual = self.reconstruction(x_hat, x).mean(), self.perceptual(x_hat, x).mean()
        distance = rec + self.perceptual_weight * perceptual
        terms = {"rec": rec, "perceptual": perceptual, "nll": distance}
        if self.logvar is not None:
            terms |= {"nll": self.logvar(distance), "scale": self.logvar.s.exp()}
        return terms

    def generator_loss(self, x: Tensor, x_hat: Tensor, posterior: DiagonalGaussian) -> dict[str, Tensor]:
        """All terms of the autoencoder's loss; `loss` is their sum."""
        terms = self.reconstruction_terms(x_hat, x)
        terms |= self.model.bottleneck.terms(posterior, self.model.dimensions(posterior))
        terms["loss"] = terms["nll"] + terms["penalty"]
        if self.adversary is not None and self.adversary.weight_at(self.global_step) > 0:
            adversarial, weight = self.adversary.generator_term(
                x_hat, terms["nll"], self.model.last_layer, self.global_step
            )
            terms |= {
                "adversarial": adversarial,
                "lambda": weight,
                "loss": terms["loss"] + weight * adversarial,
            }
        terms |= {"latent_mean": posterior.mean.mean(), "latent_std": posterior.mean.std()}
        return terms

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One global batch: the autoencoder's step, then the discriminator's on the same images."""
        logs: dict[str, Tensor] = {}
        for part, share in self.micro_batches(batch):
            x, x_hat, posterior = self.reconstruct(part)
            terms = self.generator_loss(x, x_hat, posterior)
            self.manual_backward(terms["loss"] * share)
            if self.discriminating:
                terms |= self.backward_discriminator(x, x_hat.detach(), share)
            for name, value in terms.items():
                logs[name] = logs.get(name, torch.zeros((), device=self.device)) + value.detach() * share
        self.report(logs | self.step_optimizers())

    @property
    def discriminating(self) -> bool:
        """Whether the discriminator learns at this step: some steps before the generator hears it."""
        return self.adversary is not None and self.adversary.trains_at(self.global_step)

    def backward_discriminator(self, x: Tensor, x_hat: Tensor, share: float) -> dict[str, Tensor]:
        """Accumulate the discriminator's gradient; its terms for the log."""
        assert self.adversary is not None
        terms = self.adversary.discriminator_terms(x, x_hat)
        self.manual_backward(terms["discriminator"] * share)
        return terms

    def step_optimizers(self) -> dict[str, Any]:
        """Clip and step, only the autoencoder's optimizer through Lightning: global_step counts batches."""
        optimizers = self.optimizers()
        generator, discriminator = optimizers if isinstance(optimizers, list) else (optimizers, None)
        found = self.lr_schedulers()
        schedules = found if isinstance(found, list) else [found]
        logs = {"learning_rate": schedules[0].get_last_lr()[0]}
        norms = {"gradient_norm": self.clip(self.trained_parameters())}
        if self.adversary is not None:
            norms["discriminator_gradient_norm"] = self.clip(self.adversary.parameters())
        taken = self.step_accepted(*norms.values())
        # The discriminator first: global_step moves with the generator's step. Without gradients it rests.
        if self.adversary is not None:
            discriminator.optimizer.step()
            discriminator.zero_grad()
            self.adversary.after_step(taken)
        generator.step()
        generator.zero_grad()
        self.model.bottleneck.after_step(taken)
        for schedule in schedules:
            schedule.step()
        return logs | norms

    def accumulated_metrics(self) -> dict[str, Tensor]:
        """How a codebook is used."""
        return self.model.bottleneck.metrics()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What is counted since the last row, so that the next says the same in a run that goes on."""
        counts = self.model.bottleneck.codebook_counts()
        if counts is not None:
            checkpoint["codebook_counts"] = counts.cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rank 0 counts on from what all ranks had, however many they are now."""
        if "codebook_counts" in checkpoint and self.global_rank == 0:
            self.model.bottleneck.restore(checkpoint["codebook_counts"])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Reconstruction from the posterior's mean: the terms and PSNR in dB."""
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
        """Validation images, or training's where none are held out, above their reconstructions."""
        batch = next(iter(data.val_dataloader() or data.train_dataloader()))
        x = self.pixels(batch)[:16]
        x_hat = self.model.reconstruct(self.model.posterior(x).mean)
        rows = []
        for i in range(0, len(x), 8):
            rows.append(("images", [to_pil(p) for p in x[i : i + 8]]))
            rows.append(("reconstructions", [to_pil(p) for p in x_hat[i : i + 8]]))
        return rows

    def on_export(self, data: Any) -> None:
        """The latents' statistics over `statistics_batches` batches; those of a frozen encoder stay.

        One rank measures whole batches, as many images at once as it trains on.
        """
        if not self.decoder_only:
            ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
            batches = islice(data.train_dataloader(), self.statistics_batches)
            self.measure_latents(
                part for batch in batches for part in split(batch, len(batch["position"]) // ranks)
            )

    @torch.no_grad()
    def measure_latents(self, batches: Iterable[Batch]) -> None:
        """Set the latents' mean and std, per channel, as buffers: stage 2 then sees mean 0 and std 1."""
        moments = []  # of each batch, E[z] and E[z²] over samples of the posterior
        for batch in batches:
            posterior = self.model.posterior(self.pixels(batch))
            mean, std = posterior.mean.double(), posterior.std.double()
            moments.append(torch.stack([mean, mean.square() + std.square()]).mean((1, 3, 4)))
        mean, square = torch.stack(moments).mean(0)
        self.model.set_latent_statistics(mean.float(), (square - mean.square()).sqrt().float())

    def trained_parameters(self) -> list[nn.Parameter]:
        """The autoencoder's, and the likelihood's scale where that is learned."""
        scale = [] if self.logvar is None else self.logvar.parameters()
        return [*self.averaged_parameters().values(), *scale]

    def configure_optimizers(self) -> Any:
        """The autoencoder's optimizer and the discriminator's, with the same schedule."""
        pairs = [self.scheduled(self.optimizer(self.trained_parameters()))]
        if self.adversary is not None:
            pairs.append(self.scheduled(self.optimizer(self.adversary.parameters())))
        return [optimizer for optimizer, _ in pairs], [schedule for _, schedule in pairs]

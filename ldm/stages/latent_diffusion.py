"""Stage 2: the denoiser of a frozen autoencoder's latents."""

from collections.abc import Callable, Sequence
from typing import Any

import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldm import rng
from ldm.diffusion.objective import diffusion_loss
from ldm.diffusion.samplers.ddim import ddim
from ldm.diffusion.times import deterministic_u, stratify, trailing
from ldm.diffusion.weighting import Weighting
from ldm.errors import InvalidValue, UserError
from ldm.grid import to_pil
from ldm.interop import model_file
from ldm.model import LatentDiffusion
from ldm.stages.base import OptimizerFactory, Stage
from ldm.typing import Batch, FiniteFloat, NonNegativeFloat, NonNegativeInt, PositiveInt, Seed


class LatentDiffusionStage(Stage):
    """Trains `model.denoiser` and its conditioner on a frozen first stage (Rombach et al. 2022, section 3).

    Args:
        first_stage_weights: the autoencoder's model file.
        init: a model file of stage 2 with the initial weights.
        prompts: captions of the preview images, 8 per caption, sampled with averaged weights by
            `preview_steps` of DDIM and guidance of `preview_scale`.
        num_condition_examples: number of validation samples whose conditions are previewed as well.
        strata: number of equal parts of [0, 1) over which u is stratified; the global batch size gives the
            lowest variance, 1 independent u.
        offset_noise: std of noise added to whole channels of eps (Guttenberg 2023; 0.1 there).
        input_perturbation: std of noise that is added to z_t but not part of the target, in units of
            sigma_t (Ning et al. 2023; 0.1 there).
        The others as in `Stage` and `diffusion_loss`.
    """

    model: LatentDiffusion
    num_noise_bins = 10
    """Noise levels that validation tells apart: equal parts of u, 0 the least noisy."""

    def __init__(
        self,
        model: LatentDiffusion,
        weighting: Weighting,
        times: Callable[[Tensor], Tensor],
        optimizer: OptimizerFactory,
        learning_rate: Callable[[int], float],
        first_stage_weights: str | None,
        init: str | None = None,
        prompts: Sequence[str] = (),
        num_condition_examples: NonNegativeInt = 0,
        preview_steps: PositiveInt = 50,
        preview_scale: FiniteFloat = 5.0,
        seed: Seed = 0,
        gradient_clip: NonNegativeFloat = 1.0,
        micro_batch_size: NonNegativeInt = 0,
        log_every: PositiveInt = 50,
        strata: PositiveInt = 1,
        offset_noise: NonNegativeFloat = 0.0,
        input_perturbation: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__(seed, learning_rate, gradient_clip, micro_batch_size, log_every)
        if strata < 1 or offset_noise < 0 or input_perturbation < 0:
            raise InvalidValue(
                f"strata={strata} must be at least 1, offset_noise={offset_noise} and "
                f"input_perturbation={input_perturbation} at least 0"
            )
        weighting.check(model.schedule)
        if prompts:
            _check_previews(model, preview_scale)
        self.model = model
        self.weighting, self.times, self.optimizer = weighting, times, optimizer
        self.first_stage_weights, self.init = first_stage_weights, init
        self.prompts, self.num_condition_examples = prompts, num_condition_examples
        self.preview_steps, self.preview_scale = preview_steps, preview_scale
        self.strata, self.offset_noise, self.input_perturbation = strata, offset_noise, input_perturbation
        self.validation_sums: dict[str, Tensor] = {}
        """Per prefix, the losses of each noise bin and their number, summed over samples."""

    def load_pretrained(self) -> None:
        """Load the frozen first stage, the conditioner's frozen encoders, and the weights of `init`."""
        self.load_first_stage()
        self.model.conditioner.load_pretrained()
        if self.init is not None:
            tensors, _, _ = model_file.load(self.init, "latent_diffusion")
            model_file.load_state(self.model, tensors, self.init)

    def load_first_stage(self) -> None:
        """Load only the frozen autoencoder; UserError where its file is missing or does not fit."""
        if self.first_stage_weights is not None:
            tensors, _, _ = model_file.load(self.first_stage_weights, "autoencoder")
            model_file.load_state(self.model.first_stage, tensors, self.first_stage_weights)
        elif next(self.model.first_stage.parameters(), None) is not None:  # in pixel space it has no weights
            raise UserError(
                "stage 2 needs a trained first stage: give first_stage=runs/NAME/autoencoder.safetensors, "
                "which `python train.py experiment=ae_kl_f8` writes"
            )

    def first_stage_hash(self) -> str:
        """Return the content hash that cached latents must state."""
        return model_file.content_hash(self.model.first_stage)

    def header_entries(self) -> dict[str, str]:
        """Return the frozen encoders, which the model file leaves out, by name and hash."""
        return self.model.describe_frozen_weights()

    @torch.no_grad()
    def latents(self, batch: Batch) -> Float[Tensor, "b z h w"]:
        """Return z_0, mean 0 and std 1 per channel: posterior samples, from cached moments or from pixels."""
        first_stage = self.model.first_stage
        if "moments" in batch:
            mean, std = batch["moments"].to(self.device).float().chunk(2, dim=1)
            return first_stage.normalize(mean + std * self.normal(batch, "posterior", mean.shape[1:]))
        x = self.pixels(batch)
        shape = self.model.latent_shape(*x.shape[-2:])
        return first_stage.encode(x, self.normal(batch, "posterior", shape)).float()

    def training_losses(self, batch: Batch) -> Float[Tensor, " b"]:
        """Return L_LDM per sample; its noise, time and dropped conditions are keyed by its position."""
        z_0 = self.latents(batch)
        eps = self.normal(batch, "eps", z_0.shape[1:])
        input_noise: Tensor | float = 0.0
        if self.offset_noise > 0:
            eps = eps + self.offset_noise * self.normal(batch, "offset", (z_0.shape[1], 1, 1))
        if self.input_perturbation > 0:
            input_noise = self.input_perturbation * self.normal(batch, "jitter", z_0.shape[1:])
        position = batch["position"].cpu()
        u = stratify(rng.uniform(self.seed, position.tolist(), "u"), position, self.strata)
        drop = self.uniform(batch, "drop", (len(self.model.conditioner),))
        return self._losses(batch, z_0, eps, u, self.weighting, drop, input_noise)

    def validation_losses(self, batch: Batch) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Return (L_LDM, u) per sample: u evenly spread, no condition dropped, no learned weighting."""
        z_0 = self.latents(batch)
        u = deterministic_u(batch["position"].cpu())
        eps = self.normal(batch, "eps", z_0.shape[1:])
        return self._losses(batch, z_0, eps, u, self.weighting.fixed), u

    def _losses(
        self,
        batch: Batch,
        z_0: Tensor,
        eps: Tensor,
        u: Tensor,
        weighting: Weighting,
        drop: Tensor | None = None,
        input_noise: Tensor | float = 0.0,
    ) -> Tensor:
        model = self.model
        cond = model.condition(batch, drop, (z_0.shape[2], z_0.shape[3]))
        at = model.schedule, model.parameterization, weighting, self.times
        return diffusion_loss(model.denoiser, z_0, cond, eps, u, *at, input_noise)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Train on one global batch: backward by micro-batches, clip, step, update the learning rate."""
        (optimizer,), (scheduler,) = self.optimizers_and_schedulers()
        total = torch.zeros((), device=self.device)
        for part, fraction in self.micro_batches(batch):
            loss = self.training_losses(part).mean() * fraction
            self.accumulate_gradient(loss)
            total += loss.detach()
        norm = self.clip_gradient(self.trained_parameters())
        self.apply_step_guard(norm)
        learning_rate = scheduler.get_last_lr()[0]
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        self.log_training({"loss": total, "gradient_norm": norm, "learning_rate": learning_rate})

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the optimizer: the model's, and those of a learned weighting."""
        return [p for p in self.parameters() if p.requires_grad]

    def on_validation_epoch_start(self) -> None:
        """Reset the sums of losses."""
        self.validation_sums = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure the averaged weights, or those in training if the run has no EMA."""
        self.measure(batch, "val")

    def measure(self, batch: Batch, prefix: str) -> None:
        """Add the samples' losses to the sums of their noise bins."""
        losses, u = self.validation_losses(batch)
        sums = torch.zeros(2, self.num_noise_bins, device=self.device)
        noise_bin = (u * self.num_noise_bins).long().to(self.device)
        sums[0].index_add_(0, noise_bin, losses)
        sums[1].index_add_(0, noise_bin, torch.ones_like(losses))
        self.validation_sums[prefix] = self.validation_sums.get(prefix, 0) + sums

    def on_validation_epoch_end(self) -> None:
        """Log the mean loss over all ranks' samples, `val/loss`, and per noise bin, `val/loss_0`..."""
        values = {}
        for prefix, sums in self.validation_sums.items():
            losses, counts = self.trainer.strategy.reduce(sums, reduce_op="sum")
            values[f"{prefix}/loss"] = losses.sum() / counts.sum()
            means = (losses / counts).tolist()
            values |= {f"{prefix}/loss_{i}": mean for i, mean in enumerate(means) if counts[i] > 0}
        self.log("val/loss", values["val/loss"], prog_bar=True, logger=False, sync_dist=True)
        self.log_row(values)

    def preview_images(self, data: Any) -> list[tuple[str, list[PIL.Image.Image]]]:
        """Return a row of samples per prompt, always of the same seeds, with conditions other than text null.

        Then come the first validation samples, followed by images sampled from their conditions.
        """
        size, seeds = (data.size, data.size), range(8)
        times = trailing(self.model.schedule, self.preview_steps)
        rows = []
        for prompt in self.prompts:
            batch: Batch = {"caption": [prompt] * len(seeds)}
            active = self.model.conditioner.conditions_in(batch)
            images = self.model.generate(
                batch, seeds, size, sampler=ddim, times=times, scale=self.preview_scale, active=active
            )
            rows.append((prompt, [to_pil(x) for x in images]))
        return rows + (self._condition_examples(data, size, times) if self.num_condition_examples else [])

    def _condition_examples(
        self, data: Any, size: tuple[int, int], times: Tensor
    ) -> list[tuple[str, list[PIL.Image.Image]]]:
        first: Batch | None = next(iter(data.val_dataloader()), None)
        if first is None:  # no validation data
            return []
        batch: Batch = {k: v[: self.num_condition_examples] for k, v in first.items()}  # type: ignore[assignment, index]
        seeds = range(len(batch["position"]))
        images = self.model.generate(batch, seeds, size, sampler=ddim, times=times, scale=self.preview_scale)
        samples = [("from their conditions", [to_pil(x) for x in images])]
        if "image" not in batch:
            return samples
        return [("validation images", [to_pil(x) for x in batch["image"].float() / 127.5 - 1]), *samples]

    def configure_optimizers(self) -> Any:
        """Return one optimizer over all trainable parameters, and its learning-rate scheduler."""
        optimizer, scheduler = self.with_scheduler(self.optimizer(self.trained_parameters()))
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def _check_previews(model: LatentDiffusion, scale: float) -> None:
    """Raise UserError if the model cannot sample from captions alone at this guidance scale."""
    if scale != 1 and not model.supports_guidance:
        raise UserError(
            f"stage.preview_scale={scale} needs classifier-free guidance, but no condition has dropout: give "
            "stage.preview_scale=1, or a condition its dropout"
        )
    required = set(model.conditioner.never_dropped) - set(model.conditioner.conditions_in({"caption": []}))
    if required:
        raise UserError(
            f"stage.prompts gives only captions, but the model also requires "
            f"{', '.join(sorted(required))}, which training never drops: give stage.prompts=[]"
        )

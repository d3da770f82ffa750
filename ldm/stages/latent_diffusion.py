"""Stage 2: the denoiser of a frozen autoencoder's latents."""

from collections.abc import Callable, Sequence
from typing import Any

import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldm.diffusion.objective import diffusion_loss
from ldm.diffusion.samplers.ddim import ddim
from ldm.diffusion.times import deterministic_u, stratified, trailing
from ldm.diffusion.weighting import Weighting
from ldm.errors import InvalidValue, UserError
from ldm.grid import to_pil
from ldm.interop import model_file
from ldm.model import LatentDiffusion
from ldm.stages.base import OptimizerFactory, Stage
from ldm.typing import Batch


class LatentDiffusionStage(Stage):
    """Trains `model.denoiser` and its conditioner on a frozen first stage (Rombach et al. 2022, section 3).

    Args:
        first_stage_weights: the autoencoder's model file.
        init: a model file of this stage to go on from.
        prompts: captions drawn with averaged weights while it trains: 8 images each, `preview_steps` of
            DDIM, guidance of `preview_scale`.
        examples: how many of the first validation samples are drawn from their conditions beside these.
        strata: u is drawn one in each of so many equal parts of [0, 1); the global batch size for the least
            variance, 1 for independent u.
        offset_noise: std of what is added to a whole channel of eps (Guttenberg 2023; 0.1 there).
        input_perturbation: std of noise in z_t that the network is not asked for, in units of sigma_t (Ning
            et al. 2023; 0.1 there).
        The others as in `Stage` and `diffusion_loss`.
    """

    model: LatentDiffusion
    bins = 10
    """Validation's noise levels: equal parts of u, 0 the cleanest."""

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
        num_condition_examples: int = 0,
        preview_steps: int = 50,
        preview_scale: float = 5.0,
        seed: int = 0,
        gradient_clip: float = 1.0,
        micro_batch_size: int = 0,
        log_every: int = 50,
        strata: int = 1,
        offset_noise: float = 0.0,
        input_perturbation: float = 0.0,
    ) -> None:
        super().__init__(seed, learning_rate, gradient_clip, micro_batch_size, log_every)
        if strata < 1 or offset_noise < 0 or input_perturbation < 0:
            raise InvalidValue(
                "a stage needs strata >= 1, offset_noise >= 0 and input_perturbation >= 0, "
                f"not {strata}, {offset_noise}, {input_perturbation}"
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
        self.measured: dict[str, Tensor] = {}

    def load_pretrained(self) -> None:
        """The frozen first stage, the conditioner's frozen encoders, and the weights to go on from."""
        self.load_first_stage()
        self.model.conditioner.load_pretrained()
        if self.init is not None:
            tensors, _, _ = model_file.load(self.init, "latent_diffusion")
            model_file.load_state(self.model, tensors, self.init)

    def load_first_stage(self) -> None:
        """The frozen autoencoder alone; UserError where it is missing or another."""
        if self.first_stage_weights is not None:
            tensors, _, _ = model_file.load(self.first_stage_weights, "autoencoder")
            model_file.load_state(self.model.first_stage, tensors, self.first_stage_weights)
        elif next(self.model.first_stage.parameters(), None) is not None:  # pixel space has none to load
            raise UserError(
                "stage 2 needs a trained first stage: give first_stage=runs/NAME/autoencoder.safetensors, "
                "which `python train.py experiment=ae_kl_f8` writes"
            )

    def first_stage_hash(self) -> str:
        """The content hash that cached latents must name."""
        return model_file.content_hash(self.model.first_stage)

    def identity(self) -> dict[str, str]:
        """Name and hash of the frozen encoders, which the model file leaves out."""
        return self.model.identity()

    @torch.no_grad()
    def latents(self, batch: Batch) -> Float[Tensor, "b z h w"]:
        """z_0, mean 0 and std 1 a channel: a posterior sample, from cached moments or encoded on the fly."""
        first_stage = self.model.first_stage
        if "moments" in batch:
            mean, std = batch["moments"].to(self.device).float().chunk(2, dim=1)
            return first_stage.normalize(mean + std * self.normal(batch, "posterior", mean.shape[1:]))
        x = self.pixels(batch)
        shape = self.model.latent_shape(*x.shape[-2:])
        return first_stage.encode(x, self.normal(batch, "posterior", shape)).float()

    def loss(self, batch: Batch, dropout: bool) -> Float[Tensor, ""]:
        """L_LDM of a batch, in training with each sample's own noise, time and dropped conditions."""
        return (self.training_losses(batch) if dropout else self.validation_losses(batch)[0]).mean()

    def training_losses(self, batch: Batch) -> Float[Tensor, " b"]:
        """Each sample's loss, all that it draws keyed by its position."""
        z_0 = self.latents(batch)
        eps = self.normal(batch, "eps", z_0.shape[1:])
        input_noise: Tensor | float = 0.0
        if self.offset_noise > 0:
            eps = eps + self.offset_noise * self.normal(batch, "offset", (z_0.shape[1], 1, 1))
        if self.input_perturbation > 0:
            input_noise = self.input_perturbation * self.normal(batch, "jitter", z_0.shape[1:])
        u = stratified(self.uniform(batch, "u"), batch["position"].to(self.device), self.strata)
        drop = self.uniform(batch, "drop", (len(self.model.conditioner),))
        return self._losses(batch, z_0, eps, u, self.weighting, drop, input_noise)

    def validation_losses(self, batch: Batch) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """(each sample's loss, its u): noise and time fixed by its position, nothing dropped or learned."""
        z_0 = self.latents(batch)
        u = deterministic_u(batch["position"]).to(self.device)
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
        """One global batch: backward by micro-batches, clip, step, schedule."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        total = torch.zeros((), device=self.device)
        for part, share in self.micro_batches(batch):
            loss = self.loss(part, dropout=True) * share
            self.manual_backward(loss)
            total += loss.detach()
        norm = self.clip(self.trained_parameters())
        self.step_accepted(norm)
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        self.report({"loss": total, "gradient_norm": norm, "learning_rate": rate})

    def trained_parameters(self) -> list[nn.Parameter]:
        """What the average follows, and what a weighting learns."""
        return [p for p in self.parameters() if p.requires_grad]

    def on_validation_epoch_start(self) -> None:
        """Nothing is measured yet."""
        self.measured = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The average's loss, or the parameters' in a run without one."""
        self.measure(batch, "val")

    def measure(self, batch: Batch, name: str) -> None:
        """Add the samples' losses to the sums of their bins."""
        losses, u = self.validation_losses(batch)
        found = torch.zeros(2, self.bins, device=self.device)
        place = (u * self.bins).long()
        found[0].index_add_(0, place, losses)
        found[1].index_add_(0, place, torch.ones_like(losses))
        self.measured[name] = self.measured.get(name, 0) + found

    def on_validation_epoch_end(self) -> None:
        """Record over all ranks: `val/loss`, the mean over images, and `val/loss_0`... by noise level."""
        values = {}
        for name, sums in self.measured.items():
            losses, counts = self.trainer.strategy.reduce(sums, reduce_op="sum")
            values[f"{name}/loss"] = losses.sum() / counts.sum()
            means = (losses / counts).tolist()
            values |= {f"{name}/loss_{i}": mean for i, mean in enumerate(means) if counts[i] > 0}
        self.log("val/loss", values["val/loss"], prog_bar=True, logger=False, sync_dist=True)
        self.record(values)

    def preview_images(self, data: Any) -> list[tuple[str, list[PIL.Image.Image]]]:
        """A row of samples a prompt, of the same seeds each time; conditions other than text are null.

        Then the first validation samples, as they are and drawn from their conditions.
        """
        size, seeds = (data.size, data.size), range(8)
        times = trailing(self.model.schedule, self.preview_steps)
        rows = []
        for prompt in self.prompts:
            batch: Batch = {"caption": [prompt] * len(seeds)}
            told = self.model.conditioner.conditions_in(batch)
            images = self.model.generate(batch, seeds, size, ddim, times, self.preview_scale, active=told)
            rows.append((prompt, [to_pil(x) for x in images]))
        return rows + (self._examples(data, size, times) if self.num_condition_examples else [])

    def _examples(
        self, data: Any, size: tuple[int, int], times: Tensor
    ) -> list[tuple[str, list[PIL.Image.Image]]]:
        first: Batch | None = next(iter(data.val_dataloader()), None)
        if first is None:  # a run without validation
            return []
        batch: Batch = {k: v[: self.num_condition_examples] for k, v in first.items()}  # type: ignore[assignment, index]
        seeds = range(len(batch["position"]))
        images = self.model.generate(batch, seeds, size, ddim, times, self.preview_scale)
        drawn = [("from their conditions", [to_pil(x) for x in images])]
        if "image" not in batch:
            return drawn
        return [("validation images", [to_pil(x) for x in batch["image"].float() / 127.5 - 1]), *drawn]

    def configure_optimizers(self) -> Any:
        """One optimizer over the trainable parameters, its rate by step."""
        optimizer, schedule = self.scheduled(self.optimizer(self.trained_parameters()))
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def _check_previews(model: LatentDiffusion, scale: float) -> None:
    """UserError where captions alone, at this scale of guidance, cannot be drawn."""
    if scale != 1 and not model.supports_guidance:
        raise UserError(
            f"previews of scale {scale} lead away from dropped conditions, and none is dropped here: give "
            "stage.preview_scale=1, or a conditioner its dropout"
        )
    needed = set(model.conditioner.never_dropped) - set(model.conditioner.conditions_in({"caption": []}))
    if needed:
        raise UserError(
            f"stage.prompts are captions alone, and the model cannot do without {', '.join(sorted(needed))}: "
            "give stage.prompts=[]"
        )

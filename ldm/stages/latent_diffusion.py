"""Stage 2: the denoiser of a frozen autoencoder's latents."""

from collections.abc import Callable, Sequence
from typing import Any

import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor

from ldm.diffusion.objective import diffusion_loss
from ldm.diffusion.samplers.ddim import ddim
from ldm.diffusion.times import trailing
from ldm.errors import UserError
from ldm.grid import to_pil
from ldm.interop import safetensors
from ldm.model import LatentDiffusion
from ldm.stages.base import OptimizerFactory, Stage
from ldm.typing import Batch


class LatentDiffusionStage(Stage):
    """Trains `model.denoiser` and its conditioner on a frozen first stage (Rombach et al. 2022, section 3).

    Args:
        first_stage_weights: the autoencoder's sampling file.
        init: a sampling file of this stage to go on from.
        prompts: captions drawn with averaged weights while it trains: 8 pictures each, `preview_steps` of
            DDIM, guidance of `preview_scale`.
        The others as in `Stage` and `diffusion_loss`.
    """

    model: LatentDiffusion

    def __init__(
        self,
        model: LatentDiffusion,
        weighting: Callable[[Tensor, Tensor], Tensor],
        times: Callable[[Tensor], Tensor],
        optimizer: OptimizerFactory,
        learning_rate: Callable[[int], float],
        first_stage_weights: str | None,
        init: str | None = None,
        prompts: Sequence[str] = (),
        preview_steps: int = 50,
        preview_scale: float = 5.0,
        seed: int = 0,
        gradient_clip: float = 1.0,
        micro_batch_size: int = 0,
        log_every: int = 50,
    ) -> None:
        super().__init__(seed, learning_rate, gradient_clip, micro_batch_size, log_every)
        self.model = model
        self.weighting, self.times, self.optimizer = weighting, times, optimizer
        self.first_stage_weights, self.init = first_stage_weights, init
        self.prompts, self.preview_steps, self.preview_scale = prompts, preview_steps, preview_scale

    def load_pretrained(self) -> None:
        """The frozen first stage, the conditioner's frozen encoders, and the weights to go on from."""
        if self.first_stage_weights is None:
            raise UserError(
                "stage 2 needs a trained first stage: give first_stage=runs/NAME/autoencoder.safetensors, "
                "which `python train.py experiment=ae_kl_f8` writes"
            )
        tensors, _, _ = safetensors.load(self.first_stage_weights, "autoencoder")
        safetensors.fill(self.model.first_stage, tensors, self.first_stage_weights)
        self.model.conditioner.load_pretrained()
        if self.init is not None:
            tensors, _, _ = safetensors.load(self.init, "latent_diffusion")
            safetensors.fill(self.model, tensors, self.init)

    def first_stage_hash(self) -> str:
        """The content hash that cached latents must name."""
        return safetensors.content_hash(self.model.first_stage)

    def identity(self) -> dict[str, str]:
        """Name and hash of the frozen encoders, which the sampling file leaves out."""
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
        """L_LDM of a batch with each sample's own noise, time and dropped conditions."""
        z_0 = self.latents(batch)
        drop = self.uniform(batch, "drop", (len(self.model.conditioner),)) if dropout else None
        return diffusion_loss(
            self.model.denoiser,
            z_0,
            self.model.conditioner(batch, drop),
            self.normal(batch, "eps", z_0.shape[1:]),
            self.uniform(batch, "u"),
            self.model.schedule,
            self.model.parameterization,
            self.weighting,
            self.times,
        )

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One global batch: backward by micro-batches, clip, step, schedule."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        total = torch.zeros((), device=self.device)
        for part, share in self.micro_batches(batch):
            loss = self.loss(part, dropout=True) * share
            self.manual_backward(loss)
            total += loss.detach()
        norm = self.clip(self.averaged_parameters().values())
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        self.report({"loss": total, "gradient_norm": norm, "learning_rate": rate})

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The loss with noise and times fixed by position, no dropout."""
        loss = self.loss(batch, dropout=False)
        size = len(batch["position"])
        self.log("val/loss", loss, batch_size=size, prog_bar=True, logger=False, sync_dist=True)

    def pictures(self, data: Any) -> list[tuple[str, list[PIL.Image.Image]]]:
        """A row of samples a prompt, of the same seeds each time."""
        size, seeds = (data.size, data.size), range(8)
        times = trailing(self.model.schedule.num_steps, self.preview_steps)
        rows = []
        for prompt in self.prompts:
            batch: Batch = {"caption": [prompt] * len(seeds)}
            images = self.model.generate(batch, seeds, size, ddim, times, self.preview_scale)
            rows.append((prompt, [to_pil(x) for x in images]))
        return rows

    def configure_optimizers(self) -> Any:
        """One optimizer over the trainable parameters, its rate by step."""
        optimizer, schedule = self.scheduled(self.optimizer(self.averaged_parameters().values()))
        return {"optimizer": optimizer, "lr_scheduler": schedule}

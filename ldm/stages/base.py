"""The base class of both stages: seeding, micro-batches, the optimizer step, logging."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import PIL.Image
import torch
from jaxtyping import Bool, Float
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ldm import rng
from ldm.stages.loss_scale import LossScale
from ldm.stages.optimizer import LearningRateSchedule, keep_hyperparameters
from ldm.typing import Batch

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]


class Stage(LightningModule, ABC):
    """Manual optimization with one optimizer step per global batch.

    Args:
        seed: of all random numbers in training.
        learning_rate: step -> factor of the optimizer's learning rate.
        gradient_clip: maximum norm of the gradient; 0 disables clipping.
        micro_batch_size: images per forward and backward pass on one rank; 0 takes the rank's whole batch.
        log_every: steps between log rows; in between, no value leaves the device.

    The callbacks in `ldm.callbacks` work with either stage through this protocol.

    Attributes that callbacks set:
        extra_metrics: further values of the next log row, by name; the loggers get those of rank 0.
        per_rank_metrics: numbers measured on every rank; the log row gets the smallest and the largest.
        step_guard: returns 1 for gradient norms whose step must be skipped, else 0; None accepts every step.
        validation_interrupted: whether the last validation was cut short, so that it is not logged.

    Attributes and methods that callbacks read:
        logs_this_step: whether to measure for `extra_metrics`, in `on_train_batch_start`.
        last_batch_end: `time.perf_counter()` after the last training batch and all callbacks; `Throughput`
            moves it past a validation.
        overflow: 1 if the last step was skipped because its scaled gradients overflowed in fp16, else 0; None
            in other precisions.
        averaged_parameters(): the parameters that an EMA averages.

    Hooks that callbacks call:
        measure(batch, prefix): measure a validation batch again with other weights in place.
        preview_images(data): labelled rows of images, with averaged weights in place.
        on_export(data): measure the statistics stored in the model file, with averaged weights in place.
        exported_tensors(), header_entries(): the content of the model file.

    A stage calls `apply_step_guard(*norms)` before its optimizer step, and returns what it counts over all
    steps between two log rows from `accumulated_metrics()`.
    """

    automatic_optimization = False
    model: nn.Module

    def __init__(
        self,
        seed: int,
        learning_rate: Callable[[int], float],
        gradient_clip: float,
        micro_batch_size: int,
        log_every: int,
    ) -> None:
        super().__init__()
        self.seed, self.learning_rate, self.gradient_clip = seed, learning_rate, gradient_clip
        self.micro_batch_size, self.log_every = micro_batch_size, log_every
        self.extra_metrics: dict[str, Tensor | float] = {}
        self.per_rank_metrics: dict[str, float] = {}
        self.step_guard: Callable[[Tensor], Tensor] | None = None
        self.validation_interrupted = False
        self.last_batch_end = 0.0
        self.loss_scale: LossScale | None = None
        self.overflow: Tensor | None = None

    def setup(self, stage: str) -> None:
        """Convert to the training precision, where Lightning would load a float64 checkpoint into fp32.

        In fp16 the stage scales the loss itself: Lightning's scaler would ignore the step guard.
        """
        plugin = self.trainer.precision_plugin
        plugin.convert_module(self)
        if isinstance(plugin, MixedPrecision) and plugin.precision == "16-mixed":
            plugin.scaler, self.loss_scale = None, LossScale()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the loss scale."""
        if self.loss_scale is not None:
            checkpoint["loss_scale"] = self.loss_scale.checkpoint()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the loss scale; after training in another precision it starts anew."""
        if self.loss_scale is not None and "loss_scale" in checkpoint:
            self.loss_scale.restore(checkpoint["loss_scale"])

    def load_pretrained(self) -> None:
        """Load published weights and model files; UserError if they are missing."""

    def on_export(self, data: Any) -> None:
        """Measure the statistics that the model file stores; averaged weights are in place."""

    def header_entries(self) -> dict[str, str]:
        """Return what the model file's header states besides the config."""
        return {}

    def exported_tensors(self) -> dict[str, Tensor]:
        """Return the model file's tensors, without the pretrained ones whose hash its header records."""
        return self.model.state_dict()

    @abstractmethod
    def preview_images(self, data: Any) -> list[tuple[str, list[PIL.Image.Image]]]:
        """Return labelled rows of images that show the progress of training."""

    def averaged_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that an EMA averages: the model's trainable ones."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def pixels(self, batch: Batch) -> Float[Tensor, "b c h w"]:
        """Return the batch's images in [-1, 1], on the device."""
        return batch["image"].to(self.device).float() / 127.5 - 1

    def normal(self, batch: Batch, stream: str, shape: Iterable[int]) -> Float[Tensor, "b z h w"]:
        """Sample a tensor of `shape` from N(0, I) per sample, keyed by its position."""
        return rng.normal(self.seed, batch["position"].tolist(), stream, tuple(shape)).to(self.device)

    def uniform(self, batch: Batch, stream: str, shape: tuple[int, ...] = ()) -> Float[Tensor, "b ..."]:
        """Sample a tensor of `shape` from U[0, 1) per sample, keyed by its position."""
        return rng.uniform(self.seed, batch["position"].tolist(), stream, shape).to(self.device)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the global generator, for network dropout, by (seed, step, rank): a resumed run repeats it."""
        torch.manual_seed(
            rng.generator(self.seed, self.global_step, f"rank/{self.global_rank}").initial_seed()
        )

    def on_train_batch_end(self, *_: Any) -> None:
        """Record the time: Lightning calls this after all callbacks, then the run waits for data."""
        self.last_batch_end = time.perf_counter()

    def micro_batches(self, batch: Batch) -> Iterator[tuple[Batch, float]]:
        """Yield the parts of the batch, each with its fraction of the batch."""
        n = len(batch["position"])
        for part in split_batch(batch, self.micro_batch_size or n):
            yield part, len(part["position"]) / n

    def with_scheduler(self, optimizer: Optimizer) -> tuple[Optimizer, LambdaLR]:
        """Return the optimizer and its learning-rate scheduler; both follow the config in a resumed run."""
        keep_hyperparameters(optimizer)
        return optimizer, LearningRateSchedule(optimizer, self.learning_rate)

    def optimizers_and_schedulers(self) -> tuple[list[LightningOptimizer], list[LambdaLR]]:
        """Return lists of all optimizers and their learning-rate schedulers, even if there is only one."""
        optimizers, schedulers = self.optimizers(), self.lr_schedulers()
        return (
            optimizers if isinstance(optimizers, list) else [optimizers],
            cast(list[LambdaLR], schedulers if isinstance(schedulers, list) else [schedulers]),
        )

    @property
    def loss_factor(self) -> Tensor | float:
        """The factor by which the gradients of a backward pass are scaled: 1 except in fp16."""
        return 1.0 if self.loss_scale is None else self.loss_scale.factor

    def accumulate_gradient(self, loss: Float[Tensor, ""]) -> None:
        """Add the gradient of the loss, scaled by `loss_factor`, to the parameters' gradients."""
        self.manual_backward(loss * self.loss_factor)

    def clip_gradient(self, parameters: Iterable[nn.Parameter]) -> Float[Tensor, ""]:
        """Unscale the accumulated gradient and clip it, in place; return its norm before clipping."""
        parameters = list(parameters)
        if self.loss_scale is not None:
            self.loss_scale.unscale(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, self.gradient_clip or float("inf"))
        return norm.to(self.device)  # without gradients the norm is 0 on the CPU

    def apply_step_guard(self, *norms: Tensor) -> Bool[Tensor, ""]:
        """Make the optimizers skip the step if its gradients overflow in fp16 or `step_guard` rejects it.

        Returns whether the step is accepted. Other state that is updated with the weights (codebook, running
        means) must check it as well. A step that overflows is not the guard's to judge: it gets norms of 0,
        which it does not count.
        """
        values = torch.stack(norms)
        skip = torch.zeros((), dtype=torch.float32, device=self.device)  # what fused optimizers read
        if self.loss_scale is not None:
            skip = self.overflow = self.loss_scale.update(values)
            values = torch.where(skip > 0, 0, values)
        if self.step_guard is not None:
            skip = torch.maximum(skip, self.step_guard(values))
        if self.step_guard is not None or self.loss_scale is not None:
            self._skip_step_if(skip)
        return skip == 0

    def _skip_step_if(self, skip: Float[Tensor, ""]) -> None:
        """Make all optimizers skip the step if `skip` is 1.

        Fused optimizers decide on the device, so there is no host sync. Others, and the fused ones of Apple
        GPUs, do not read `found_inf`; they change nothing where there are no gradients.
        """
        for optimizer in self.trainer.optimizers:
            if self.device.type != "mps" and all(group.get("fused") for group in optimizer.param_groups):
                optimizer.found_inf = skip  # type: ignore[attr-defined]
            elif skip > 0:
                optimizer.zero_grad()

    @property
    def logs_this_step(self) -> bool:
        """Whether the step about to be taken will be logged."""
        return (self.global_step + 1) % self.log_every == 0

    def accumulated_metrics(self) -> dict[str, Tensor]:
        """Return metrics accumulated over steps and ranks since the last log row; all ranks must call it."""
        return {}

    def log_training(self, values: Mapping[str, Tensor | float]) -> None:
        """Log training values, averaged over ranks, every `log_every` steps; show the loss as progress."""
        if self.global_step % self.log_every == 0:
            self.log("loss", values["loss"], prog_bar=True, logger=False)
            scale = {} if self.loss_scale is None else self.loss_scale.metrics()
            means, extremes = self.means_over_ranks({**values, **scale})
            metrics = means | self.accumulated_metrics()
            row = {f"train/{name}": value for name, value in metrics.items()}
            self.log_row(row | self.extra_metrics | extremes)

    def means_over_ranks(
        self, values: Mapping[str, Tensor | float]
    ) -> tuple[dict[str, Tensor | float], dict[str, float]]:
        """Return the values of the global batch, and the smallest and largest of `per_rank_metrics`.

        A plain number is the same on all ranks. Apart from that of `accumulated_metrics`, this is the only
        collective of logging: all ranks reach it in the same steps, just after averaging their gradients.
        """
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        means, world = torch.stack(list(tensors.values())), self.trainer.world_size
        # Each rank fills its own column and leaves 0 in the others: the mean times their number is complete.
        columns = torch.zeros(len(self.per_rank_metrics) if world > 1 else 0, world)
        columns[:, self.global_rank] = torch.tensor(list(self.per_rank_metrics.values()))[: len(columns)]
        local = torch.cat([means, columns.flatten().to(means)])
        reduced = self.trainer.strategy.reduce(local, reduce_op="mean").cpu()
        ranks = reduced[len(means) :].view_as(columns) * world
        extremes = {
            f"{name}_{which}": value
            for name, row in zip(self.per_rank_metrics, ranks, strict=False)
            for which, value in (("least", row.min().item()), ("largest", row.max().item()))
        }
        return {**values, **dict(zip(tensors, reduced[: len(means)].unbind(), strict=True))}, extremes

    def measure(self, batch: Batch, prefix: str) -> None:
        """Measure a validation batch with the current weights, logged under `prefix`; by default a no-op."""

    def on_validation_epoch_end(self) -> None:
        """Log the mean and the accumulated validation metrics."""
        logged, counted = self.trainer.callback_metrics, self.accumulated_metrics().items()
        row = {name: value for name, value in logged.items() if name.startswith("val/")}
        self.log_row(row | {f"val/{name}": value for name, value in counted})

    def log_row(self, values: Mapping[str, Tensor | float]) -> None:
        """Pass one row to the loggers; `self.log` would repeat the last values at every step in between."""
        if self.validation_interrupted:  # measured on fewer batches than the other rows
            self.validation_interrupted = False
            return
        for logger in self.loggers:
            logger.log_metrics({name: float(value) for name, value in values.items()}, self.global_step)


def split_batch(batch: Batch, size: int) -> Iterator[Batch]:
    """Yield the batch in parts of `size` samples; the last may be smaller."""
    for i in range(0, len(batch["position"]), size):
        yield {k: v[i : i + size] for k, v in batch.items()}  # type: ignore[index]

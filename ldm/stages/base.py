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
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ldm import rng
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

    def setup(self, stage: str) -> None:
        """Convert to the training precision; otherwise Lightning loads a float64 checkpoint into fp32."""
        self.trainer.precision_plugin.convert_module(self)

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
        """Return the optimizer and its learning-rate scheduler."""
        # A plain function, since LambdaLR saves the attributes of any other callable in the checkpoint.
        return optimizer, LambdaLR(optimizer, lambda step: self.learning_rate(step))

    def optimizers_and_schedulers(self) -> tuple[list[LightningOptimizer], list[LambdaLR]]:
        """Return lists of all optimizers and their learning-rate schedulers, even if there is only one."""
        optimizers, schedulers = self.optimizers(), self.lr_schedulers()
        return (
            optimizers if isinstance(optimizers, list) else [optimizers],
            cast(list[LambdaLR], schedulers if isinstance(schedulers, list) else [schedulers]),
        )

    def clip_gradient(self, parameters: Iterable[nn.Parameter]) -> Float[Tensor, ""]:
        """Clip the gradient in place; return its norm before clipping."""
        norm = nn.utils.clip_grad_norm_(parameters, self.gradient_clip or float("inf"))
        return norm.to(self.device)  # without gradients the norm is 0 on the CPU

    def apply_step_guard(self, *norms: Tensor) -> Bool[Tensor, ""]:
        """Make fused optimizers skip the step if `step_guard` rejects it; return whether it is accepted.

        The result stays on the device, so there is no host sync. Other state that is updated with the weights
        (codebook, running means) must check it as well.
        """
        if self.step_guard is None:
            return torch.ones((), dtype=torch.bool, device=self.device)
        skip = self.step_guard(torch.stack(norms))
        for optimizer in self.trainer.optimizers:
            optimizer.found_inf = skip  # type: ignore[attr-defined]
        return skip == 0

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
            means, extremes = self.means_over_ranks(values)
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

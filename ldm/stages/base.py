"""What both stages share: seeding, micro-batches, the visible optimizer step, logging."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import PIL.Image
import torch
from jaxtyping import Bool, Float
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ldm import rng
from ldm.typing import Batch

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]


class Stage(LightningModule, ABC):
    """Manual optimization with one optimizer step a global batch.

    Args:
        seed: of everything drawn in training.
        learning_rate: step -> factor of the optimizer's rate.
        gradient_clip: largest norm of the gradient; 0 for none.
        micro_batch_size: images a rank passes through the network at once; 0 for all of its share.
        log_every: steps between logged values; in between, nothing leaves the device.
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
        self.extra_metrics: dict[str, Tensor | float] = {}  # what callbacks add to the next row of the log
        self.per_rank_metrics: dict[
            str, float
        ] = {}  # measured on each rank: the row has the least and largest
        self.step_guard: Callable[[Tensor], Tensor] | None = None  # set by ldm.callbacks.skip_bad_steps
        self.validation_interrupted = False  # set by ldm.callbacks.preemption where it ends a validation
        self.last_batch_end = 0.0

    def setup(self, stage: str) -> None:
        """Convert to the precision of training: Lightning would restore float64 into fp32 first."""
        self.trainer.precision_plugin.convert_module(self)

    def load_pretrained(self) -> None:
        """Read foreign weights from disk; UserError where they are missing."""

    def on_export(self, data: Any) -> None:
        """Measure what belongs into the model file, with averaged weights in place."""

    def identity(self) -> dict[str, str]:
        """What the model file's header names beside the configuration."""
        return {}

    def exported_tensors(self) -> dict[str, Tensor]:
        """What the model file holds: the model, without foreign weights that it names by hash."""
        return self.model.state_dict()

    @abstractmethod
    def preview_images(self, data: Any) -> list[tuple[str, list[PIL.Image.Image]]]:
        """Labelled rows that show how far the model is."""

    def averaged_parameters(self) -> dict[str, nn.Parameter]:
        """What the EMA follows: the model's trainable parameters."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def pixels(self, batch: Batch) -> Float[Tensor, "b c h w"]:
        """Stored bytes to [-1, 1], on the device."""
        return batch["image"].to(self.device).float() / 127.5 - 1

    def normal(self, batch: Batch, stream: str, shape: Iterable[int]) -> Float[Tensor, "b z h w"]:
        """Each sample's own N(0, I), keyed by its position."""
        return rng.normal(self.seed, batch["position"].tolist(), stream, tuple(shape)).to(self.device)

    def uniform(self, batch: Batch, stream: str, shape: tuple[int, ...] = ()) -> Float[Tensor, "b ..."]:
        """Each sample's own U[0, 1), keyed by its position."""
        return rng.uniform(self.seed, batch["position"].tolist(), stream, shape).to(self.device)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """The global generator (network dropout) follows (seed, step, rank), so a resumed step repeats."""
        torch.manual_seed(
            rng.generator(self.seed, self.global_step, f"rank/{self.global_rank}").initial_seed()
        )

    def on_train_batch_end(self, *_: Any) -> None:
        """All callbacks are done: from here on the run waits for data (ldm.callbacks.throughput)."""
        self.last_batch_end = time.perf_counter()

    def micro_batches(self, batch: Batch) -> Iterator[tuple[Batch, float]]:
        """(part of the batch, its share of the batch)."""
        n = len(batch["position"])
        for part in split(batch, self.micro_batch_size or n):
            yield part, len(part["position"]) / n

    def scheduled(self, optimizer: Optimizer) -> tuple[Optimizer, LambdaLR]:
        """The optimizer with its learning-rate schedule."""
        # A plain function, for LambdaLR would put any other callable's attributes into the checkpoint.
        return optimizer, LambdaLR(optimizer, lambda step: self.learning_rate(step))

    def clip(self, parameters: Iterable[nn.Parameter]) -> Float[Tensor, ""]:
        """Clip the gradient in place; its norm before."""
        norm = nn.utils.clip_grad_norm_(parameters, self.gradient_clip or float("inf"))
        return norm.to(self.device)  # without gradients it is a 0 on the CPU

    def step_accepted(self, *norms: Tensor) -> Bool[Tensor, ""]:
        """Whether the step is taken: not if `step_guard` finds these gradients bad, and fused optimizers skip it.

        Nothing waits for the verdict, it stays on the device; what else moves with the weights heeds it, too.
        """
        if self.step_guard is None:
            return torch.ones((), dtype=torch.bool, device=self.device)
        verdict = self.step_guard(torch.stack(norms))
        for optimizer in self.trainer.optimizers:
            optimizer.found_inf = verdict  # type: ignore[attr-defined]
        return verdict == 0

    @property
    def reports_next(self) -> bool:
        """Whether the step that is about to be taken will be logged."""
        return (self.global_step + 1) % self.log_every == 0

    def accumulated_metrics(self) -> dict[str, Tensor]:
        """What is counted over all steps, and all ranks, from one row of the log to the next."""
        return {}

    def report(self, values: Mapping[str, Tensor | float]) -> None:
        """Record training values, means over ranks, every `log_every` steps; the bar shows the loss."""
        if self.global_step % self.log_every == 0:
            self.log("loss", values["loss"], prog_bar=True, logger=False)
            means, extremes = self.means_over_ranks(values)
            told = {f"train/{name}": value for name, value in (means | self.accumulated_metrics()).items()}
            self.record(told | self.extra_metrics | extremes)

    def means_over_ranks(
        self, values: Mapping[str, Tensor | float]
    ) -> tuple[dict[str, Tensor | float], dict[str, float]]:
        """What one process would have found in the whole batch, and the least and largest of `per_rank_metrics`.

        A plain number is the same everywhere. This is logging's one collective beside `accumulated_metrics`'s: it cannot
        hang, for all ranks come here at the same steps, and it hardly waits, for they have just shared their
        gradients.
        """
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        means, world = torch.stack(list(tensors.values())), self.trainer.world_size
        places = torch.zeros(len(self.per_rank_metrics) if world > 1 else 0, world)  # a column a rank
        places[:, self.global_rank] = torch.tensor(list(self.per_rank_metrics.values()))[: len(places)]
        sent = torch.cat([means, places.flatten().to(means)])
        got = self.trainer.strategy.reduce(sent, reduce_op="mean").cpu()
        ranks = got[len(means) :].view_as(places) * world
        extremes = {
            f"{name}_{which}": value
            for name, row in zip(self.per_rank_metrics, ranks, strict=False)
            for which, value in (("least", row.min().item()), ("largest", row.max().item()))
        }
        return {**values, **dict(zip(tensors, got[: len(means)].unbind(), strict=True))}, extremes

    def measure(self, batch: Batch, name: str) -> None:
        """Record of a validation batch, under `name`, what the parameters in training do."""

    def on_validation_epoch_end(self) -> None:
        """Record what validation logged and counted."""
        logged, counted = self.trainer.callback_metrics, self.accumulated_metrics().items()
        told = {name: value for name, value in logged.items() if name.startswith("val/")}
        self.record(told | {f"val/{name}": value for name, value in counted})

    def record(self, values: Mapping[str, Tensor | float]) -> None:
        """Give the loggers one row; `self.log` would repeat the last values at every step in between."""
        if self.validation_interrupted:  # of fewer batches than the rows before
            self.validation_interrupted = False
            return
        for logger in self.loggers:
            logger.log_metrics({name: float(value) for name, value in values.items()}, self.global_step)


def split(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch in parts of `size` samples; the last may be smaller."""
    for i in range(0, len(batch["position"]), size):
        yield {k: v[i : i + size] for k, v in batch.items()}  # type: ignore[misc, index]

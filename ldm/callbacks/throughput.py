"""Training speed, time spent waiting for data, and peak memory."""

import resource
import sys
import time

import torch
from lightning import Callback, Trainer

from ldm.stages.base import Stage
from ldm.typing import Batch

SPEEDS = ("speed/images_per_second", "speed/data_wait")


class Throughput(Callback):
    """Add to each log row what this rank measured since the last one, without validation.

    speed/images_per_second   images per second on this rank
    speed/data_wait           fraction of the time that it waited for a batch
    memory/peak_gib           peak memory so far: the GPU's, or the process's on a CPU

    Ranks advance together, so the speed of one, times their number, is the speed of all. With several ranks
    the smallest and largest of the first two are logged as well (`..._least`, `..._largest`), reduced in the
    same collective as the losses.
    """

    def on_train_start(self, trainer: Trainer, stage: Stage) -> None:
        """Leave out the first batch, for which workers start."""
        self._images = 0

    def on_train_batch_start(self, trainer: Trainer, stage: Stage, batch: Batch, batch_idx: int) -> None:
        """Add the time waited for this batch; before a step that is logged, set the metrics."""
        now = time.perf_counter()
        if self._images:
            self._waited += now - stage.last_batch_end
        else:
            self._restart(now)
        if stage.logs_this_step and self._images:
            elapsed = now - self._start - self._validated
            stage.extra_metrics["speed/images_per_second"] = self._images / elapsed
            stage.extra_metrics["speed/data_wait"] = self._waited / elapsed
            stage.per_rank_metrics = {name: float(stage.extra_metrics[name]) for name in SPEEDS}
            stage.extra_metrics["memory/peak_gib"] = peak_memory() / 2**30
            self._restart(now)
        self._images += len(batch["position"])

    def _restart(self, now: float) -> None:
        self._start, self._waited, self._validated, self._images = now, 0.0, 0.0, 0

    def on_validation_start(self, trainer: Trainer, stage: Stage) -> None:
        """Pause the clock."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, stage: Stage) -> None:
        """Resume the clock."""
        pause = time.perf_counter() - self._paused
        self._validated += pause
        stage.last_batch_end += pause


def peak_memory() -> int:
    """Return the peak memory in bytes: of tensors on the GPU, or else of the process in RAM."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

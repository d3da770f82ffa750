"""How fast a run is, how long it waits for data, and how much memory it takes."""

import resource
import sys
import time

import torch
from lightning import Callback, Trainer

from ldm.stages.base import Stage
from ldm.typing import Batch

SPEEDS = ("speed/images_per_second", "speed/data_wait")


class Throughput(Callback):
    """Adds to each logged row what this rank measured since the last one, validation left out.

    speed/images_per_second   images a second on this rank
    speed/data_wait           share of the time that it waited for a batch
    memory/peak_gib           largest memory so far: the GPU's, or the process' on a CPU

    Ranks walk in step, so the speed of one, times their number, is the speed of all. On several ranks the
    least and the largest of the first two go into the row, too (`..._least`, `..._largest`): they travel with
    the losses' mean, no rank is asked for them alone.
    """

    def on_train_start(self, trainer: Trainer, stage: Stage) -> None:  # type: ignore[override]
        """The first batch, for which workers start, does not count."""
        self._images = 0

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, stage: Stage, batch: Batch, batch_idx: int
    ) -> None:
        """A batch has come; before a step that is logged, the numbers go into its row."""
        now = time.perf_counter()
        if self._images:
            self._waited += now - stage.last_batch_end
        else:
            self._restart(now)
        if stage.reports_next and self._images:
            elapsed = now - self._start - self._validated
            stage.extra_metrics["speed/images_per_second"] = self._images / elapsed
            stage.extra_metrics["speed/data_wait"] = self._waited / elapsed
            stage.per_rank_metrics = {name: float(stage.extra_metrics[name]) for name in SPEEDS}
            stage.extra_metrics["memory/peak_gib"] = peak_memory() / 2**30
            self._restart(now)
        self._images += len(batch["position"])

    def _restart(self, now: float) -> None:
        self._start, self._waited, self._validated, self._images = now, 0.0, 0.0, 0

    def on_validation_start(self, trainer: Trainer, stage: Stage) -> None:  # type: ignore[override]
        """Time stands still."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, stage: Stage) -> None:  # type: ignore[override]
        """And goes on."""
        pause = time.perf_counter() - self._paused
        self._validated += pause
        stage.last_batch_end += pause


def peak_memory() -> int:
    """Bytes: the largest that tensors took on the GPU, or that the process took in RAM."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

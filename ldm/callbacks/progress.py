"""Progress of a run: a bar in a terminal, lines in a log file."""

import sys
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from ldm.stages.base import Stage
from ldm.typing import PositiveFloat


class ProgressBar(TQDMProgressBar):
    """Show step, time left, loss, images per second over all ranks, and the fraction of time waiting.

    In a terminal, one line that is redrawn about twice a second; elsewhere, as in a SLURM job's log, a new
    line every `seconds`.
    """

    def __init__(self, seconds: PositiveFloat = 30.0) -> None:
        super().__init__(refresh_rate=5)
        self.seconds = seconds
        self._prints_lines = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print lines instead of a bar if stdout is not a terminal."""
        super().setup(trainer, pl_module, stage)
        self._prints_lines = trainer.is_global_zero and not sys.stdout.isatty()
        if self._prints_lines:
            self.disable()

    def on_train_start(self, *args: Any) -> None:
        """Start the clock; the time left is extrapolated from the steps since then."""
        super().on_train_start(*args)
        self._start_time = self._last_line_time = time.monotonic()
        self._first_step = args[0].global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Redraw the bar, or print a line when it is due."""
        super().on_train_batch_end(trainer, pl_module, *args)
        now = time.monotonic()
        if self._prints_lines and now - self._last_line_time >= self.seconds:
            self._last_line_time = now
            with suppress(OSError):  # a log on a full disk, or a closed pipe, does not end the training
                print(self._line(trainer, pl_module, now - self._start_time), flush=True)

    def _line(self, trainer: Trainer, stage: LightningModule, elapsed: float) -> str:
        step, last = trainer.global_step, trainer.max_steps
        left = timedelta(seconds=round(elapsed / (step - self._first_step) * (last - step)))
        metrics = "  ".join(f"{name} {value}" for name, value in self.get_metrics(trainer, stage).items())
        return f"step {step:,} of {last:,}  {left} left  {metrics}"

    def get_metrics(self, trainer: Trainer, stage: LightningModule) -> dict[str, int | str | float]:
        """Return Lightning's metrics without the logger's version number, and the speed if it is measured."""
        metrics: dict[str, Any] = super().get_metrics(trainer, stage)
        metrics.pop("v_num", None)
        if self._prints_lines:
            metrics = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in metrics.items()}
        if isinstance(stage, Stage) and "speed/images_per_second" in stage.extra_metrics:
            metrics["img/s"] = f"{stage.extra_metrics['speed/images_per_second'] * trainer.world_size:.3g}"
            metrics["wait"] = f"{stage.extra_metrics['speed/data_wait']:.0%}"
        return metrics

"""How far a run is: a bar in a terminal, lines in a file."""

import sys
import time
from datetime import timedelta
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """Steps, time left, loss, images a second on all ranks, share of time spent waiting for data.

    In a terminal one line that is redrawn about twice a second; elsewhere, as in a job's log, a line every
    `seconds`.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        super().__init__(refresh_rate=5)
        self.seconds = seconds
        self._lines = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lines where nobody can see a bar."""
        super().setup(trainer, pl_module, stage)
        self._lines = trainer.is_global_zero and not sys.stdout.isatty()
        if self._lines:
            self.disable()

    def on_train_start(self, *args: Any) -> None:
        """The clock starts; time left is counted from this run's first step on."""
        super().on_train_start(*args)
        self._begun = self._said = time.monotonic()
        self._first = args[0].global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # type: ignore[override]
        """Redraw, or say a line when it is time."""
        super().on_train_batch_end(trainer, pl_module, *args)
        now = time.monotonic()
        if self._lines and now - self._said >= self.seconds:
            self._said = now
            print(self._line(trainer, pl_module, now - self._begun), flush=True)

    def _line(self, trainer: Trainer, stage: LightningModule, elapsed: float) -> str:
        step, last = trainer.global_step, trainer.max_steps
        left = timedelta(seconds=round(elapsed / (step - self._first) * (last - step)))
        said = "  ".join(f"{name} {value}" for name, value in self.get_metrics(trainer, stage).items())
        return f"step {step:,} of {last:,}  {left} left  {said}"

    def get_metrics(self, trainer: Trainer, stage: LightningModule) -> dict[str, int | str | float]:  # type: ignore[override]
        """Without the logger's version number, which says nothing here; with speed where it is measured."""
        metrics = super().get_metrics(trainer, stage)
        metrics.pop("v_num", None)
        if self._lines:
            metrics = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in metrics.items()}
        extra_metrics = getattr(stage, "notes", {})
        if "speed/images_per_second" in extra_metrics:
            metrics["img/s"] = f"{extra_metrics['speed/images_per_second'] * trainer.world_size:.3g}"
            metrics["wait"] = f"{extra_metrics['speed/data_wait']:.0%}"
        return metrics

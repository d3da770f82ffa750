"""The progress bar of a run."""

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """Steps, time left, loss; one line that is redrawn about twice a second."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=5)

    def get_metrics(self, trainer: Trainer, stage: LightningModule) -> dict[str, int | str | float]:  # type: ignore[override]
        """Without the logger's version number, which says nothing here."""
        metrics = super().get_metrics(trainer, stage)
        metrics.pop("v_num", None)
        return metrics

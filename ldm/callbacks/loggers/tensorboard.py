"""The run in TensorBoard."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class TensorBoardLogger(Logger):
    """Numbers, images and the configuration in `folder`, by rank 0 alone, for `tensorboard --logdir runs`.

    A resumed run takes the place of the rows after its step.
    """

    name = version = None

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder
        self.config = ""
        self.writer: Any = None

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any], *_: Any) -> None:  # type: ignore[override]
        """The configuration, which goes out with the first row."""
        import yaml

        self.config = yaml.safe_dump(dict(params), sort_keys=False)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:  # type: ignore[override]
        """One row."""
        for name, value in metrics.items():
            self._open(step).add_scalar(name, value, step)

    @rank_zero_only
    def log_images(self, rows: Sequence[tuple[str, Sequence[PIL.Image.Image]]], step: int) -> None:
        """One panel a label, its slider is the step."""
        for label, preview_images in rows:
            strip = np.concatenate([np.asarray(p.convert("RGB")) for p in preview_images], axis=1)
            self._open(step).add_image(f"samples/{label}", strip, step, dataformats="HWC")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Everything onto the disk."""
        if self.writer is not None:
            self.writer.close()

    def _open(self, step: int) -> Any:
        """The writer; the file begins with the run's first row, for only that knows where it goes on."""
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(self.folder, purge_step=step)
            self.writer.add_text("config", f"```yaml\n{self.config}```", step)
        return self.writer

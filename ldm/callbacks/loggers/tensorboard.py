"""Metrics, images and config in TensorBoard.

Not Lightning's TensorBoardLogger: that one starts a new folder `version_N` with every process, so that a
resumed run appears as several runs with overlapping steps. Here a resumed run stays one run, and replaces the
points that it trains again. This one also logs preview images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class TensorBoardLogger(Logger):
    """Write to `folder`, on rank 0; show it by `tensorboard --logdir runs`."""

    name = version = None

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder
        self.config = ""
        self.writer: Any = None

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any], *_: Any) -> None:
        """Keep the config, which is written with the first row."""
        import yaml

        self.config = yaml.safe_dump(dict(params), sort_keys=False)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write the metrics of one step."""
        for name, value in metrics.items():
            self._open(step).add_scalar(name, value, step)

    @rank_zero_only
    def log_images(self, rows: Sequence[tuple[str, Sequence[PIL.Image.Image]]], step: int) -> None:
        """Write one panel per label, with a slider over steps."""
        for label, images in rows:
            strip = np.concatenate([np.asarray(image.convert("RGB")) for image in images], axis=1)
            self._open(step).add_image(f"samples/{label}", strip, step, dataformats="HWC")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Flush and close the file."""
        if self.writer is not None:
            self.writer.close()

    def _open(self, step: int) -> Any:
        """Return the writer, created at the first row: its step is where a resumed run continues."""
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(self.folder, purge_step=step)
            self.writer.add_text("config", f"```yaml\n{self.config}```", step)
        return self.writer

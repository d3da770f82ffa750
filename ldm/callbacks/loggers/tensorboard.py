"""Metrics, images and config in TensorBoard.

Not Lightning's TensorBoardLogger: that one starts a new folder `version_N` with every process, so that a
resumed run appears as several runs with overlapping steps. Here a resumed run stays one run, and replaces the
points that it trains again. This one also logs preview images.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

LOG = logging.getLogger(__name__)


class TensorBoardLogger(Logger):
    """Write to `folder`, on rank 0; show it by `tensorboard --logdir runs`.

    What cannot be written, as on a full disk, is lost here, with a warning, but not in metrics.csv; each
    later row is tried again.
    """

    name = version = None

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder
        self.config = ""
        self.writer: Any = None
        self._has_failed = False

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any], *_: Any) -> None:
        """Keep the config, which is written with the first row."""
        import yaml

        self.config = yaml.safe_dump(dict(params), sort_keys=False)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write the metrics of one step."""
        self._try(step, lambda writer: [writer.add_scalar(k, value, step) for k, value in metrics.items()])

    @rank_zero_only
    def log_images(self, rows: Sequence[tuple[str, Sequence[PIL.Image.Image]]], step: int) -> None:
        """Write one panel per label, with a slider over steps."""

        def add_images(writer: Any) -> None:
            for label, images in rows:
                strip = np.concatenate([np.asarray(image.convert("RGB")) for image in images], axis=1)
                writer.add_image(f"samples/{label}", strip, step, dataformats="HWC")

        self._try(step, add_images)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Flush and close the file."""
        if self.writer is not None:
            self._try(0, lambda writer: writer.close())

    def _try(self, step: int, action: Callable[[Any], object]) -> None:
        """Run `action` on the writer; after an OSError, warn once and let the next action open a new file."""
        try:
            action(self._open(step))
            self._has_failed = False
        except OSError as error:
            if not self._has_failed:
                LOG.warning("%s cannot be written (%s): metrics.csv continues", self.folder, error)
            self.writer, self._has_failed = None, True

    def _open(self, step: int) -> Any:
        """Return the writer, created at the first row: its step is where a resumed run continues."""
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            threading.excepthook = _report_other_threads
            self.writer = SummaryWriter(self.folder, purge_step=step)
            self.writer.add_text("config", f"```yaml\n{self.config}```", step)
        return self.writer


def _report_other_threads(args: threading.ExceptHookArgs) -> None:
    """Report exceptions of threads, but not the OSError of TensorBoard's, which the next row raises."""
    if not (type(args.thread).__name__ == "_AsyncWriterThread" and isinstance(args.exc_value, OSError)):
        threading.__excepthook__(args)

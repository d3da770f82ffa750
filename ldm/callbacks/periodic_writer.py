"""The base class of callbacks that write a file every so many steps."""

import logging
from abc import ABC, abstractmethod
from typing import Any

from lightning import Callback, Trainer

from ldm.errors import UserError, WriteError
from ldm.stages.base import Stage

LOG = logging.getLogger(__name__)


class PeriodicWriter(Callback, ABC):
    """Call `save` every `every_n_steps` and at the end of training, on rank 0.

    A file that cannot be written, as on a full disk, is reported by a warning: older files stay, training
    continues, and the next file is tried when it is due. If the last one of a run cannot be written and is
    `required`, the run ends with a UserError, but after the other callbacks have written theirs.
    """

    every_n_steps: int
    required = True
    problem = ""
    """Why the latest file could not be written; empty if it was."""

    @abstractmethod
    def save(self, trainer: Trainer, stage: Stage) -> None:
        """Write the file of this step."""

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        """Save every `every_n_steps`."""
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step < trainer.max_steps:
            self._try_to_save(trainer, stage, "training continues, and the next one is tried when due")

    def on_train_end(self, trainer: Trainer, stage: Stage) -> None:
        """Save the last file."""
        self._try_to_save(trainer, stage, "it was the last one of this run")

    def on_fit_end(self, trainer: Trainer, stage: Stage) -> None:
        """Raise UserError if the last file is required and could not be written."""
        if self.problem and self.required:
            raise UserError(f"{self.problem}: fix that and start again with resume=auto")

    def _try_to_save(self, trainer: Trainer, stage: Stage, consequence: str) -> None:
        if not trainer.is_global_zero:
            return
        self.problem = ""
        try:
            self.save(trainer, stage)
        except WriteError as error:
            self.problem = error.problem
            LOG.warning("%s: %s", self.problem, consequence)

"""Metrics, images, config and checkpoints at Weights & Biases, whose failures never stop a run.

Not Lightning's WandbLogger: there an exception of the client or an unreachable server ends the training, a
requeued job appears as a new run unless its id is given, and checkpoints are uploaded for `ModelCheckpoint`
only. Here the run's folder keeps the id, and a failure is a warning after which only the CSV file continues.
"""

import logging
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import PIL.Image
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from ldm.atomic import write_file
from ldm.callbacks.checkpoint import newest_checkpoint
from ldm.errors import UserError
from ldm.typing import PositiveFloat

LOG = logging.getLogger(__name__)
VALID_ID = re.compile(r"[^/\\#?%:\s\x00-\x1f\ufffd]{1,128}")
"""What W&B accepts as a run's id."""
CLIENT_FOLDER = re.compile(r"(?:offline-)?run-(\d+_\d+)-(.+)")
"""Name of the client's folder of one start: its time, and the run's id."""
INTERRUPTED = 255
"""Exit status that W&B shows as "killed", as after Ctrl-C in a script of its own."""


class WandbLogger(Logger):
    """Log to one W&B run, on rank 0; docs/guide/metrics.md describes the metrics.

    Args:
        folder: the run's folder. Its `wandb_id` holds the W&B run's id, so that a requeued job continues that
            run; its `wandb/` holds the data to send.
        project, name: W&B project and display name.
        offline: keep everything in `folder` until `wandb sync` is run, as $WANDB_MODE=offline does.
        artifacts: upload each checkpoint.
        patience: seconds to wait for the server at the start and at the end.
    """

    name = version = None

    def __init__(
        self,
        folder: str,
        project: str,
        name: str,
        offline: bool = False,
        artifacts: bool = False,
        patience: PositiveFloat = 60.0,
    ) -> None:
        super().__init__()
        self.folder, self.project, self.title = Path(folder), project, name
        self.offline, self.artifacts, self.patience = offline, artifacts, patience
        self.run: Any = None
        self._failure_status = 1

    def check(self) -> None:
        """Raise UserError if W&B needs an account and none is logged in."""
        import wandb

        if self.offline or os.environ.get("WANDB_MODE", "online") != "online":
            return
        if not wandb.login(prompt=False, verify=False):
            raise UserError(
                "logger=wandb needs an account: run `wandb login` once, set WANDB_API_KEY, or log only to the"
                " run's folder with logger.wandb.offline=true"
            )

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any], *_: Any) -> None:
        """Start or resume the W&B run with this config; offline if the server does not answer."""
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {
            "project": self.project,
            "name": self.title,
            "id": self.run_id(),
            "dir": str(self.folder),
            "config": dict(params),
            "settings": wandb.Settings(silent=True, init_timeout=self.patience, finish_timeout=self.patience),
        }
        try:
            mode: dict[str, Any] = {"mode": "offline"} if self.offline else {"resume": "allow"}
            self.run = wandb.init(**options, **mode)
        except Exception as error:  # of any kind, as in _try
            self._warn(error, "its data are kept in the run's folder for `wandb sync`")
            self.run = _init_offline(options)
        self._try(lambda run: run.define_metric("step"))
        self._try(lambda run: run.define_metric("*", step_metric="step"))

    def run_id(self) -> str:
        """Return the W&B run's id: a sweep agent's, or the one kept in the run's folder."""
        if "WANDB_SWEEP_ID" in os.environ:
            return os.environ["WANDB_RUN_ID"]
        file = self.folder / "wandb_id"
        run_id = file.read_text(errors="replace").strip() if file.is_file() else ""
        if VALID_ID.fullmatch(run_id):
            return run_id
        earlier = self._earlier_id() if file.is_file() else ""
        run_id = earlier or uuid4().hex[:8]
        if file.is_file():
            source = f"{run_id}, the run that was last started here" if earlier else f"a new run, {run_id}"
            LOG.warning("%s does not hold the id of a W&B run: continuing as %s", file, source)
        write_file(file, f"{run_id}\n")
        return run_id

    def _earlier_id(self) -> str:
        """Return the W&B run's id from the folder that the client wrote at the last start; "" without one."""
        names = [path.name for path in (self.folder / "wandb").glob("*run-*_*-*")]
        matches = [match for name in names if (match := CLIENT_FOLDER.fullmatch(name))]
        return max(matches, key=lambda match: match[1])[2] if matches else ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log one row; "step" is the x axis, so that a resumed run may repeat steps."""
        self._try(lambda run: run.log({"step": step, **metrics}))

    @rank_zero_only
    def log_images(self, rows: Sequence[tuple[str, Sequence[PIL.Image.Image]]], step: int) -> None:
        """Log a gallery: one panel per label, with a slider over steps."""
        import wandb

        panels: dict[str, list[Any]] = {}
        for label, images in rows:
            panels.setdefault(f"samples/{label}", []).extend(wandb.Image(image) for image in images)
        self._try(lambda run: run.log({"step": step, **panels}))

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Upload the newest checkpoint if `artifacts` is set."""
        import wandb

        path = newest_checkpoint(checkpoint_callback.folder)
        if self.artifacts and self.run is not None and path is not None:
            artifact = wandb.Artifact(f"checkpoint-{self.run.id}", type="model")
            artifact.add_file(str(path))
            self._try(lambda run: run.log_artifact(artifact, aliases=["latest", path.stem]))

    @rank_zero_only
    def mark_preempted(self) -> None:
        """Tell W&B that the run will resume: a sweep gives it to the next agent, with its settings and id."""
        self._try(lambda run: run.mark_preempting())

    @rank_zero_only
    def mark_interrupted(self) -> None:
        """Let W&B show the run as killed, rather than as failed."""
        self._failure_status = INTERRUPTED

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Send the remaining data, for at most `patience` seconds."""
        exit_status = 0 if status == "success" else self._failure_status
        self._try(lambda run: run.finish(exit_code=exit_status))
        self.run = None

    def _try(self, action: Callable[[Any], Any]) -> None:
        """Run `action` on the W&B run; any exception ends logging to W&B, but not the training."""
        if self.run is None:
            return
        try:
            action(self.run)
        except Exception as error:
            self._warn(error, "nothing more is sent to it, metrics.csv continues")
            self.run = None

    def _warn(self, error: Exception, consequence: str) -> None:
        warnings.warn(f"Weights & Biases failed ({error}): {consequence}", stacklevel=2)


def _init_offline(options: Mapping[str, Any]) -> Any:
    """Return an offline W&B run; None if the client cannot write that either."""
    import wandb

    try:
        wandb.teardown()
        return wandb.init(**options, mode="offline")
    except Exception as error:
        warnings.warn(
            f"Weights & Biases cannot write offline either ({error}): only metrics.csv is written",
            stacklevel=3,
        )
        return None

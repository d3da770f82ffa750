"""The run at Weights & Biases, which may fail at any time without stopping it."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import PIL.Image
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from ldm.callbacks.checkpoint import newest_checkpoint
from ldm.errors import UserError


class WandbLogger(Logger):
    """Numbers, images and the configuration, by rank 0 alone; docs/guide/metrics.md names the numbers.

    Args:
        folder: the run's. `wandb_id` in it keeps the run's id, so that a requeued job goes on in the same
            run; `wandb/` holds what is sent.
        project, name: where it appears.
        offline: keep everything in `folder` until `wandb sync` is run. $WANDB_MODE=offline does the same.
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
        patience: float = 60.0,
    ) -> None:
        super().__init__()
        self.folder, self.project, self.title = Path(folder), project, name
        self.offline, self.artifacts, self.patience = offline, artifacts, patience
        self.run: Any = None

    def check(self) -> None:
        """UserError where an account is needed and none is known."""
        import wandb

        if self.offline or os.environ.get("WANDB_MODE", "online") != "online":
            return
        if not wandb.login(prompt=False, verify=False):
            raise UserError(
                "logger=wandb needs an account: run `wandb login` once, set WANDB_API_KEY, or keep everything"
                " here with logger.wandb.offline=true"
            )

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any], *_: Any) -> None:  # type: ignore[override]
        """Begin or go on, with the configuration; offline where the server does not answer."""
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {
            "project": self.project,
            "name": self.title,
            "id": self.identity(),
            "dir": str(self.folder),
            "config": dict(params),
            "settings": wandb.Settings(silent=True, init_timeout=self.patience, finish_timeout=self.patience),
        }
        try:
            how: dict[str, Any] = {"mode": "offline"} if self.offline else {"resume": "allow"}
            self.run = wandb.init(**options, **how)
        except Exception as error:  # of whatever kind, as in _try
            self._failed(error, "its data stay here for `wandb sync`")
            self.run = _offline(options)
        self._try(lambda run: run.define_metric("step"))
        self._try(lambda run: run.define_metric("*", step_metric="step"))

    def identity(self) -> str:
        """The run's id: a sweep agent's, or the one that the run's folder keeps."""
        if "WANDB_SWEEP_ID" in os.environ:
            return os.environ["WANDB_RUN_ID"]
        file = self.folder / "wandb_id"
        if not file.is_file():
            file.write_text(uuid4().hex[:8] + "\n")
        return file.read_text().strip()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:  # type: ignore[override]
        """One row; "step" is the x axis, so that a resumed run draws over its own tail."""
        self._try(lambda run: run.log({"step": step, **metrics}))

    @rank_zero_only
    def log_images(self, rows: Sequence[tuple[str, Sequence[PIL.Image.Image]]], step: int) -> None:
        """A gallery: one panel a label, its slider is the step."""
        import wandb

        panels: dict[str, list[Any]] = {}
        for label, preview_images in rows:
            panels.setdefault(f"samples/{label}", []).extend(wandb.Image(p) for p in preview_images)
        self._try(lambda run: run.log({"step": step, **panels}))

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Upload the newest checkpoint, where `artifacts` asks for it."""
        import wandb

        path = newest_checkpoint(checkpoint_callback.folder)
        if self.artifacts and self.run is not None and path is not None:
            artifact = wandb.Artifact(f"checkpoint-{self.run.id}", type="model")
            artifact.add_file(str(path))
            self._try(lambda run: run.log_artifact(artifact, aliases=["latest", path.stem]))

    @rank_zero_only
    def preempted(self) -> None:
        """Say that the run will go on: a sweep gives it to the next agent, with the same settings and id."""
        self._try(lambda run: run.mark_preempting())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Send what is left, for at most `patience` seconds."""
        self._try(lambda run: run.on_export(exit_code=int(status != "success")))
        self.run = None

    def _try(self, action: Callable[[Any], Any]) -> None:
        """A service's failure, of whatever kind, is no reason to lose a run; the CSV has the numbers."""
        if self.run is None:
            return
        try:
            action(self.run)
        except Exception as error:
            self._failed(error, "nothing more is sent there; metrics.csv goes on")
            self.run = None

    def _failed(self, error: Exception, then: str) -> None:
        warnings.warn(f"Weights & Biases failed ({error}): {then}", stacklevel=2)


def _offline(options: Mapping[str, Any]) -> Any:
    """A run that stays here; None where the client cannot write even that."""
    import wandb

    try:
        wandb.teardown()
        return wandb.init(**options, mode="offline")
    except Exception as error:
        warnings.warn(f"nor can Weights & Biases write here ({error}): metrics.csv goes on", stacklevel=3)
        return None

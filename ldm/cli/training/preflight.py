"""The checks before the first step, in one order for train.py, `ldm.cli.doctor` and `ldm.cli.submit`."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, cast

import torch
from lightning import Trainer
from omegaconf import DictConfig

from ldm.callbacks.checkpoint import list_checkpoints
from ldm.callbacks.loggers.wandb import WandbLogger
from ldm.cli.config.instantiate import instantiate
from ldm.cli.training import (
    config_checks,
    launcher,
    machine_checks,
    model_checks,
    resume_checks,
    run_config,
    setup,
)
from ldm.cli.training.memory_checks import check_memory
from ldm.data.datamodule import ShardDataModule
from ldm.data.shards.transfer import Unreachable
from ldm.errors import UserError
from ldm.interop import model_file
from ldm.stages import LatentDiffusionStage
from ldm.stages.base import Stage

Command = Literal["train", "doctor", "submit"]


@dataclass(frozen=True)
class Check:
    """A named check; `run` returns a short result, or raises UserError."""

    name: str
    run: Callable[[], str]
    needs: tuple[str, ...] = ()
    """Names of the checks whose results it uses."""


class Preflight:
    """The checks of one run, which also build the trainer, data and stage that train.py then uses.

    Args:
        command: "train" runs all checks that can stop a run; "doctor" also reports on the machine; "submit"
            runs those that a login node can do, without GPUs or downloads. It allocates only the first stage,
            whose hash is compared with that in the cached latents.
        launch: the number of processes that will train; None detects the launcher of this process.
    """

    trainer: Trainer
    data: ShardDataModule
    stage: Stage
    resume: Path | None
    changes: resume_checks.Changes

    def __init__(self, cfg: DictConfig, command: Command, launch: launcher.Launcher | None = None) -> None:
        self.cfg, self.command, self.launch = cfg, command, launch
        self.world_size = 1
        self.unreachable = False  # a login node may lack the network or the credentials for remote shards
        self.changes = resume_checks.Changes()

    def checks(self) -> Iterator[Check]:
        """Yield the checks in order."""
        yield Check("settings", self._check_settings)
        yield Check("run folder", self._check_folders)
        yield Check("processes", self._check_processes)
        if self.command == "doctor":
            yield Check("precision", lambda: machine_checks.describe_precision(self.cfg))
            yield Check("shared memory", lambda: machine_checks.check_shared_memory(self.cfg))
            yield Check("open files", machine_checks.describe_open_files)
        yield Check("trainer", self._build_trainer, needs=("processes",))
        yield Check("shards", self._check_shards)
        yield Check("weights", self._load_weights)
        yield Check("model and data", self._check_model_and_data, needs=("shards", "weights"))
        yield Check("disk", self._check_disk, needs=("weights",))
        yield Check(
            "checkpoint", self._check_checkpoint, needs=("run folder", "trainer", "shards", "weights")
        )
        yield Check("W&B", self._check_wandb)

    def run(self) -> None:
        """Run all checks without printing, up to the first UserError."""
        for check in self.checks():
            check.run()

    def _check_settings(self) -> str:
        config_checks.check_config(self.cfg)
        return f"batch size {self.cfg.data.global_batch_size}, {self.cfg.trainer.max_steps:,} steps"

    def _check_folders(self) -> str:
        config_checks.check_folders(self.cfg)
        if self.command == "submit" and self.cfg.resume in (None, "auto"):
            # the job script passes resume=auto; only the job verifies the checkpoint's hash
            paths = [path for _, path in list_checkpoints(Path(self.cfg.run) / "checkpoints")]
            self.resume = paths[-1] if paths else None
        else:
            self.resume = setup.find_checkpoint(self.cfg)
        return f"{self.cfg.run} can be written"

    def _check_processes(self) -> str:
        """Check that the processes divide the batch size evenly, and that their GPUs exist."""
        settings = run_config.to_dict(self.cfg.trainer)
        if self.launch is not None:
            launcher.merge_devices(settings, self.launch)
            launch, world_size = self.launch, self.launch.processes
        else:
            launch = launcher.detect()
            settings = launcher.apply_launcher(settings, launch)
            world_size = machine_checks.count_devices(settings) * settings["num_nodes"]
        batch_size = self.cfg.data.global_batch_size
        if batch_size % world_size:
            raise UserError(
                f"data.global_batch_size={batch_size} is not divisible by {world_size} processes: "
                f"use e.g. data.global_batch_size={max(round(batch_size / world_size), 1) * world_size}"
            )
        self.world_size = world_size
        if launch.program == "Lightning":
            return f"{world_size} on {settings['num_nodes']} node(s), {os.cpu_count()} CPU cores here"
        return str(launch)

    def _build_trainer(self) -> str:
        if self.command == "submit":  # the trainer needs GPUs, which a login node lacks
            loggers, callbacks = setup.build_loggers(self.cfg), setup.build_callbacks(self.cfg)
        else:
            self.trainer = setup.build_trainer(self.cfg)
            loggers, callbacks = self.trainer.loggers, self.trainer.callbacks  # type: ignore[attr-defined]
        if self.command == "train":
            setup.listen_for_signals(callbacks)
        return f"{len(callbacks)} callbacks, {len(loggers)} logger(s)"

    def _check_shards(self) -> str:
        """Check the shards; for "doctor", also read the first and last sample of the first and last shard."""
        self.data = instantiate(self.cfg.data)
        ranks = SimpleNamespace(global_rank=0, world_size=self.world_size)
        self.data.trainer = self.trainer if self.command == "train" else cast(Trainer, ranks)
        try:
            self.data.check(fetch=self.command != "submit")
        except Unreachable as error:
            if self.command != "submit":
                raise
            self.unreachable = True
            print(f"not checked here, since only the job may be able to read them: {error}", file=sys.stderr)
        return self.data.describe() if self.command == "doctor" else ""

    def _load_weights(self) -> str:
        if self.command != "submit":
            check_memory(self.cfg, self.world_size)
            self.stage = setup.build_stage(self.cfg)
            return f"all found, {sum(p.numel() for p in self.stage.parameters()):,} parameters"
        with torch.device("meta"):
            self.stage = instantiate(self.cfg.stage)
        if self.cfg.stage.init is not None:
            model_file.read_header(self.cfg.stage.init, setup.model_kind(self.cfg))
        if isinstance(self.stage, LatentDiffusionStage):
            self.stage.model.first_stage.to_empty(device="cpu")
            self.stage.load_first_stage()
        return ""

    def _check_model_and_data(self) -> str:
        if self.unreachable:
            return ""
        model_checks.check_model_and_data(self.stage, self.data, self.cfg.trainer.max_steps)
        return "fit each other"

    def _check_disk(self) -> str:
        return model_checks.check_disk_space(self.cfg, self.stage)

    def _check_checkpoint(self) -> str:
        """Check that the run can continue from its checkpoint, and find what has changed since."""
        if self.resume is None:
            return "starts at step 0"
        allowed, config = self.cfg.allow_changes, run_config.resolve_config(self.cfg, self._precision())
        checkpoint = model_checks.load_checkpoint(self.resume)
        self.changes = resume_checks.find_changes(checkpoint, self.resume, config, allowed)
        model_checks.check_checkpoint(checkpoint, self.resume, self.stage)
        resume_checks.check_optimizer_state(checkpoint, self.resume, instantiate(self.cfg.stage.optimizer))
        self.data.allow_changes = list(allowed)
        if not self.unreachable:
            self.changes.printed.extend(resume_checks.check_samples(checkpoint, self.data))
        return "; ".join([f"resumes from {self.resume}", *self.changes.printed])

    def _precision(self) -> str:
        return str(self.trainer.precision) if self.command != "submit" else "auto"

    def _check_wandb(self) -> str:
        loggers = [logger for logger in setup.build_loggers(self.cfg) if isinstance(logger, WandbLogger)]
        for logger in loggers:
            logger.check()
        if not loggers:
            return "not used (logger=wandb enables it)"
        mode = "offline" if loggers[0].offline else os.environ.get("WANDB_MODE", "online")
        return "an API key is set, not verified with the server" if mode == "online" else mode

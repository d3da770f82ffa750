"""Look at the machine before a long run: `python -m ldm.cli.doctor experiment=NAME [key=value ...]`."""

import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ldm.callbacks.loggers.wandb import WandbLogger
from ldm.cli.config.command import command, user_message
from ldm.cli.config.instantiate import instantiate
from ldm.cli.training import launcher, preflight, setup
from ldm.data.shards.reader import open_shards
from ldm.errors import UserError
from ldm.stages.base import Stage


@command("train")
def main(cfg: DictConfig) -> None:
    """Check what an experiment needs here, one line each, and what to do; exit status 2 if it cannot run."""
    broken = 0
    for name, check in list(checks(cfg)):
        try:
            said = check()
        except Exception as error:  # whatever one line runs into, the others have their say
            said = f"NO: {user_message(error) or f'{type(error).__name__}: {error}'}"
            broken += 1
        print(f"{name:<14} {said}", flush=True)
    if broken:
        raise UserError(f"{cfg.name} cannot run here, see the {broken} line(s) that say NO")
    print(f"{cfg.name} can run here: python train.py {' '.join(sys.argv[1:])}")


def checks(cfg: DictConfig) -> Iterator[tuple[str, Callable[[], str]]]:
    """Name and check; a check answers in words or raises UserError."""
    stages: list[Stage] = []

    def weights() -> str:
        stage = instantiate(cfg.stage)
        stage.load_pretrained()
        stages.append(stage)
        return f"all found, {sum(p.numel() for p in stage.parameters()):,} parameters"

    def files() -> str:
        preflight.folder(cfg.run)
        return preflight.space(cfg, stages[0]) if stages else "not known before all weights are found"

    yield "settings", lambda: settings(cfg)
    yield "processes", lambda: processes(cfg)
    yield "precision", lambda: device(cfg)
    yield "shared memory", lambda: shared_memory(cfg)
    yield "open files", open_files
    yield "shards", lambda: shards(cfg)
    yield "weights", weights
    yield "disk", files
    yield "checkpoint", lambda: checkpoint(cfg, stages)
    yield "W&B", lambda: account(cfg)


def settings(cfg: DictConfig) -> str:
    """The numbers' ranges."""
    preflight.settings(cfg)
    return f"batch {cfg.data.global_batch_size}, {cfg.trainer.max_steps:,} steps"


def processes(cfg: DictConfig) -> str:
    """Who starts them, and whether the batch divides."""
    found = launcher.detect()
    wanted: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    placed = launcher.apply_launcher(wanted, found)
    total = devices(placed) * placed["num_nodes"]
    if cfg.data.global_batch_size % total:
        raise UserError(f"data.global_batch_size={cfg.data.global_batch_size} does not divide over {total}")
    if found.program == "Lightning":
        return f"{total} on {placed['num_nodes']} node(s), {os.cpu_count()} CPU cores here"
    return str(found)


def devices(placed: dict[str, Any]) -> int:
    """Processes a node, in all the ways in which the trainer is told: auto, -1, 2, [0, 2], "0,2"."""
    given = placed["devices"]
    if given in ("auto", -1, "-1"):
        return 1 if placed["accelerator"] == "cpu" else max(torch.cuda.device_count(), 1)
    if isinstance(given, str):
        given = [part for part in given.split(",") if part.strip()] if "," in given else int(given)
    number = given if isinstance(given, int) else len(given)
    if number < 1:
        raise UserError(f"trainer.devices={placed['devices']} is no process at all: give auto, or 1 or more")
    return number


def device(cfg: DictConfig) -> str:
    """What the numbers are computed in."""
    precision = cfg.trainer.precision
    if precision == "auto":
        precision = setup.precision(cfg.trainer.accelerator)
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{precision} on {', '.join(names) or 'the CPU'}"


def shared_memory(cfg: DictConfig) -> str:
    """Whether the batches that loader workers hold ready fit into /dev/shm; a bus error later if not."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return "no /dev/shm on this system"
    data = cfg.data
    needed = 3 * data.num_workers * data.global_batch_size * data.size**2 * 3
    free = shutil.disk_usage(place).free
    said = f"{free / 2**30:.1f} GiB free, at most {needed / 2**30:.1f} GiB wanted"
    if needed > free:
        raise UserError(
            f"{said}: give the container --shm-size={2 * needed >> 30 or 1}g, or fewer data.num_workers"
        )
    return said


def open_files() -> str:
    """The limit on open files, which train.py raises as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 0 or soft >= setup.OPEN_FILES:
        return f"at most {soft:,} a process" if soft >= 0 else "as many as a process wants"
    if 0 <= hard < setup.OPEN_FILES:
        return (
            f'few: {hard:,} a process, {setup.OPEN_FILES:,} are enough for any run; after "Too many open '
            'files" give fewer data.num_workers, or ask for a higher `ulimit -Hn`'
        )
    return f"at most {soft:,} a process, train.py raises it to {setup.OPEN_FILES:,}"


def shards(cfg: DictConfig) -> str:
    """Whether the first and the last sample of the training and validation shards can be read."""
    data = instantiate(cfg.data)
    preflight.shards(data)
    said = []
    for spec in (data.shards, data.val_shards):
        if spec is not None:
            opened = open_shards(spec)
            for number in (0, len(opened) - 1):
                shard, rows = opened[number], int(opened.counts[number])
                for row in {0, rows - 1} if rows else ():
                    shard.sample(row)
            said.append(f"{int(opened.counts.sum()):,} samples in {len(opened)} shard(s) of {spec}")
    return "; ".join(said)


def checkpoint(cfg: DictConfig, stages: list[Stage]) -> str:
    """Where the run begins."""
    path = setup.checkpoint(cfg)
    if path is not None and stages:
        preflight.resumable(path, stages[0])
    return f"goes on from {path}" if path else "begins anew"


def account(cfg: DictConfig) -> str:
    """Whether W&B is asked for, and who is logged in."""
    loggers = [instantiate(c) for c in cfg.logger.values() if c is not None]
    found = [logger for logger in loggers if isinstance(logger, WandbLogger)]
    for logger in found:
        logger.check()
    if not found:
        return "not asked for (logger=wandb)"
    mode = "offline" if found[0].offline else os.environ.get("WANDB_MODE", "online")
    return "a key is here, the server was not asked whether it is good" if mode == "online" else mode


if __name__ == "__main__":
    main()

"""Write docs/guide/error_messages.md from `tests.support.mistakes`: `python -m tests.support.error_messages`.

Run it after rewording a message: tests/cli/test_mistakes.py compares the page with the present messages.
"""

import os
import re
import shlex
import shutil
import sys
import tempfile
from collections import namedtuple
from collections.abc import Callable
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from unittest.mock import patch

import torch
import wandb
from PIL import Image

import sample
import train
from ldm.cli import compare, encode_latents, pack, submit
from ldm.cli.training import run_lock
from ldm.data.demo.scenes import DemoScenes
from ldm.data.prepare.write_shards import write_shard, write_shards
from ldm.interop import model_file
from tests.support.command_line import run_command
from tests.support.mistakes import SECTIONS, Mistake

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "error_messages.md"
HEADER = """# Error messages

A mistake ends a command with one line on stderr and exit status 2, before any work starts. Each entry shows a
command and its message; `...` replaces what depends on the machine.

This page is generated from `tests/support/mistakes.py`: do not edit it, but run
`python -m tests.support.error_messages`.
"""
COMMANDS: dict[str, Callable[[], None]] = {
    "train.py": train.main,
    "sample.py": sample.main,
    "python -m ldm.cli.submit": submit.main,
    "python -m ldm.cli.encode_latents": encode_latents.main,
    "python -m ldm.cli.pack": pack.main,
    "python -m ldm.cli.compare": compare.main,
}
NEW_RUN = ("train.py", "python -m ldm.cli.submit")
"""Commands that write into a run's folder."""
TABLES = {
    "comma": "path,caption\na.jpg,a red circle, left of a blue square\n",
    "short": "path;caption;source\na.jpg;a red circle\n",
    "quote": 'path,caption\na.jpg,a red circle\nb.jpg,"a blue square\n',
    "twice": "path,caption,caption\na.jpg,a circle,a red circle\n",
    "header": "path,caption\n",
    "other": "file,text\na.jpg,a red circle\n",
}
Usage = namedtuple("Usage", "total used free")


def prepare_files(root: Path) -> None:
    """Fill a folder with images, a run of stage 1, and files that are not what their names say."""
    write_shards(DemoScenes("train", 12), root / "images")
    words = ["experiment=debug/ae", f"data.shards={root / 'images'}", f"run={root / 'ae'}"]
    status, _, err = run_command(train.main, *words, "trainer.max_steps=5")
    assert status == 0, err
    checkpoint = root / "ae" / "checkpoints" / "step00000005.ckpt"
    (root / "cut.ckpt").write_bytes(checkpoint.read_bytes()[:5000])
    (root / "text.ckpt").write_text("not this")
    (root / "latin.txt").write_bytes("ein grüner Kreis".encode("latin-1"))
    torch.save({"weight": torch.zeros(2)}, root / "foreign.ckpt")
    tensors, config, header = model_file.load(root / "ae" / "autoencoder.safetensors", "autoencoder")
    tensors["latent_mean"][0] = float("nan")
    model_file.save(root / "nan.safetensors", tensors, config, "autoencoder", header)
    (root / "samples").mkdir()
    (root / "samples" / "samples.json").write_text('{"scale": 2.0}')
    Image.new("RGB", (64, 64)).save(root / "samples" / "0000_000000.png")
    (root / "empty").mkdir()
    (root / "file").touch()
    image = BytesIO()
    Image.new("RGB", (64, 64)).save(image, "PNG")
    (root / "captionless").mkdir()
    samples = [(f"{i:09d}", {"png": image.getvalue()}) for i in range(8)]
    write_shard(root / "captionless" / "00000.tar", samples)
    for name, rows in TABLES.items():
        (root / f"{name}.csv").write_text(rows)


def run_mistake(mistake: Mistake, files: Path, run: Path) -> tuple[int, str]:
    """Make a mistake, on a machine without W&B's key, sbatch and GPUs; return exit status and stderr."""
    words = [word.replace("{files}", str(files)).replace("{run}", str(run)) for word in mistake.words]
    if mistake.command in NEW_RUN and not any(word.startswith("run=") for word in words):
        words.append(f"run={run}")
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_MODE"}
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, environment | dict(mistake.environment), clear=True))
        stack.enter_context(patch.object(wandb, "login", lambda prompt, verify: False))
        stack.enter_context(patch.object(torch.cuda, "device_count", lambda: mistake.gpus))
        if mistake.free_bytes is not None:
            usage = Usage(10**9, 10**9, mistake.free_bytes)
            stack.enter_context(patch.object(shutil, "disk_usage", lambda _: usage))
        if mistake.command.endswith("submit"):
            stack.enter_context(patch.dict(os.environ, PATH=str(files / "empty")))
        if mistake.locked:
            stack.enter_context(run_lock.hold(str(run)))
        status, _, err = run_command(COMMANDS[mistake.command], *words)
    return status, err


def format_entry(mistake: Mistake, message: str, files: Path, run: Path) -> str:
    """Return the page's entry: title, command and message, without the paths of this machine."""
    python = "" if mistake.command.startswith("python") else "python "
    words = [word.replace("{files}", "FOLDER").replace("{run}", "runs/NAME") for word in mistake.words]
    message = message.replace(str(run), "runs/NAME").replace(str(run.parent), "runs")
    message = message.replace(str(files), "FOLDER")
    for pattern in (*mistake.hidden, r"\b(?=[0-9a-f]*\d)[0-9a-f]{12,}\b"):
        message = re.sub(pattern, "...", message.strip())
    command = f"{python}{mistake.command} {shlex.join(words)}"
    comment = f"# {mistake.machine}\n" if mistake.machine else ""
    return f"**{mistake.title}**\n\n```\n{comment}$ {command}\n{message}\n```\n"


def build_page(root: Path) -> str:
    """Return the page, after making every mistake in the folder `root`."""
    files, run = root / "files", root / "runs" / "run"
    run.parent.mkdir()
    prepare_files(files)
    parts = [HEADER]
    for section, mistakes in SECTIONS.items():
        parts.append(f"## {section}\n")
        for mistake in mistakes:
            status, err = run_mistake(mistake, files, run)
            assert status == 2 and err.count("\n") == 1, f"{mistake.title}: {err}"
            parts.append(format_entry(mistake, err, files, run))
            shutil.rmtree(run, ignore_errors=True)
    return "\n".join(parts)


def main() -> None:
    """Write the page."""
    with tempfile.TemporaryDirectory() as folder:
        page = build_page(Path(folder).resolve())
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page)
    print(f"wrote {PAGE}", file=sys.stderr)


if __name__ == "__main__":
    main()

"""Commands that are interrupted, or cannot write, as a user types them in processes of their own."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

ROOT = Path(__file__).parents[2]
AE = ("train.py", "experiment=debug/ae")
SMALL = ("trainer.max_steps=8", "callbacks.checkpoint.every_n_steps=2", "callbacks.images.every_n_steps=2")
LIMIT = 300.0
"""Seconds after which a command is killed."""


@dataclass(frozen=True)
class Command:
    """A command line; {files} is the folder of prepared files, {out} what the command writes to."""

    words: Sequence[str]
    writes: bool = True

    def arguments(self, files: Path, out: Path) -> list[str]:
        """Return the words for these folders."""
        return [word.format(files=files, out=out) for word in self.words]


COMMANDS = {
    "train stage 1": Command(
        [*AE, *SMALL, "data.shards={files}/images", "run={out}", "resume=auto", "data.num_workers=1"]
    ),
    "train stage 2": Command(
        [
            "train.py",
            "experiment=debug/text",
            "callbacks=post_hoc",
            "callbacks.post_hoc.every_n_steps=2",
            *SMALL,
        ]
        + [
            "data.shards={files}/images",
            "first_stage={files}/ae/autoencoder.safetensors",
            "run={out}",
            "resume=auto",
        ]
    ),
    "sample": Command(
        [
            "sample.py",
            "ckpt={files}/text/latent_diffusion.safetensors",
            "prompts=[a red circle]",
            "n=24",
            "out={out}",
        ]
        + ["steps=4", "batch_size=2"]
    ),
    "pack": Command(
        ["-m", "ldm.cli.pack", "source=demo", "source.count=600", "shard_size=100", "workers=2", "out={out}"]
    ),
    "index": Command(["-m", "ldm.cli.index", "shards={files}/images", "out={out}", "sums=true", "workers=2"]),
    "verify": Command(
        ["-m", "ldm.cli.verify", "shards={files}/images", "out={out}/report.json", "workers=2"]
    ),
    "encode_latents": Command(
        [
            "-m",
            "ldm.cli.encode_latents",
            "first_stage={files}/ae/autoencoder.safetensors",
            "size=64",
            "out={out}",
        ]
        + ["shards={files}/images", "num_workers=1", "batch_size=4"]
    ),
    "evaluate": Command(
        [
            "-m",
            "ldm.cli.evaluate",
            "ckpt={files}/text/latent_diffusion.safetensors",
            "n=8",
            "steps=2",
            "out={out}",
        ]
    ),
    "ema": Command(
        ["-m", "ldm.cli.ema", "ckpt={files}/text/latent_diffusion.safetensors", "snapshots={files}/text/ema"]
        + ["length=0.1", "out={out}/ema.safetensors"]
    ),
    "expand_inputs": Command(
        [
            "-m",
            "ldm.cli.expand_inputs",
            "experiment=debug/text",
            "ckpt={files}/text/latent_diffusion.safetensors",
        ]
        + ["out={out}/expanded.safetensors"]
    ),
    "doctor": Command(
        ["-m", "ldm.cli.doctor", AE[1], "data.shards={files}/images", "run={out}/run"], writes=False
    ),
    "submit": Command(
        ["-m", "ldm.cli.submit", AE[1], "data.shards={files}/images", "run={out}", "tasks=1", "dry=true"]
    ),
    "compare": Command(
        [
            "-m",
            "ldm.cli.compare",
            "{files}/ae",
            "{files}/text",
            "--metric",
            "train/loss",
            "--out",
            "{out}/c.png",
        ]
    ),
    "benchmark": Command(
        ["-m", "ldm.cli.benchmark", "data", "benchmark.images=2", "benchmark.seconds=0.2"], writes=False
    ),
}
PREPARATION = [
    [
        "-m",
        "ldm.cli.pack",
        "source=demo",
        "source.count=64",
        "shard_size=16",
        "out={files}/images",
        "workers=1",
    ],
    [*AE, "data.shards={files}/images", "run={files}/ae", "trainer.max_steps=5"],
    ["train.py", "experiment=debug/text", "callbacks=post_hoc", "callbacks.post_hoc.every_n_steps=2"]
    + ["data.shards={files}/images", "first_stage={files}/ae/autoencoder.safetensors", "run={files}/text"],
]


@dataclass
class Ending:
    """How a command ended: its exit status, its output, and the seconds that it took."""

    status: int
    output: str
    seconds: float
    left_over: list[str]
    """Temporary files below its output folder, and processes that it started and left running."""


def prepare(files: Path, server: "Server") -> None:
    """Write the files that the commands read."""
    for words in PREPARATION:
        ending = server.run([word.format(files=files) for word in words], files)
        assert ending.status == 0, ending.output


class Server:
    """Runs commands one after another in forks of one process, `tests.support.command_server`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def _start(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.command_server"],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        return self._process

    def run(
        self,
        words: Sequence[str],
        out: Path,
        send: tuple[float, int] | None = None,
        log: Path | None = None,
    ) -> Ending:
        """Run a command to its end.

        Args:
            out: the folder that it writes.
            send: (seconds, signal): interrupts it and all processes that it has started after this time.
            log: gets its output; it must be given where the folder of `out` cannot be written.
        """
        server = self._start()
        assert server.stdin is not None and server.stdout is not None
        log = log or out.with_name(f"{out.name}.log")
        command = {"words": words, "environment": {"TMPDIR": str(log.parent)}, "log": str(log)}
        server.stdin.write(json.dumps(command) + "\n")
        server.stdin.flush()
        process, start = int(server.stdout.readline()), time.monotonic()
        timers = [threading.Timer(LIMIT, _send, (process, signal.SIGKILL))]
        if send is not None:
            timers.append(threading.Timer(send[0], _send, (process, send[1])))
        for timer in timers:
            timer.start()
        status = int(server.stdout.readline())
        for timer in timers:
            timer.cancel()
        seconds = time.monotonic() - start
        left_over = [*temporary_files(out), *_processes(process)]
        return Ending(status, log.read_text(errors="replace"), seconds, left_over)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()


def run(words: Sequence[str], folder: Path, number: int, when: Callable[[str], bool]) -> Ending:
    """Run a command in a process of its own; once `when` holds of its output, send a signal to all of it."""
    log, start = folder / "log", time.monotonic()
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            env=environment(folder),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # also if the tests ignore it
        )
    try:
        while not when(log.read_text(errors="replace")) and process.poll() is None:
            assert time.monotonic() < start + LIMIT, log.read_text()
            time.sleep(0.01)
        os.killpg(process.pid, number)
        status = process.wait(LIMIT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    left_over = [*temporary_files(folder), *_processes(process.pid)]
    return Ending(status, log.read_text(errors="replace"), time.monotonic() - start, left_over)


def _send(group: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.killpg(group, number)


def environment(temporary: Path) -> dict[str, str]:
    """Return the environment of a command, with the folder of its temporary files."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(temporary)}


def temporary_files(folder: Path) -> list[str]:
    """Return the hidden files in a folder: those that are being written."""
    return [str(path) for path in folder.rglob(".*")]


def _processes(session: int) -> list[str]:
    """Return the command lines of the processes of a session that still run a second later."""
    deadline = time.monotonic() + 5
    while found := [*_find_processes(session)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return found


def _find_processes(session: int) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            pass
    return found


def contents(out: Path) -> dict[str, str]:
    """Return a hash of each file whose content depends on the command alone."""
    suffixes = (".tar", ".npy", ".safetensors", ".png", ".json")
    return {
        str(path.relative_to(out)): hashlib.sha256(_content(path)).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.suffix in suffixes and path.is_file()
    }


def _content(path: Path) -> bytes:
    """Return a file's bytes; of a model file its header and tensors by name, since their order varies."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    with safe_open(path, framework="pt") as file:
        tensors = [(name, file.get_tensor(name).numpy().tobytes()) for name in sorted(file.keys())]
        return repr((sorted((file.metadata() or {}).items()), tensors)).encode()

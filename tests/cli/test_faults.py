"""Every command with a full disk, a read-only folder, Ctrl-C, SIGTERM, and output that nobody reads."""

import shutil
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from ldm.callbacks.checkpoint import newest_checkpoint
from ldm.cli import index, pack, verify
from ldm.data.demo.scenes import DemoScenes
from ldm.data.prepare.write_shards import write_shards
from tests.support import faults, tiny
from tests.support.command_line import run_command
from tests.support.disks import fill, read_only, small_disk
from tests.support.faults import COMMANDS
from tests.support.ranks import has_logged

MOMENTS = (0.1, 0.3, 0.5, 0.7, 0.9)
STATUSES = {"SIGINT": 130, "SIGTERM": 143}


@pytest.fixture(scope="module")
def server():
    server = faults.Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory, server) -> Path:
    """The files that the commands read."""
    folder = tmp_path_factory.mktemp("files")
    faults.prepare(folder, server)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(server, files, tmp_path_factory):
    """Return a function that runs a command without a fault, once: the seconds it takes, what it writes."""

    @cache
    def run(name: str) -> tuple[float, dict[str, str]]:
        out = tmp_path_factory.mktemp("uninterrupted") / "out"
        ending = server.run(COMMANDS[name].arguments(files, out), out)
        assert ending.status == 0 and not ending.left_over, ending
        return ending.seconds, faults.contents(out)

    return run


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", STATUSES)
@pytest.mark.parametrize("name", COMMANDS)
def test_interrupted(name, number, moment, server, files, uninterrupted, tmp_path):
    """The same command then completes what it wrote."""
    (seconds, expected), out = uninterrupted(name), tmp_path / "out"
    words = COMMANDS[name].arguments(files, out)
    ending = server.run(words, out, (moment * seconds, getattr(signal, number)))
    requeued = [75] if number == "SIGTERM" and name.startswith("train") else []
    at_its_end = -getattr(signal, number)  # the signal's own, once the interpreter is shutting down
    assert ending.status in (0, STATUSES[number], at_its_end, *requeued), ending
    assert "Traceback" not in ending.output and "Exception ignored" not in ending.output, ending.output
    assert ending.left_over == [], ending
    again = server.run(words, out)
    assert again.status == 0 and not again.left_over, again
    assert faults.contents(out) == expected


@pytest.mark.multiprocess
@pytest.mark.parametrize("number", STATUSES)
def test_pack_is_interrupted_while_its_workers_encode(number, tmp_path):
    """A sample of the sweep."""
    out = tmp_path / "out"
    words = [
        "-m",
        "ldm.cli.pack",
        "source=demo",
        "source.count=100000",
        "shard_size=100",
        "workers=2",
        f"out={out}",
    ]
    ending = faults.run(
        words, tmp_path, getattr(signal, number), lambda _: (out / "00000_stats.json").exists()
    )
    assert ending.status == STATUSES[number] and ending.left_over == [], ending
    assert "Traceback" not in ending.output and ("stopped by Ctrl-C" in ending.output) == (number == "SIGINT")
    assert len([*out.glob("*.tar")]) <= len([*out.glob("*_stats.json")]) + 1


LAUNCHERS = {
    "Lightning": (["trainer.devices=2", "trainer.strategy=ddp"], [], 130),
    "torchrun": ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"], 1),
    "a sweep": (["-m", "seed=1,2"], [], 130),
    "one process": ([], [], 130),
}


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ctrl_c_saves_the_step_of_all_ranks(launcher, server, files, tmp_path):
    """torchrun passes Ctrl-C on to ranks that already have it, and always exits with 1 and its own trace."""
    words, program, status = LAUNCHERS[launcher]
    run = tmp_path / "run"
    slow = "+callbacks.slow={_target_: tests.support.ranks.Slow, seconds: 0.05}"
    words = [*program, *faults.AE, f"data.shards={files}/images", f"run={run}", "resume=auto", slow, *words]
    words += ["trainer.max_steps=100000", "data.num_workers=1"]
    ending = faults.run(words, tmp_path, signal.SIGINT, lambda _: has_logged(run, 3)())
    assert ending.status == status and ending.left_over == [], ending
    checkpoint = newest_checkpoint(run / "checkpoints")
    assert (
        checkpoint is not None and f"saved step {int(checkpoint.stem[4:])}, exit status 130" in ending.output
    )
    assert int(checkpoint.stem[4:]) == max(tiny.read_column(run / "metrics.csv", "train/loss"))
    assert ending.output.count("press it again to end at once") == 1
    assert launcher == "torchrun" or "Traceback" not in ending.output, ending.output
    assert "seed=2" not in ending.output, "the sweep ends with it"


@pytest.mark.slow
def test_ctrl_c_while_the_libraries_are_imported(tmp_path):
    """Python's own list of imports tells when torch is being imported."""
    words = ["-X", "importtime", "train.py", "--help"]
    ending = faults.run(words, tmp_path, signal.SIGINT, lambda output: "torch._C" in output)
    assert ending.status == -signal.SIGINT and ending.output.endswith("stopped by Ctrl-C\n"), ending
    assert "Traceback" not in ending.output


def check_refused(ending: faults.Ending) -> None:
    assert ending.status == 2 and "Traceback" not in ending.output, ending
    assert ending.output.splitlines()[-1].startswith("error: "), ending.output
    assert ending.output.count("error: ") == 1 and ending.left_over == [], ending


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Two shards of synthetic scenes."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(DemoScenes("train", 8), folder, shard_size=4)
    return folder


WRITERS = {
    "pack": (pack.main, ["source=demo", "source.count=8", "shard_size=4", "workers=1", "out={out}"]),
    "index": (index.main, ["shards={shards}", "out={out}", "workers=1"]),
    "index, leave_out": (index.main, ["shards={shards}", "out={out}", "workers=1", "leave_out=true"]),
    "verify": (verify.main, ["shards={shards}", "out={out}/report.json", "workers=1"]),
}


@pytest.mark.parametrize("fault", ["full disk", "read-only folder"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_cannot_be_written(name, fault, shards, tmp_path):
    """A sample of the sweep: the disk is named, not the shards, and nothing is left in it."""
    main, words = WRITERS[name]
    (tmp_path / "disk").mkdir()
    is_full = fault == "full disk"
    with small_disk(tmp_path / "disk", 64) if is_full else read_only(tmp_path / "disk") as disk:
        out = disk / "out"
        if is_full:
            out.mkdir()
            fill(disk)
        status, _, err = run_command(main, *(word.format(shards=shards, out=out) for word in words))
        assert faults.temporary_files(disk) == [] and not [*out.glob("*.*")]
    reason = "No space left on device" if is_full else "Read-only file system"
    assert (
        status == 2 and reason in err.splitlines()[-1] and "corrupt" not in err and "Traceback" not in err
    ), err


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COMMANDS if COMMANDS[name].writes])
@pytest.mark.parametrize("share", [0.0, 0.5], ids=["full", "half full"])
def test_a_full_disk(name, share, server, files, uninterrupted, tmp_path):
    """Full from the start, or with half of the space that the command needs."""
    _, expected = uninterrupted(name)
    with small_disk(tmp_path / "disk", 65536) as disk:
        out = disk / "out"
        words = COMMANDS[name].arguments(files, out)
        assert server.run(words, out).status == 0
        needed = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        shutil.rmtree(out)
        filler = fill(disk, free=int(share * needed))
        log = tmp_path / "log"
        ending = server.run(words, out, log=log)
        check_refused(ending)
        filler.unlink()
        again = server.run(words, out, log=log)
        assert again.status == 0 and not again.left_over, again
        assert faults.contents(out) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COMMANDS if COMMANDS[name].writes])
def test_a_read_only_folder(name, server, files, tmp_path):
    (tmp_path / "folder").mkdir()
    with read_only(tmp_path / "folder") as folder:
        out = folder / "out"
        check_refused(server.run(COMMANDS[name].arguments(files, out), out, log=tmp_path / "log"))


@pytest.mark.slow
@pytest.mark.parametrize("output", ["| true", "> /dev/full", ">&-", "2>&1 | true", ">&- 2>&-"])
@pytest.mark.parametrize("name", COMMANDS)
def test_standard_output_that_cannot_be_written(name, output, files, tmp_path):
    status, err = run_in_shell(COMMANDS[name].arguments(files, tmp_path / "out"), output, tmp_path)
    assert "Traceback" not in err and "Exception ignored" not in err, err
    assert status in ((0,) if ">&-" in output else (0, 141) if "| true" in output else (2,)), err


def run_in_shell(words: list[str], output: str, folder: Path) -> tuple[int, str]:
    """Run a command with its standard output sent to `output`; return its exit status and its stderr."""
    line = " ".join(f"'{word}'" for word in [sys.executable, *words])
    redirect = "" if "2>" in output else f"2> '{folder}/err'"
    script = f"{line} {redirect} {output}; echo status ${{PIPESTATUS[0]}} >&3"
    done = subprocess.run(
        ["bash", "-c", f"exec 3>'{folder}/status'; {script}"],
        cwd=faults.ROOT,
        env={**faults.environment(folder)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    err = (folder / "err").read_text() if redirect else done.stderr
    return int((folder / "status").read_text().split()[1]), err


@pytest.mark.parametrize(("output", "expected"), [("| true", 141), ("> /dev/full", 2), (">&- 2>&-", 0)])
def test_help_without_a_reader(output, expected, tmp_path):
    """A sample of the sweep."""
    status, err = run_in_shell(["-m", "ldm.cli.pack", "--help"], f"{output}", tmp_path)
    lines = err.splitlines()
    assert status == expected and len(lines) == (expected == 2), err
    assert not lines or lines[0].startswith(
        "error: standard output cannot be written (No space left on device)"
    )

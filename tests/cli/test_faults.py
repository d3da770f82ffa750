"""Every command with a full disk, a read-only folder, Ctrl-C, SIGTERM, and output that nobody reads."""

import shutil
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.support import faults
from tests.support.disks import fill, read_only, small_disk
from tests.support.faults import COMMANDS

MOMENTS = (0.1, 0.3, 0.5, 0.7, 0.9)
STATUSES = {"SIGINT": (130, -signal.SIGINT), "SIGTERM": (143, -signal.SIGTERM)}
"""Exit statuses after a signal; a negative one is the signal's own, before the command has begun."""
LINES = ("stopped by Ctrl-C", "asked to stop: ", "Ctrl-C: saving after this step")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """The files that the commands read."""
    folder = tmp_path_factory.mktemp("files")
    faults.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(files, tmp_path_factory):
    """Return a function that runs a command without a fault, once: the seconds it takes, what it writes."""

    @cache
    def run(name: str) -> tuple[float, dict[str, str]]:
        out = tmp_path_factory.mktemp("uninterrupted") / "out"
        ending = faults.run(COMMANDS[name].arguments(files, out), out)
        assert ending.status == 0 and not ending.left_over, ending
        return ending.seconds, faults.contents(out)

    return run


def check_interrupted(name: str, files: Path, out: Path, number: str, seconds: float, expected) -> None:
    """Interrupt a command, check how it ends, and that the same command then completes what it wrote."""
    words = COMMANDS[name].arguments(files, out)
    ending = faults.run(words, out, (seconds, getattr(signal, number)))
    statuses = (*STATUSES[number], *([75] if number == "SIGTERM" and name.startswith("train") else []))
    assert ending.status in (*statuses, 0), ending
    assert "Traceback" not in ending.output and "Exception ignored" not in ending.output, ending.output
    assert ending.left_over == [], ending
    again = faults.run(words, out)
    assert again.status == 0 and not again.left_over, again
    if expected is not None:
        assert faults.contents(out) == expected


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", STATUSES)
@pytest.mark.parametrize("name", COMMANDS)
def test_interrupted(name, number, moment, files, uninterrupted, tmp_path):
    seconds, expected = uninterrupted(name)
    check_interrupted(name, files, tmp_path / "out", number, moment * seconds, expected)


@pytest.mark.multiprocess
@pytest.mark.parametrize("number", STATUSES)
def test_pack_is_interrupted_while_its_workers_encode(number, tmp_path):
    """A sample of the sweep."""
    out = tmp_path / "out"
    words = COMMANDS["pack"].arguments(tmp_path, out)
    words[words.index("source.count=600")] = "source.count=100000"
    ending = faults.run(
        words, out, (0.1, getattr(signal, number)), lambda: (out / "00000_stats.json").exists()
    )
    assert ending.status == STATUSES[number][0] and ending.left_over == [], ending
    assert "Traceback" not in ending.output and ("stopped by Ctrl-C" in ending.output) == (number == "SIGINT")
    assert len([*out.glob("*.tar")]) <= len([*out.glob("*_stats.json")]) + 1


def check_refused(ending: faults.Ending) -> None:
    assert ending.status == 2 and "Traceback" not in ending.output, ending
    assert ending.output.splitlines()[-1].startswith("error: "), ending.output
    assert ending.output.count("error: ") == 1 and ending.left_over == [], ending


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COMMANDS if COMMANDS[name].writes])
@pytest.mark.parametrize("share", [0.0, 0.5], ids=["full", "half full"])
def test_a_full_disk(name, share, files, uninterrupted, tmp_path):
    """Full from the start, or with half of the space that the command needs."""
    _, expected = uninterrupted(name)
    with small_disk(tmp_path / "disk", 65536) as disk:
        out = disk / "out"
        words = COMMANDS[name].arguments(files, out)
        assert faults.run(words, out).status == 0
        needed = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        shutil.rmtree(out)
        filler = fill(disk, free=int(share * needed))
        log = tmp_path / "log"
        ending = faults.run(words, out, log=log)
        check_refused(ending)
        filler.unlink()
        again = faults.run(words, out, log=log)
        assert again.status == 0 and not again.left_over, again
        assert faults.contents(out) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COMMANDS if COMMANDS[name].writes])
def test_a_read_only_folder(name, files, tmp_path):
    (tmp_path / "folder").mkdir()
    with read_only(tmp_path / "folder") as folder:
        out = folder / "out"
        check_refused(faults.run(COMMANDS[name].arguments(files, out), out, log=tmp_path / "log"))


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

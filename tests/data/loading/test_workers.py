"""Workers of a process that is killed, or receives a scheduler's signal to stop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ldm.data.prepare.write_shards import write_shards
from tests.data.loading.test_worker_processes import RECORDS

ROOT = Path(__file__).parents[3]


def is_alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.multiprocess
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_workers_ignore_signals_and_exit_with_the_training_process(tmp_path: Path) -> None:
    write_shards(RECORDS, tmp_path, shard_size=16)
    command = [sys.executable, "-m", "tests.support.reads_forever", str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None and reader.stderr is not None
        children = [int(word) for word in reader.stdout.readline().split()]
        assert len(children) == 4  # two workers, their fork server, the resource tracker
        for signal_number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            for pid in children:
                os.kill(pid, signal_number)
        for _ in range(60):  # more than the workers prefetch
            assert reader.stdout.readline()
        assert all(map(is_alive, children))

        reader.kill()
        deadline = time.monotonic() + 20
        while any(map(is_alive, children)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(is_alive, children))
        assert "Traceback" not in reader.stderr.read()


@pytest.mark.multiprocess
def test_a_process_that_ends_with_an_error_ends_its_workers(tmp_path: Path) -> None:
    """They ignore SIGTERM, by which Python would end them, and wait."""
    write_shards(RECORDS, tmp_path, shard_size=16)
    command = [sys.executable, "-m", "tests.support.reads_forever", str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None and reader.stderr is not None
        children = [int(word) for word in reader.stdout.readline().split()]
        reader.stdout.close()
        try:
            assert reader.wait(30) != 0 and "BrokenPipeError" in reader.stderr.read()
        finally:
            reader.kill()
        deadline = time.monotonic() + 20
        while any(map(is_alive, children)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(is_alive, children))

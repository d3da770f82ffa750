"""Workers of a process that dies, or that a scheduler tells to stop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ldm.data.prepare.write_shards import write_shards
from tests.data.loading.test_worker_processes import SOURCE

ROOT = Path(__file__).parents[3]


def alive(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.multiprocess
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_workers_hear_no_signal_and_end_with_their_reader(tmp_path: Path) -> None:
    write_shards(SOURCE, tmp_path, shard_size=16)
    command = [sys.executable, "-m", "tests.support.reads_forever", str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None and reader.stderr is not None
        children = [int(word) for word in reader.stdout.readline().split()]
        assert len(children) == 4  # two workers, their server, the tracker of semaphores
        for told in (signal.SIGUSR1, signal.SIGTERM):
            for pid in children:
                os.kill(pid, told)
        for _ in range(60):  # more than workers fetch ahead
            assert reader.stdout.readline()
        assert all(map(alive, children))

        reader.kill()
        end = time.monotonic() + 20
        while any(map(alive, children)) and time.monotonic() < end:
            time.sleep(0.1)
        assert not any(map(alive, children))
        assert "Traceback" not in reader.stderr.read()

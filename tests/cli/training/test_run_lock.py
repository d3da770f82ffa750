"""One job a run."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from ldm.cli.training import run_lock
from ldm.errors import UserError

HOLDS = """
import os, sys, time
from ldm.cli import lock
with lock.held(sys.argv[1]):
    os.write(1, b"held\\n")  # in one piece, for two may write
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that trains into the folder."""
    words = [sys.executable, "-c", HOLDS, str(tmp_path)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_job_is_refused_and_after_a_kill_it_is_not(other, tmp_path):
    said = rf"run={tmp_path} is in use by process {other.pid} on {socket.gethostname()}: wait for its end or"
    with pytest.raises(UserError, match=said), run_lock.hold(str(tmp_path)):
        pass
    assert (tmp_path / "lock").exists(), "a job that is refused does not take it away"
    other.kill()
    other.wait()
    assert (tmp_path / "lock").exists(), "kill -9 left it, and it holds nobody up"
    with run_lock.hold(str(tmp_path)):
        assert (tmp_path / "lock").read_text().split()[:2] == [socket.gethostname(), str(os.getpid())]
    assert not (tmp_path / "lock").exists()


def test_a_requeued_job_passes_the_lock_of_its_lost_node(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with run_lock.hold(str(tmp_path)):
        with pytest.raises(UserError, match=r"on .* .SLURM job 7.: wait"), run_lock.hold(str(tmp_path)):
            pass
        monkeypatch.setattr(socket, "gethostname", lambda: "another-node")
        with run_lock.hold(str(tmp_path)):
            pass
        monkeypatch.setenv("SLURM_JOB_ID", "8")


def test_another_job_does_not(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with run_lock.hold(str(tmp_path)):
        monkeypatch.setattr(socket, "gethostname", lambda: "another-node")
        monkeypatch.setenv("SLURM_JOB_ID", "8")
        with pytest.raises(UserError, match="SLURM job 7"), run_lock.hold(str(tmp_path)):
            pass


def test_a_forked_worker_that_outlives_a_kill_does_not_keep_it(tmp_path):
    forks = 'os.fork() or (os.write(1, b"forked\\n"), time.sleep(60)); os.write'
    code = HOLDS.replace("os.write", forks)
    words = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert {process.stdout.readline() for _ in range(2)} == {"forked\n", "held\n"}
        process.kill()
        process.wait()
        with run_lock.hold(str(tmp_path)):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()


def test_rank_0_speaks_for_all(tmp_path):
    with run_lock.hold(str(tmp_path)), run_lock.hold(str(tmp_path), mine=False):
        pass


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def none(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", none)
    with run_lock.hold(str(tmp_path)):
        assert "lock cannot be locked here ([Errno 37] No locks available): let no second job" in caplog.text

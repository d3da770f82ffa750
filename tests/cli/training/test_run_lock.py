"""Only one job at a time writes into a run's folder."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from ldm.cli.training import run_lock
from ldm.errors import UserError

HOLDER = """
import os, sys, time
from ldm.cli.training import run_lock
with run_lock.hold(sys.argv[1]):
    os.write(1, b"locked\\n")  # in one piece, since two processes may write
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder's lock."""
    words = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_job_is_refused_until_the_first_is_killed(other, tmp_path):
    message = rf"run={tmp_path} is in use by process {other.pid} on {socket.gethostname()}: "
    with pytest.raises(UserError, match=message), run_lock.hold(str(tmp_path)):
        pass
    assert (tmp_path / "lock").exists(), "a refused job does not remove the file"
    other.kill()
    other.wait()
    assert (tmp_path / "lock").exists(), "kill -9 leaves the file, but not the lock"
    with run_lock.hold(str(tmp_path)):
        assert (tmp_path / "lock").read_text().split()[:2] == [socket.gethostname(), str(os.getpid())]
    assert not (tmp_path / "lock").exists()


def test_a_requeued_job_ignores_the_lock_of_its_lost_node(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with run_lock.hold(str(tmp_path)):
        with pytest.raises(UserError, match=r"on .* .SLURM job 7.: "), run_lock.hold(str(tmp_path)):
            pass
        monkeypatch.setattr(socket, "gethostname", lambda: "another-node")
        with run_lock.hold(str(tmp_path)):
            pass
        monkeypatch.setenv("SLURM_JOB_ID", "8")


def test_a_job_of_another_number_does_not(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with run_lock.hold(str(tmp_path)):
        monkeypatch.setattr(socket, "gethostname", lambda: "another-node")
        monkeypatch.setenv("SLURM_JOB_ID", "8")
        with pytest.raises(UserError, match="SLURM job 7"), run_lock.hold(str(tmp_path)):
            pass


def test_a_forked_worker_that_outlives_a_kill_does_not_keep_the_lock(tmp_path):
    forks = 'os.fork() or (os.write(1, b"forked\\n"), time.sleep(60)); os.write'
    code = HOLDER.replace("os.write", forks)
    words = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert {process.stdout.readline() for _ in range(2)} == {"forked\n", "locked\n"}
        process.kill()
        process.wait()
        with run_lock.hold(str(tmp_path)):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()


def test_rank_0_locks_for_all_ranks(tmp_path):
    with run_lock.hold(str(tmp_path)), run_lock.hold(str(tmp_path), rank_zero=False):
        pass


def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", fail)
    with run_lock.hold(str(tmp_path)):
        assert f"{tmp_path}/lock ([Errno 37] No locks available)" in caplog.text

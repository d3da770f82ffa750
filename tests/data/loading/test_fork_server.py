import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("code", "reported"),
    [
        ("import _multiprocessing as m; m.SemLock._rebuild(0, 1, 1, '/of-a-command-that-has-ended')", False),
        ("open('/nowhere')", True),
        ("1 / 0", True),
    ],
)
def test_only_a_semaphore_of_a_command_that_has_ended_is_no_error(code: str, reported: bool) -> None:
    words = [sys.executable, "-c", f"import ldm.data.loading.fork_server\n{code}"]
    ending = subprocess.run(words, capture_output=True, text=True)
    assert ending.returncode == 1 and ("Traceback" in ending.stderr) == reported, ending.stderr

"""Commands as a user types them, run in this process."""

import io
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch


def run_command(main: Callable[[], None], *words: object) -> tuple[int, str, str]:
    """Run a command's `main` with these arguments; return its exit status, stdout and stderr."""
    status, out, err = 0, io.StringIO(), io.StringIO()
    argv = ["train.py", *map(str, words)]
    with patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as error:
            status = int(error.code or 0)
    return status, out.getvalue(), err.getvalue()


def check_error(status: int, err: str, phrases: Sequence[str]) -> None:
    """Assert that a command ended with exit status 2 and one error line that contains these phrases."""
    assert status == 2, err
    message = err.splitlines()[-1]
    assert message.startswith("error: ") and all(phrase in message for phrase in phrases), err

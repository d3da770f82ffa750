"""Commands as a user types them, run in this process."""

import io
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

import pytest

import sample


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


def sample_py(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run sample.py with these arguments; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["sample.py", *words])
    try:
        sample.main()
    except SystemExit as error:
        return int(error.code or 0)
    return 0

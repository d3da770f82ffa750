"""Commands as a user types them."""

import sys

import pytest

import sample


def sample_py(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit status of sample.py with these words typed behind it."""
    monkeypatch.setattr(sys, "argv", ["sample.py", *words])
    try:
        sample.main()
    except SystemExit as error:
        return int(error.code or 0)
    return 0

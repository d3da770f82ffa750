"""How the process of a command ends."""

import errno
import io
import os
import signal
import sys

import pytest

from ldm.cli.config import process
from ldm.cli.config.command import user_errors
from ldm.errors import Diverged, UserError, WriteError


@pytest.fixture(autouse=True)
def _signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


ENDINGS = [
    (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
    (UserError("a is wrong: use b"), 2, "error: a is wrong: use b"),
    (Diverged("it diverged"), 3, "error: it diverged"),
    (
        WriteError("x cannot be written (full)", "free some"),
        2,
        "error: x cannot be written (full): free some",
    ),
    (
        OSError(errno.ENOSPC, "No space left on device", "run/x"),
        2,
        "error: run/x cannot be written (No space",
    ),
    (
        OSError(errno.ENOSPC, "No space left on device"),
        2,
        "error: standard output cannot be written (No space",
    ),
    (
        PermissionError(errno.EACCES, "Permission denied", "run/x"),
        2,
        "error: run/x cannot be opened (Permission",
    ),
    (SystemExit(75), 75, ""),
    (SystemExit(1), 1, ""),
]


@pytest.mark.parametrize(("error", "status", "line"), ENDINGS, ids=lambda value: repr(value)[:30])
def test_one_line_and_a_status(error, status, line, capsys):
    with pytest.raises(SystemExit) as exit, user_errors():
        raise error
    err = capsys.readouterr().err
    assert exit.value.code == status and err.startswith(line) and err.count("\n") == bool(line)


@pytest.mark.parametrize(
    "error", [KeyError("a bug"), FileNotFoundError(2, "no such file", "x"), BrokenPipeError()]
)
def test_a_bug_keeps_its_trace(error, monkeypatch):
    """As does a pipe between processes that breaks."""
    monkeypatch.setattr(process, "has_reader", lambda: True)
    with pytest.raises(type(error)), user_errors():
        raise error


def test_sigterm_removes_what_the_block_was_writing(tmp_path):
    from ldm.atomic import write_atomically

    with pytest.raises(SystemExit) as exit, user_errors(), write_atomically(tmp_path / "file"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert exit.value.code == 143 and list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL, "ignored on its way out"


def test_the_handler_is_removed_and_others_are_left_alone():
    with user_errors():
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    for own in (signal.SIG_IGN, lambda *_: None):
        signal.signal(signal.SIGTERM, own)
        with user_errors():
            assert signal.getsignal(signal.SIGTERM) == own
        assert signal.getsignal(signal.SIGTERM) == own


@pytest.mark.parametrize(
    ("variables", "line"), [({"RANK": "1"}, ""), ({"LOCAL_RANK": "0"}, "stopped by Ctrl-C\n")]
)
def test_only_the_first_rank_reports_ctrl_c(variables, line, monkeypatch, capsys):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit), user_errors():
        raise KeyboardInterrupt
    assert capsys.readouterr().err == line


def test_ctrl_c_during_the_imports_is_one_line_and_other_exceptions_keep_their_trace(capsys):
    import ldm.cli

    assert ldm.cli.sys.excepthook is process.report_interrupt or "pytest" in sys.modules
    process.report_interrupt(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"
    process.report_interrupt(ValueError, ValueError("a bug"), None)
    assert "ValueError: a bug" in capsys.readouterr().err


def test_a_pipe_without_a_reader(monkeypatch):
    reader, writer = os.pipe()
    saved = os.dup(1)
    try:
        os.dup2(writer, 1)
        assert process.has_reader()
        os.close(reader)
        assert not process.has_reader()
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        with pytest.raises(SystemExit) as exit, user_errors():
            os.write(1, b"a line")
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(writer)
    assert exit.value.code == 141


def test_a_closed_stream_whose_number_a_library_has_taken(monkeypatch):
    """Its file is left alone, and what Python prints is dropped."""
    library_file = os.fstat(1)
    monkeypatch.setattr(sys, "stdout", None)
    process.open_closed_streams()
    print("dropped")
    assert not sys.stdout.isatty() and sys.stdout.fileno() > 2 and os.fstat(1) == library_file
    os.close(sys.stdout.fileno())

"""Windows is refused in one sentence; on macOS nothing is used that only Linux has."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNIX_ONLY = ("fcntl", "grp", "pwd", "resource", "termios")
ON_WINDOWS = f"""
import runpy, sys

class NoUnix:
    def find_spec(self, name, *_):
        if name in {UNIX_ONLY}:
            raise ModuleNotFoundError(f"No module named {{name!r}}")

sys.meta_path.insert(0, NoUnix())
sys.platform = "win32"
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("script", ["train.py", "sample.py"])
def test_windows_is_refused_in_one_sentence(script):
    done = subprocess.run(
        [sys.executable, "-c", ON_WINDOWS, script, "experiment=debug/ae"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ldm runs on Linux and macOS") and done.stderr.count("\n") == 1
    assert "WSL2" in done.stderr


def test_every_command_starts_with_that_check(monkeypatch, capsys):
    """`python -m ldm.cli.NAME` runs the package's __init__.py first."""
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "ldm" / "cli" / "__init__.py"))
    assert caught.value.code == 2 and "WSL2" in capsys.readouterr().err


NOT_ON_MACOS = {
    "os": {
        "O_DIRECT", "O_TMPFILE", "copy_file_range", "eventfd", "fdatasync", "getrandom", "memfd_create",
        "pidfd_open", "posix_fadvise", "posix_fallocate", "sched_getaffinity", "sched_setaffinity", "setns",
        "splice", "unshare",
    },
    "resource": {"RUSAGE_THREAD", "prlimit"},
    "select": {"epoll"},
    "signal": {"SIGPWR", "SIGRTMAX", "SIGRTMIN", "pidfd_send_signal", "sigtimedwait", "sigwaitinfo"},
    "socket": {"AF_NETLINK", "AF_PACKET", "SOCK_CLOEXEC"},
    "time": {"CLOCK_BOOTTIME", "pthread_getcpuclockid"},
}  # fmt: skip
"""Names of the standard library that exist on Linux, not on macOS."""


def names_not_on_macos(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used = {(node.value.id, node.attr)}
        elif isinstance(node, ast.ImportFrom):
            used = {(node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Constant) and str(node.value).startswith(("/proc/", "/sys/")):
            found.append(str(node.value))
            continue
        else:
            continue
        found += [f"{module}.{name}" for module, name in used if name in NOT_ON_MACOS.get(str(module), ())]
    return found


def test_macos_has_everything_that_is_used():
    assert names_not_on_macos("import os\nos.sched_getaffinity(0)") == ["os.sched_getaffinity"]
    assert names_not_on_macos("from os import posix_fadvise\nopen('/proc/self')") != []
    paths = [*ROOT.glob("*.py"), *(ROOT / "ldm").rglob("*.py")]
    found = {str(path.relative_to(ROOT)): names_not_on_macos(path.read_text()) for path in paths}
    assert len(found) > 100 and {path: names for path, names in found.items() if names} == {}

"""The README tells the truth: its paths and names exist, and its commands compose."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldm.cli.composition import compose

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PLACES = ("ldm/", "configs/", "docs/", "tests/", "slurm/", ".ci/")


def text() -> str:
    return README.read_text() if README.is_file() else ""


def code() -> list[str]:
    """What stands in single backticks, outside of blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text(), flags=re.DOTALL))


def commands() -> Iterator[str]:
    for block in re.findall(r"```(?:bash|sh|shell|console)?\n(.*?)```", text(), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                yield shlex.join(words)


def names(file: Path) -> set[str]:
    """Everything that a module defines: `function`, `Class`, `Class.method`."""
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
    return found


def test_there_is_something_to_check():
    assert any(c.startswith("make demo") for c in commands())
    assert any("train.py" in c for c in commands())
    assert any(":" in c and c.startswith("ldm/") for c in code()), "the index from equations to files"


def test_every_path_exists():
    """`ldm/a/b.py`, or `ldm/a/b.py:name` for something that the file defines."""
    links = re.findall(r"\]\(([^)#:]+)\)", text()) + re.findall(r'src="([^":]+)"', text())
    paths = [c for c in code() if c.startswith(PLACES) and not re.search(r"[\s*<{]|\.\.\.", c)]
    for word in [*links, *paths]:
        path, _, name = word.partition(":")
        assert (ROOT / path).exists(), f"README names {path}, which does not exist"
        assert not name or name in names(ROOT / path), f"README names {name} in {path}, which lacks it"


def test_every_dotted_name_exists():
    for word in {c for c in code() if re.fullmatch(r"ldm(\.\w+)+", c)}:
        parts = word.split(".")
        for cut in range(len(parts), 0, -1):
            file = ROOT.joinpath(*parts[:cut])
            file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
            if file.is_file():
                rest = ".".join(parts[cut:])
                assert not rest or rest in names(file), f"README names {word}, which does not exist"
                break


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_every_command_composes(command):
    words = shlex.split(command)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert set(w for w in words[1:] if "=" not in w) <= set(targets)
    match = re.match(r"(?:\S*/)?python3? (?:-m ldm\.cli\.(\w+)|(train|sample)\.py)(?: |$)", command)
    if match:
        script = ROOT / f"{match[2]}.py" if match[2] else ROOT / "ldm" / "cli" / f"{match[1]}.py"
        assert script.is_file()
        overrides = [w for w in words[words.index(script.name if match[2] else f"ldm.cli.{match[1]}") + 1 :]]
        if not any(w.startswith("-") for w in overrides):
            compose(match[1] or match[2], overrides)

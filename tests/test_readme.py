"""The README tells the truth: its paths and names exist, its commands compose, and some pages' of docs do."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldm.cli import submit
from ldm.cli.config.compose import compose, sweep_points

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CLUSTER = ROOT / "docs" / "cluster.md"
NETWORKS = ROOT / "docs" / "networks.md"
PLACES = ("ldm/", "configs/", "docs/", "tests/", "slurm/", ".ci/")


def text(page: Path = README) -> str:
    return page.read_text() if page.is_file() else ""


def code() -> list[str]:
    """What stands in single backticks, outside of blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text(), flags=re.DOTALL))


def commands(page: Path = README) -> Iterator[str]:
    for block in re.findall(r"```(?:bash|sh|shell|console)?\n(.*?)```", text(page), flags=re.DOTALL):
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


def test_every_task_stands_in_a_command():
    tasks = {path.stem for path in (ROOT / "configs" / "task").glob("*.yaml")} - {"txt2img"}  # needs no word
    shown = {word for c in commands() for word in shlex.split(c)}
    assert {task for task in tasks if f"task={task}" not in shown} == set()


@pytest.mark.parametrize("command", sorted({*commands(), *commands(NETWORKS)}))
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


def words_of(section: str) -> list[list[str]]:
    """The overrides that stand together in a section's table of what can be said."""
    found = re.search(rf"## {section}\n.*?\| what \| words \|\n(.*?)\n\n", text(NETWORKS), flags=re.DOTALL)
    assert found is not None, section
    return [span.split() for span in re.findall(r"`([^`]+)`", found[1]) if "=" in span]


@pytest.mark.parametrize(
    ("section", "base"),
    [("First stages", "ae_vq_f8"), ("Denoisers", "ldm_f8_text"), ("Conditions", "ldm_f8_text")],
)
def test_the_words_of_networks_are_keys(section, base):
    for words in words_of(section):
        experiment = [] if words[0].startswith("experiment=") else [f"experiment={base}"]
        compose("train", [*experiment, "data.shards=a", "first_stage=b", *words])


JOBS = {"train": "train", "encode_latents": "encode_latents", "evaluate": "evaluate"}
"""What each job script hands its words to."""


def checked(command: str) -> bool:
    """Whether the words of a line of docs/cluster.md are for us, and then compose."""
    words = [word for word in shlex.split(command) if word != "..."]
    given = [w for w in words if "=" in w and not w.startswith("-")]
    if words[0] == "sbatch":
        script = next(w for w in words if w.endswith(".sbatch"))
        assert (ROOT / script).is_file()
        name = JOBS.get(Path(script).stem)
    elif "train.py" in words:
        name = "train"
    else:
        name = next((w.removeprefix("ldm.cli.") for w in words if w.startswith("ldm.cli.")), None)
    if name in (None, "compare"):
        return False
    if name == "submit":
        _, given = submit.split(given)
    for point in sweep_points(given) if "-m" in words and "train.py" in words else [given]:
        compose({"submit": "train", "doctor": "train"}.get(name, name), point, complete="..." not in command)
    return True


def test_what_a_cluster_is_told_composes():
    found = [command for command in commands(CLUSTER) if checked(command)]
    names = (
        "pack",
        "submit",
        "doctor",
        "torchrun",
        "encode_latents",
        "train.sbatch",
        "evaluate",
        "train.py -m",
    )
    assert all(any(name in command for command in found) for name in names), found
    first = next(commands(CLUSTER))
    assert first.startswith("git clone") and any("activate" in c for c in commands(CLUSTER))

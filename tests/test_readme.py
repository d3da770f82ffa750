"""README and docs are true: links, paths and names exist, commands compose, the index is complete."""

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
GUIDE = ROOT / "docs" / "guide"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
NETWORKS, CLUSTER, SAMPLING = (GUIDE / f"{name}.md" for name in ("networks", "cluster", "sampling"))
PAGES = [README, *(ROOT / f"{name}.md" for name in ("CONTRIBUTING", "CHANGELOG"))]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
GENERATED = GUIDE / "error_messages.md"
PROSE = [README, ROOT / "CONTRIBUTING.md", ARCHITECTURE, *sorted({*GUIDE.glob("*.md")} - {GENERATED})]
"""Pages whose paths, names and commands are checked."""
FOLDERS = ("ldm/", "configs/", "docs/", "tests/", "slurm/", "studies/", ".ci/")


def text(page: Path) -> str:
    return page.read_text() if page.is_file() else ""


def without_blocks(page: Path) -> str:
    return re.sub(r"```.*?```", "", text(page), flags=re.DOTALL)


def code(page: Path) -> list[str]:
    """Return the text in single backticks, outside of code blocks."""
    return re.findall(r"`([^`\n]+)`", without_blocks(page))


def commands(page: Path) -> Iterator[str]:
    """Yield the commands of a page's shell blocks, without environment variables and comments."""
    for block in re.findall(r"```(?:bash|sh|shell|console)?\n(.*?)```", text(page), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                yield shlex.join(words)


def names(file: Path) -> set[str]:
    """Return everything that a module defines: `function`, `Class`, `Class.method`."""
    defined: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        if isinstance(node, ast.ClassDef):
            defined |= {f"{node.name}.{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
    return defined


def slugs(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub writes them."""
    headings = re.findall(r"(?m)^#+ (.+)$", without_blocks(page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_is_something_to_check():
    assert any(c.startswith("make demo") for c in commands(README))
    assert any("train.py" in c for c in commands(README))
    assert sum(":" in c and c.startswith("ldm/") for c in code(ARCHITECTURE)) > 30, "equations to files"
    assert len(DOCS) > 15


def test_the_readme_is_short():
    assert len(text(README).splitlines()) <= 100


@pytest.mark.parametrize("page", [*PAGES, *DOCS], ids=relative)
def test_every_relative_link_resolves(page):
    links = re.findall(r"\]\(([^)\s]+)\)", without_blocks(page)) + re.findall(r'src="([^"]+)"', text(page))
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{relative(page)} links to {link}, which does not exist"
        assert not anchor or anchor in slugs(target), f"{relative(page)} links to {link}: no such heading"


def test_the_index_lists_every_page():
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / link).resolve() for link in re.findall(r"\]\(([^)#\s]+)\)", text(index))}
    assert [relative(page) for page in DOCS if page != index and page.resolve() not in linked] == []


@pytest.mark.parametrize("page", PROSE, ids=relative)
def test_every_path_exists(page):
    """`ldm/a/b.py`, or `ldm/a/b.py:name` for something that the file defines."""
    for word in code(page):
        if not word.startswith(FOLDERS) or re.search(r"[\s*<{]|\.\.\.|NAME", word):
            continue
        path, _, name = word.partition(":")
        assert (ROOT / path).exists(), f"{relative(page)} names {path}, which does not exist"
        assert not name or name in names(ROOT / path), (
            f"{relative(page)} names {name} in {path}, which lacks it"
        )


@pytest.mark.parametrize("page", PROSE, ids=relative)
def test_every_dotted_name_exists(page):
    for word in {c for c in code(page) if re.fullmatch(r"ldm(\.\w+)+", c)}:
        parts = word.split(".")
        for cut in range(len(parts), 0, -1):
            file = ROOT.joinpath(*parts[:cut])
            file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
            if file.is_file():
                rest = ".".join(parts[cut:])
                assert not rest or rest in names(file), f"{relative(page)} names {word}, which does not exist"
                break


def test_every_task_stands_in_a_command():
    tasks = {path.stem for path in (ROOT / "configs" / "task").glob("*.yaml")} - {"txt2img"}  # the default
    used = {word for c in commands(SAMPLING) for word in shlex.split(c)}
    assert {task for task in tasks if f"task={task}" not in used} == set()


@pytest.mark.parametrize("command", sorted({c for page in PROSE if page != CLUSTER for c in commands(page)}))
def test_every_command_composes(command):
    words = shlex.split(command)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert set(w for w in words[1:] if "=" not in w) <= set(targets)
    for module in re.findall(r"-m ((?:ldm|studies|tests)[.\w]+)", command):
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    scripts = [w for w in words if re.fullmatch(r"(train|sample)\.py|ldm\.cli\.\w+", w)]
    if scripts:
        name = scripts[0].removesuffix(".py").removeprefix("ldm.cli.")
        overrides = words[words.index(scripts[0]) + 1 :]
        if all("=" in w and not w.startswith("-") for w in overrides):
            compose(name, overrides)


def overrides_of(section: str) -> list[list[str]]:
    """Return the overrides that stand together in a section's table of options."""
    table = re.search(
        rf"## {section}\n.*?\| option \| overrides \|\n(.*?)\n\n", text(NETWORKS), flags=re.DOTALL
    )
    assert table is not None, section
    return [span.split() for span in re.findall(r"`([^`]+)`", table[1]) if "=" in span]


@pytest.mark.parametrize(
    ("section", "base"),
    [("First stages", "ae_vq_f8"), ("Denoisers", "ldm_f8_text"), ("Conditioners", "ldm_f8_text")],
)
def test_the_overrides_of_networks_are_keys(section, base):
    for overrides in overrides_of(section):
        experiment = [] if overrides[0].startswith("experiment=") else [f"experiment={base}"]
        compose("train", [*experiment, "data.shards=a", "first_stage=b", *overrides])


def test_the_training_options_are_keys():
    page = text(GUIDE / "getting_started.md")
    table = page[page.index("## Training options") :]
    rows = re.findall(r"(?m)^\| [^|`]+ \| `([^`]+)` \|$", table)
    assert len(rows) > 5
    for row in rows:
        compose("train", ["experiment=demo/text", *row.split()])


SCRIPTS = {"train": "train", "encode_latents": "encode_latents", "evaluate": "evaluate"}
"""The command to which each job script passes its arguments."""


def composes(command: str) -> bool:
    """Compose the overrides of a command on the cluster page; False if it has none of ours."""
    words = [word for word in shlex.split(command) if word != "..."]
    overrides = [w for w in words if "=" in w and not w.startswith("-")]
    if words[0] == "sbatch":
        script = next(w for w in words if w.endswith(".sbatch"))
        assert (ROOT / script).is_file()
        name = SCRIPTS.get(Path(script).stem)
    elif "train.py" in words:
        name = "train"
    else:
        name = next((w.removeprefix("ldm.cli.") for w in words if w.startswith("ldm.cli.")), None)
    if name in (None, "compare"):
        return False
    if name == "submit":
        _, overrides = submit.split_arguments(overrides)
    for point in sweep_points(overrides) if "-m" in words and "train.py" in words else [overrides]:
        compose({"submit": "train", "doctor": "train"}.get(name, name), point, complete="..." not in command)
    return True


def test_the_commands_of_the_cluster_page_compose():
    composed = [command for command in commands(CLUSTER) if composes(command)]
    parts = (
        "pack",
        "submit",
        "doctor",
        "torchrun",
        "encode_latents",
        "train.sbatch",
        "evaluate",
        "train.py -m",
    )
    assert all(any(part in command for command in composed) for part in parts), composed
    first = next(commands(CLUSTER))
    assert first.startswith("git clone") and any("activate" in c for c in commands(CLUSTER))

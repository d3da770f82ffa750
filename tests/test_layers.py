"""The rules of docs/architecture.md that a test can check: imports, file and function sizes."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("*.py"), *(ROOT / "ldm").rglob("*.py"), *(ROOT / "studies").rglob("*.py")])
NAMES = [str(f.relative_to(ROOT)) for f in FILES]


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), str(file))


def imported_modules(file: Path) -> Iterator[str]:
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute"
            yield str(node.module)


def test_imports_point_down(capsys):
    """As contracted in pyproject.toml."""
    status = lint_imports(str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == 0, capsys.readouterr().out


@pytest.mark.parametrize("package", ["diffusion", "networks"])
def test_diffusion_and_networks_import_only_torch(package):
    external = {"torch", "einops", "jaxtyping"}
    internal = {f"ldm.{package}", "ldm.typing", "ldm.errors"}
    for file in (ROOT / "ldm" / package).rglob("*.py"):
        for module in imported_modules(file):
            top = module.split(".")[0]
            is_internal = any(module == m or module.startswith(f"{m}.") for m in internal)
            assert is_internal or top in external or top in sys.stdlib_module_names, (
                f"{file} imports {module}"
            )


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_files_and_functions_are_short(file):
    lines = file.read_text().count("\n") + 1
    assert lines <= 300, f"{file} has {lines} lines"
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 40, f"{file}:{node.lineno}: {node.name} has {length} lines"


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_modules_have_specific_names_and_no_postponed_annotations(file):
    assert not {"utils", "helpers", "misc", "common", "core"} & {file.stem, *file.relative_to(ROOT).parts}
    assert "__future__" not in list(imported_modules(file)), "jaxtyping needs evaluated annotations"
    assert ast.get_docstring(parse(file)), "a module begins with a docstring"

"""The layer lines, read from the imports of every file: who may import whom, and which package belongs where."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "autoplan"

# A layer may import itself and those above it in this list.
LAYERS = (
    "errors",
    "files",
    "placement",
    "redistribution",
    "settings",
    "plan",
    "request",
    "models",
    "graph",
    "hf",
    "load",
    "collectives",
    "rules",
    "assignment",
    "cost",
    "planner",
    "runtime",
    "calibrate",
    "api",
    "cli",
)
FORBIDDEN = {  # beyond the order
    "runtime": {"planner", "cost"},
    "calibrate": {"planner"},  # a machine is measured where ortools need not be
    "models": {"errors", "files", "placement", "redistribution", "settings", "plan", "request"},  # written as a user would write them
}
TORCH_FREE = {"errors", "files", "placement", "redistribution", "settings", "plan", "request"}
OWNERS = {  # a package from outside, and the only places that import it
    "ortools": ("planner/solve",),
    "numpy": ("planner/", "cost/"),
    "click": ("cli/",),
    "rich": ("cli/",),
    "transformers": ("hf.py",),
    "safetensors": ("runtime/storage/tensor_files.py",),
}
EVERYWHERE = {"torch", "yaml", "autoplan"}
MAX_LINES = 500

FILES = sorted(SRC.rglob("*.py"))
IDS = [str(path.relative_to(SRC)) for path in FILES]


def layer_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imported(path: Path) -> list[tuple[str, int]]:
    """Every module the file imports, at its top or within a function, as (dotted name, line)."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are written absolute"
            if node.module == "autoplan":
                found += [(f"autoplan.{alias.name}", node.lineno) for alias in node.names]
            else:
                found.append((str(node.module), node.lineno))
    return found


def allowed_layers(layer: str) -> set[str]:
    return set(LAYERS[: LAYERS.index(layer) + 1]) - FORBIDDEN.get(layer, set())


def test_every_layer_is_named_in_the_order() -> None:
    present = {layer_of(path) for path in FILES} - {"__init__", "__main__"}
    assert present <= set(LAYERS), f"give {sorted(present - set(LAYERS))} a place in LAYERS"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_a_file_imports_only_layers_above_its_own(path: Path) -> None:
    layer = layer_of(path)
    if layer not in LAYERS:
        return  # the package's own __init__ offers names of all layers
    inner = [(name.split(".")[1], line) for name, line in imported(path) if name.startswith("autoplan.")]
    wrong = [f"{path}:{line}: {layer} imports {name}" for name, line in inner if name not in allowed_layers(layer)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_a_file_imports_only_the_packages_of_its_place(path: Path) -> None:
    place = path.relative_to(SRC).as_posix()
    wrong = []
    for name, line in imported(path):
        package = name.split(".")[0]
        if package in sys.stdlib_module_names or package in EVERYWHERE:
            continue
        if not place.startswith(OWNERS.get(package, ())):
            wrong.append(f"{path}:{line}: {package} is imported only in {OWNERS.get(package, 'no place')}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", [path for path in FILES if layer_of(path) in TORCH_FREE], ids=str)
def test_reading_plans_and_requests_needs_no_torch(path: Path) -> None:
    assert not [line for name, line in imported(path) if name.split(".")[0] == "torch"]


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_a_file_stays_short_enough_to_read(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines < MAX_LINES, f"{path} has {lines} lines: two ideas are two files"

"""Imports point one way, and what must stay out of the package stays out."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ostrack_fast"

# Each layer may import itself and those after it.
LAYERS = [
    {"cli", "adapters"},
    {"training", "evaluation", "visualization", "bench"},
    {"tracker", "drop_in", "read_network"},
    {"export"},
    {"engine"},
    {"devices"},
    {"model"},
    {"ops"},
    {"boxes", "config", "data", "files", "interrupts", "progress", "settings", "switches", "video", "kernels", "_C"},
]
# Read before any layer by whoever needs them, and free of them: the entry points.
TOP = {"__init__", "__main__"}


def layer(name):
    return next((depth for depth, names in enumerate(LAYERS) if name in names), None)


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path.stem not in TOP or path.parent != PACKAGE)


def imported(path):
    """Top-level names inside the package that a module imports, wherever in the module it does."""
    package = ["ostrack_fast", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [module] if module != "ostrack_fast" else [f"ostrack_fast.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("ostrack_fast."))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert layer(own) is not None, f"{own} has no layer"
    for name in imported(path):
        if name == "__version__":
            continue
        assert layer(name) is not None and layer(name) >= layer(own), f"{own} imports {name}, which lies above it"


def test_the_kernels_import_nothing_of_the_package():
    for path in (ROOT / "kernels").glob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add((node.module or "").split(".")[0])
        assert names <= {"torch", "triton", *sys.stdlib_module_names}, path


@pytest.mark.parametrize("folder", ["csrc"])
def test_the_kernels_know_neither_torch_nor_python(folder):
    for path in (ROOT / folder).rglob("*"):
        if path.suffix in (".h", ".cuh", ".cpp", ".cu") and path.name != "bindings.cpp":
            text = path.read_text(encoding="utf-8")
            assert "torch/" not in text and "Python.h" not in text and "pybind11" not in text, path

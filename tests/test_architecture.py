"""Imports point one way and never in a circle, private names stay private, and the kernels stand alone."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ostrack_fast"
# Folders and the packages that they are installed as.
FOLDERS = {PACKAGE: "ostrack_fast", ROOT / "kernels": "ostrack_fast.kernels", ROOT / "bench": "ostrack_fast.bench"}


def all_modules():
    """{name of the module: its file}, the compiled one's stub included."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in (*folder.rglob("*.py"), *folder.rglob("*.pyi")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


MODULES = all_modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imported(module):
    """The project's modules that this one imports, also inside functions and under TYPE_CHECKING."""
    package = module.split(".") if MODULES[module].name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{source}.{alias.name}"
                yield from [name] if name in MODULES else [source] if source in MODULES else []


# Each layer may import itself and those after it.
LAYERS = [
    {"cli", "adapters"},
    {"paper", "serve", "profiling", "tuning"},
    {"training", "evaluation", "visualization", "bench"},
    {"tracker", "drop_in", "read_network", "swap"},
    {"export", "redetection", "box_prior"},
    {"engine"},
    {"locator"},
    {"devices", "graphs", "baselines", "smoothing", "targets"},
    {"model"},
    {"machine"},
    {"ops"},
    {
        "appearance",
        "calibration",
        "boxes",
        "config",
        "data",
        "environment",
        "files",
        "inputs",
        "interrupts",
        "progress",
        "settings",
        "timing",
        "video",
        "kernels",
        "_C",
    },
]
# Read before any layer by whoever needs them, and free of them: the entry points.
TOP = {"__init__", "__main__"}


def layer(name):
    return next((depth for depth, names in enumerate(LAYERS) if name in names), None)


def place(module):
    """The part of the package that a module belongs to."""
    return [*module.split("."), "__init__"][1]


@pytest.mark.parametrize("module", sorted(name for name in MODULES if place(name) not in TOP))
def test_imports_point_one_way(module):
    own = layer(place(module))
    assert own is not None, f"{place(module)} has no layer"
    for name in imported(module):
        # The package itself is imported for its version alone.
        if name != "ostrack_fast":
            assert layer(place(name)) is not None, f"{place(name)} has no layer"
            assert layer(place(name)) >= own, f"{module} imports {name}, which lies above it"


def test_no_circles():
    """Take away what imports nothing that is left, again and again: what stays imports itself in a circle."""
    left = {name: set(imported(name)) - {name} for name in MODULES}
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left, f"these import each other in a circle: {sorted(left)}"


def private(name):
    # _C is the name of the compiled module.
    return name.startswith("_") and not name.startswith("__") and name != "_C"


def defined(tree):
    """Names that a file gives to its own functions, classes, variables and attributes of `self`."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
            yield node.attr


def used(tree):
    """Attributes of anything, and names imported from elsewhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)


def test_private_names_stay_in_their_file():
    own = {module: set(defined(tree)) for module, tree in TREES.items()}
    hidden = {name for names in own.values() for name in names if private(name)}
    borrowed = [(module, name) for module, tree in TREES.items() for name in used(tree) if name in hidden - own[module]]
    assert not borrowed


def test_an_op_is_made_of_nine_files():
    """CONTRIBUTING.md lists those of `update_box`: they are all there, and no other file of these folders names it."""
    guide = ROOT / "CONTRIBUTING.md"
    if not guide.exists():
        pytest.skip("not a source checkout")
    listed = set(re.findall(r"^\| `(\S+)` \|", guide.read_text(encoding="utf-8"), re.MULTILINE))
    folders = ("csrc", "kernels", "bench", "ostrack_fast/ops")
    files = [ROOT / "ostrack_fast/_C.pyi", *(path for folder in folders for path in (ROOT / folder).rglob("*.*"))]
    names = re.compile(r"\b(cpu_|cuda_|ostf_cpu_|ostf_cuda_)?update_box\b")
    making = {
        path.relative_to(ROOT).as_posix()
        for path in files
        if path.suffix in (".py", ".pyi", ".h", ".cpp", ".cu", ".cuh", ".txt")
        and names.search(path.read_text(encoding="utf-8"))
    }
    # The registry's docstring sends the reader to it.
    assert making - {"ostrack_fast/ops/registry.py"} == listed - {"tests/ops/test_update_box.py"}
    assert len(listed) + 1 <= 9 and all((ROOT / name).is_file() for name in listed)


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


def test_every_option_of_a_command_is_used():
    """An option that its command forgets to hand on changes nothing, and nobody is told."""
    unused = []
    for path in sorted((ROOT / "ostrack_fast" / "cli").glob("[!_]*.py")):
        for function in ast.parse(path.read_text()).body:
            if isinstance(function, ast.FunctionDef):
                names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
                unused += [f"{path.stem}: {one.arg}" for one in function.args.args if one.arg not in names]
    assert unused == []

"""From the sources to an sdist, a wheel and an installation, with nothing left in the source tree."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What a build reads, and what the metadata is made of.
PARTS = {"CMakeLists.txt", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "bench", "cmake", "csrc", "kernels",
         "ostrack_fast", "ostrack_fast.egg-info", "pyproject.toml", "setup.cfg", "setup.py"}  # fmt: skip


def names(folder):
    return {path.relative_to(folder) for path in folder.rglob("*")}


def run(*command, cwd):
    environment = {
        **os.environ,
        "OSTRACK_FAST_CUDA": "OFF",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    environment.pop("OSTRACK_FAST_BUILD_DIR", None)
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of the checkout without what builds left there before, and the sdist made of it."""
    for module in ("setuptools", "pybind11"):
        pytest.importorskip(module, reason=f"building needs {module}")
    if not (ROOT / "setup.py").exists():
        pytest.skip("needs the source tree")
    folder = tmp_path_factory.mktemp("sources")
    unwanted = shutil.ignore_patterns("build", "*.egg-info", "__pycache__", "*.so", ".*", "runs", "dist")
    shutil.copytree(ROOT, folder / "tree", ignore=unwanted)
    before = names(folder / "tree")
    run(sys.executable, "-c", "from setuptools import build_meta; build_meta.build_sdist('..')", cwd=folder / "tree")
    assert names(folder / "tree") == before, "building an sdist left something in the source tree"
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder / "sdist", filter="data")
    (inside,) = (folder / "sdist").iterdir()
    return folder / "tree", inside


def test_an_sdist_holds_what_a_build_needs_and_nothing_else(sources):
    tree, inside = sources
    assert {path.name for path in inside.iterdir()} <= PARTS
    for part in ("bench", "cmake", "csrc", "kernels", "ostrack_fast"):
        files = {path for path in names(tree / part) if (tree / part / path).is_file()}
        # Of the benchmarks only the package: their results and scripts are for the checkout.
        needed = {path for path in files if part != "bench" or path.suffix == ".py"}
        assert needed <= names(inside / part)
    assert not [path for path in names(inside) if path.suffix in (".so", ".pyc") or path.name == "__pycache__"]


SCRIPT = """
import numpy as np
from ostrack_fast import Tracker, ops
from ostrack_fast.ops import native
assert native.build_info()["version"]
tracker = Tracker("small", "cpu", "float32")
tracker.initialize(np.zeros((200, 200, 3), np.uint8), (50, 50, 40, 40))
with ops.use("native"):
    print(tracker.track(np.zeros((200, 200, 3), np.uint8)))
import ostrack_fast, ostrack_fast.bench, ostrack_fast.kernels
assert ostrack_fast.__file__.startswith({target!r}), ostrack_fast.__file__
"""


@pytest.mark.slow
def test_an_sdist_installs_and_leaves_nothing_in_its_tree(sources, tmp_path):
    """With pip, as a user does, which builds a wheel first; this compiles everything."""
    if not (shutil.which("cmake") and shutil.which("ninja")):
        pytest.skip("needs cmake and ninja")
    _, inside = sources
    before, target = names(inside), tmp_path / "installed"
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, "--target", str(target), ".", cwd=inside)
    assert names(inside) == before, "installing left something in the source tree"
    code = f"import sys; sys.path.insert(0, {str(target)!r})\n" + SCRIPT.format(target=str(target))
    run(sys.executable, "-c", code, cwd=tmp_path)

"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, once for each instruction set there is."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ostrack_fast.ops import native

from ..op_calls import save_calls

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
FLAGS = ["-std=c++17", "-O1", "-g1", "-fPIC", "-ffp-contract=off", f"-I{CSRC}"]
OVERRUN = 67  # the exit code asked of the sanitizer


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("no g++ to build the kernels with a sanitizer")
    if not CSRC.is_dir():
        pytest.skip(f"no kernel sources in {CSRC}: not a source checkout")
    folder = tmp_path_factory.mktemp("sanitized")

    def build(source):
        target = folder / f"{source.stem}.o"
        subprocess.run(["g++", *FLAGS, *SANITIZE, "-c", str(source), "-o", str(target)], check=True)
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(build, sorted((CSRC / "cpu").glob("*.cpp"))))
    target = folder / "kernels.so"
    subprocess.run(["g++", "-shared", *SANITIZE, *objects, "-o", str(target), "-ldl", "-lpthread"], check=True)
    return target


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """Every compiled kernel with the edge examples of its op, as calls of the C ABI."""
    folder = tmp_path_factory.mktemp("calls")
    save_calls(folder)
    return folder


def run(library, capability, *arguments):
    runtime = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    environment = os.environ | {
        "LD_PRELOAD": runtime.stdout.strip(),
        # Python itself never frees some of what it allocates.
        "ASAN_OPTIONS": f"detect_leaks=0:exitcode={OVERRUN}",
        "OSTRACK_FAST_CPU_CAPABILITY": capability,
        "PYTHONPATH": str(HERE.parent / "emulation"),
    }
    command = [sys.executable, str(HERE / "sanitized_calls.py"), str(library), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("capability", ["portable", "avx2", "avx_vnni", "avx512", "avx512_bf16"])
def test_no_kernel_leaves_its_arrays(library, calls, capability):
    features = native.build_info()["cpu_features"]
    needed = {"portable": None, "avx512": "avx512f"}.get(capability, capability)
    if needed and not features[needed]:
        pytest.skip(f"this processor has no {needed}")
    done = run(library, capability, calls)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 1000


def test_the_sanitizer_sees_memory_that_is_too_small(library, calls):
    done = run(library, "portable", calls, "half the memory")
    assert done.returncode == OVERRUN, done.stderr
    assert "heap-buffer-overflow" in done.stderr

"""The compiled module as built and installed: what it says of itself, what it needs, and how it fails."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ostrack_fast
from ostrack_fast import _C
from tests.emulation.c_abi import FOR_CPUS

ROOT = Path(__file__).resolve().parents[1]


def test_build_info_describes_the_build():
    info = _C.build_info()
    assert info["version"] == importlib.metadata.version("ostrack_fast")
    assert info["compiler"].split()[0] in ("gcc", "clang")
    assert (info["cuda"] is None) == (info["cuda_architectures"] == [])
    assert all(isinstance(value, bool) for value in info["cpu_features"].values())


def test_cpu_features_agree_with_pytorch():
    level = torch.backends.cpu.get_cpu_capability()
    features = _C.build_info()["cpu_features"]
    if "AVX512" in level:
        assert features["avx512f"] and features["avx512bw"] and features["avx2"]
    elif level == "AVX2":
        assert features["avx2"]
    else:
        pytest.skip(f"PyTorch reports {level}, which says nothing about AVX")


def test_device_count_never_raises():
    count, reason = _C.cuda_device_count()
    assert count >= 0
    assert (count == 0) == bool(reason)


def test_every_op_is_bound():
    for name, op in ostrack_fast.ops.OPS.items():
        if "native" in op.backends:
            assert hasattr(_C, f"cpu_{name}")
            has_cuda = _C.build_info()["cuda"] is not None and name not in FOR_CPUS
            assert hasattr(_C, f"cuda_{name}") == has_cuda


DOUBLES = (64, _C.dtypes["float64"], (1, 1, 1, 1), (1, 1, 1, 1))


def test_statuses_become_exceptions():
    with pytest.raises(ValueError, match="cpu_decode: a size or value is outside"):
        _C.cpu_decode(None, None, None, None, None, None, 1)
    with pytest.raises(TypeError, match="cpu_decode: this kernel has no code for the dtype"):
        _C.cpu_decode(DOUBLES, DOUBLES, DOUBLES, None, DOUBLES, DOUBLES, 1)
    for wrong in ((0,), (7, None, None, None, None, None, 1), ((1, 2, 3), None, None, None, None, None, 1)):
        with pytest.raises(TypeError, match="incompatible function arguments"):
            _C.cpu_decode(*wrong)


@pytest.mark.skipif(_C.build_info()["cuda"] is None, reason="built without CUDA")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there, so no launch fails")
def test_a_cuda_failure_is_an_exception_in_words():
    with pytest.raises(RuntimeError, match="cuda_decode: cudaError"):
        maps = [(64, _C.dtypes["float32"], (1, n, 1, 1), (n, 1, 1, 1)) for n in (1, 2, 2)]
        results = [(64, _C.dtypes["float32"], shape, (4, 1)[-len(shape) :]) for shape in ((1, 4), (1,))]
        _C.cuda_decode(*maps, None, *results, 0)


def test_kernels_are_part_of_the_package():
    spec = importlib.util.find_spec("ostrack_fast.kernels")
    assert spec is not None and spec.origin is not None
    assert Path(spec.origin).name == "__init__.py"


def test_the_module_needs_neither_torch_nor_cuda_nor_openmp():
    if sys.platform != "linux" or shutil.which("readelf") is None:
        pytest.skip("needs Linux and readelf")
    listing = subprocess.run(["readelf", "-d", _C.__file__], capture_output=True, text=True, check=True).stdout
    needed = [line.split("[")[1].rstrip("]") for line in listing.splitlines() if "NEEDED" in line]
    assert needed
    assert not [name for name in needed if name.startswith(("libtorch", "libc10", "libcud", "libgomp", "libomp"))]
    # Nor does it look for a runtime that is loaded: an OpenMP team waits for every thread, however busy its core is.
    assert b"GOMP_parallel" not in Path(_C.__file__).read_bytes()


WITHOUT_TORCH = """
import array, importlib.util, sys
spec = importlib.util.spec_from_file_location("ostrack_fast._C", sys.argv[1])
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
assert "torch" not in sys.modules and "libgomp" not in open("/proc/self/maps").read()
grid, channels = 32, 256
cells = grid * grid
tokens = array.array("f", range(cells * channels))
ids = array.array("q", reversed(range(cells)))
for attempt in range(50):
    out = array.array("f", bytes(4 * cells * channels))
    shapes = (1, cells, channels), (1, cells), (1, channels, grid, grid)
    strides = (cells * channels, channels, 1), (cells, 1), (cells * channels, cells, grid, 1)
    kinds = [native.dtypes[name] for name in ("float32", "int64", "float32")]
    addresses = [a.buffer_info()[0] for a in (tokens, ids, out)]
    token_view, id_view, map_view = zip(addresses, kinds, shapes, strides)
    native.cpu_restore(token_view, id_view, None, None, map_view, 1e-6, 1 + attempt % 6)
    for c in (0, 17, channels - 1):
        assert list(out[c * cells : (c + 1) * cells]) == [(cells - 1 - p) * channels + c for p in range(cells)]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_module_brings_its_own_threads():
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, _C.__file__], check=True)


def configure(tmp_path: Path, wanted: str) -> subprocess.CompletedProcess:
    """Configures the build as on a machine without nvcc."""
    pybind11 = pytest.importorskip("pybind11")
    if not (ROOT / "CMakeLists.txt").exists() or not (shutil.which("cmake") and shutil.which("ninja")):
        pytest.skip("needs the source tree, cmake and ninja")
    kept = {k: v for k, v in os.environ.items() if k not in ("CUDACXX", "CUDA_PATH", "CUDA_HOME")}
    command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path), "-G", "Ninja", f"-DOSTF_CUDA={wanted}"]
    command += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"]
    command += ["-DCMAKE_CUDA_COMPILER=NOTFOUND"]
    return subprocess.run(command, capture_output=True, text=True, env=kept)


@pytest.mark.slow
def test_asking_for_cuda_without_nvcc_is_a_clear_error(tmp_path):
    failed = configure(tmp_path, "ON")
    assert failed.returncode != 0
    assert "OSTRACK_FAST_CUDA=ON" in failed.stderr and "install the CUDA toolkit" in " ".join(failed.stderr.split())


@pytest.mark.slow
def test_without_nvcc_the_cpu_kernels_are_built_alone(tmp_path):
    done = configure(tmp_path, "AUTO")
    assert done.returncode == 0, done.stderr
    assert "CPU kernels only" in done.stdout


@pytest.mark.slow
def test_an_unknown_choice_is_named(tmp_path):
    failed = configure(tmp_path, "maybe")
    assert failed.returncode != 0
    assert "'maybe'" in failed.stderr

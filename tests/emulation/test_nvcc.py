"""The CUDA kernels compile for every supported architecture without spills, stack or too much shared memory."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from emulator import CSRC, HERE, KERNELS

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")


def supported() -> list[int]:
    listed = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    return [a for a in ARCHITECTURES if f"sm_{a}\n" in listed + "\n"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, str]]:
    """Object file and compiler report of a kernel: machine code for every architecture, and PTX for those to come."""
    folder = tmp_path_factory.mktemp("nvcc")
    architectures = supported()
    assert architectures, "nvcc knows none of the architectures"
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    targets.append(f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}")

    @functools.cache
    def compile_kernel(name: str) -> tuple[Path, str]:
        source, target = CSRC / "cuda" / f"{name}.cu", folder / f"{name}.o"
        command = ["nvcc", "-std=c++17", "-O3", f"-I{CSRC}", "--threads=2", "-Wno-deprecated-gpu-targets", "-Xptxas=-v"]
        command += [*targets, "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return target, done.stderr

    return compile_kernel


@pytest.mark.parametrize("name", KERNELS)
def test_compiles_without_spills(compiled, name):
    _, report = compiled(name)
    assert "warning" not in report, report
    entries = report.split("Compiling entry function")[1:]
    seen = {int(a) for entry in entries for a in re.findall(r"for 'sm_(\d+)", entry)}
    assert seen == set(supported())
    for entry in entries:
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in entry, entry
        shared = re.search(r"(\d+) bytes smem", entry)  # static; the emulation holds static and dynamic to the limit
        assert shared is None or int(shared[1]) <= 48 * 1024, entry


def entries(source: Path, arch: int, folder: Path) -> list[str]:
    """The PTX of each kernel of a file."""
    command = ["nvcc", "-std=c++17", "-O3", f"-I{CSRC}", f"-arch=compute_{arch}", "-ptx", "-o", str(folder / "ptx")]
    subprocess.run([*command, str(source)], check=True)
    return (folder / "ptx").read_text().split(".entry ")[1:]


def touched_before_the_wait(entry: str) -> list[str]:
    """Instructions that reach memory, or leave the straight line, ahead of the wait for the kernels before."""
    before, wait, _ = entry.partition("griddepcontrol.wait")
    assert wait, "no wait"
    return re.findall(r"\b(?:ld\.global|st\.|atom\.|red\.|cp\.async|bra)\b", before)


needs_hopper = pytest.mark.skipif(
    shutil.which("nvcc") is not None and 90 not in supported(), reason="this nvcc does not compile for sm_90"
)


@needs_hopper
@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=pytest.mark.slow) if each == "attention" else each for each in KERNELS]
)
def test_nothing_is_touched_before_the_wait(name, tmp_path):
    """Programmatic dependent launch, which code for older GPUs knows nothing of."""
    kernels = entries(CSRC / "cuda" / f"{name}.cu", 90, tmp_path)
    assert kernels
    for kernel in kernels:
        assert touched_before_the_wait(kernel) == []
        assert len(re.findall(r"griddepcontrol\.(?:wait|launch_dependents);", kernel)) == 2
    assert not any("griddepcontrol" in kernel for kernel in entries(CSRC / "cuda" / f"{name}.cu", 89, tmp_path))


@needs_hopper
def test_a_load_before_the_wait_is_seen(tmp_path):
    waiting = [each for each in entries(HERE / "faults.cu", 90, tmp_path) if "griddepcontrol.wait" in each]
    assert sorted(bool(touched_before_the_wait(each)) for each in waiting) == [False, True]


def cuobjdump() -> str | None:
    found = shutil.which("cuobjdump")
    if found is None:
        try:
            import triton
        except ImportError:
            return None
        bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        found = str(bundled) if bundled.exists() else None
    return found


@pytest.mark.parametrize(
    ("arch", "instructions"),
    [
        (75, {"HMMA.1688.F32": True, "LDSM": True, "LDGSTS": False}),
        (90, {"HMMA.16816.F32": True, "HMMA.16816.F32.BF16": True, "LDSM": True, "LDGSTS": True}),
    ],
)
def test_attention_instructions(compiled, arch, instructions):
    """Tensor cores, ldmatrix and asynchronous copies are what the machine code has; local memory is not in it."""
    tool = cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump")
    if arch not in supported():
        pytest.skip(f"this nvcc does not compile for sm_{arch}")
    command = [tool, "-sass", "-arch", f"sm_{arch}", str(compiled("attention")[0])]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"sm_{arch}" in code and "attention_fp32" in code
    for instruction, wanted in instructions.items():
        assert (instruction in code) == wanted, instruction
    assert re.search(r"\b(STL|LDL)\b", code) is None

"""The build for processors without AVX2: for Arm (NEON) and for the oldest x86-64, under QEMU's user-mode emulation.

Both must print what this processor's portable build prints, which the other tests hold against the reference.
"""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", f"-I{CSRC}"]
OLDEST_X86 = ["-mssse3", "-msse4.1", "-msse4.2", "-mpopcnt"]  # as CMakeLists.txt has it: x86-64-v2


def build(compiler, flags, folder):
    """The program of all CPU kernels."""
    sources = [*sorted((CSRC / "cpu").glob("*.cpp")), HERE / "emulated_calls.cpp"]
    objects = [folder / f"{source.stem}.o" for source in sources]

    def compiled(source, target):
        subprocess.run([compiler, *FLAGS, *flags, "-c", str(source), "-o", str(target)], check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compiled, sources, objects))
    program = folder / "calls"
    subprocess.run([compiler, *map(str, objects), "-o", str(program), "-ldl", "-pthread"], check=True)
    return program


def printed(*command):
    environment = os.environ | {"OSTRACK_FAST_CPU_CAPABILITY": "portable"}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split(" ") for line in done.stdout.splitlines()]
    return [(name, [float(value) for value in values]) for name, *values in lines]


def needs(*programs):
    if not CSRC.is_dir():
        pytest.skip(f"no kernel sources in {CSRC}: not a source checkout")
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"no {program} (Debian: qemu-user, g++, g++-aarch64-linux-gnu)")


@pytest.fixture(scope="module")
def portable(tmp_path_factory):
    """The program built for the oldest x86-64, and what it prints here."""
    needs("g++")
    if os.uname().machine != "x86_64":
        pytest.skip("this processor is not an x86-64")
    program = build("g++", OLDEST_X86, tmp_path_factory.mktemp("portable"))
    return program, printed(program)


def test_arm_computes_the_same(portable, tmp_path):
    needs("qemu-aarch64", "aarch64-linux-gnu-g++")
    libraries = "/usr/aarch64-linux-gnu"  # where Debian's cross compiler keeps them
    found = printed("qemu-aarch64", "-L", libraries, build("aarch64-linux-gnu-g++", [], tmp_path))
    assert [name for name, _ in found] == [name for name, _ in portable[1]]
    assert len(found) > 20
    for (name, values), (_, expected) in zip(found, portable[1], strict=True):
        # Only the last bit of the C library's functions may differ, and bfloat16 results by one rounding.
        assert values == pytest.approx(expected, rel=2**-7 if name == "attention_bfloat16" else 1e-5, abs=1e-6), name


def test_the_oldest_x86_needs_no_newer_instruction(portable):
    """QEMU's Nehalem stops at any AVX instruction, which x86-64-v2 does not have."""
    needs("qemu-x86_64")
    assert printed("qemu-x86_64", "-cpu", "Nehalem", portable[0]) == portable[1]

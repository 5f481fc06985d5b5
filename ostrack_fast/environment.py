"""Every environment variable that this project reads, with its meaning: the one table of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple


class Variable(NamedTuple):
    """Args: default: what an absent variable means. read: by what, and when."""

    name: str
    default: str
    read: str
    meaning: str


VARIABLES = (
    Variable(
        "OSTRACK_FAST_BACKEND",
        "auto",
        "at run time, whenever a backend is chosen",
        "native, triton or reference: every op that has this backend runs on it; a call that it cannot run raises",
    ),
    Variable(
        "OSTRACK_FAST_CPU_CAPABILITY",
        "the processor's own",
        "at run time, once",
        "portable, avx2, avx_vnni, avx512 or avx512_bf16: the latest instruction set that the CPU kernels may use",
    ),
    Variable(
        "OSTRACK_FAST_TUNING",
        "the tiles that ship",
        "at run time, once",
        "a file of measured tiles for the Triton GEMMs, as `ostrack-fast tune` writes it",
    ),
    Variable(
        "OSTRACK_FAST_DEBUG",
        "off",
        "by the command line",
        "any text: errors show their traceback, as with `--debug`",
    ),
    Variable(
        "OSTRACK_FAST_CUDA",
        "AUTO",
        "when the package is built",
        "ON, OFF or AUTO: whether to build the CUDA kernels; AUTO does where there is a CUDA compiler",
    ),
    Variable(
        "OSTRACK_FAST_CUDA_ARCHITECTURES",
        "all that the compiler knows",
        "when the package is built, and by `bench/gpu_check.py`",
        "the GPU architectures to build for, such as `90-real`",
    ),
    Variable(
        "OSTRACK_FAST_BUILD_DIR",
        "they are removed after a build, and kept in `build/` by an editable install",
        "when the package is built",
        "a folder that keeps the objects for the next build",
    ),
    Variable(
        "OSTRACK_FAST_DATA",
        "tests that need it are skipped",
        "by tests and `bench/gpu_check.py`",
        "the folder that holds real videos: `sequences/NAME/img/*.jpg`",
    ),
    Variable(
        "OSTRACK_FAST_LASOT",
        "the test that needs it is skipped",
        "by tests",
        "the folder that holds the annotations of LaSOT",
    ),
    Variable(
        "OSTRACK_FAST_SOAK",
        "2000",
        "by tests",
        "how many frames the test of memory in long runs follows",
    ),
    Variable(
        "OSTRACK_FAST_FUZZ",
        "short",
        "by tests",
        "long: the fuzz tests try many more inputs",
    ),
)


def set_here() -> Iterator[tuple[str, str]]:
    """(name, value) of the variables that are set, and of names like theirs that nothing reads."""
    known = {each.name for each in VARIABLES}
    for name, value in sorted(os.environ.items()):
        if name.startswith("OSTRACK_FAST_"):
            yield name, value if name in known else f"{value} (nothing reads this variable)"

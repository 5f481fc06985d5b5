"""Compile what host functions launch, for a GPU that is not there.

`compile_launches(capability, call)` runs a host function on CPU tensors; every `kernel[grid](...)` inside goes through
Triton's usual specialization and its compiler down to machine code for that compute capability, and is not launched.
"""

import dataclasses
import functools
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Callable

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

# Shared memory one block may ask for, bytes (CUDA programming guide, technical specifications per compute capability).
SHARED_MEMORY_LIMIT = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
REGISTERS_PER_MULTIPROCESSOR = 65536
MMA = {
    80: "mma.sync.aligned.m16n8k16",
    86: "mma.sync.aligned.m16n8k16",
    89: "mma.sync.aligned.m16n8k16",
    90: "wgmma.mma_async",
    100: "tcgen05.mma",
    120: "mma.sync.aligned.m16n8k16",
}
CUOBJDUMP = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class AbsentGPU:
    """What the JIT asks of a driver before a launch."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # the JIT keeps one cache per device number, so each target needs its own

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One compiled launch."""

    name: str
    ptx: str = dataclasses.field(repr=False)
    registers: int
    stack: int  # bytes per thread; spilled registers live there
    shared: int
    warps: int


def _inspect(kernel) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        report = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    usage = dict(re.findall(r"(REG|STACK):(\d+)", report))
    return Compiled(
        name=kernel.metadata.name,
        ptx=kernel.asm["ptx"],
        registers=int(usage["REG"]),
        stack=int(usage["STACK"]),
        shared=kernel.metadata.shared,
        warps=kernel.metadata.num_warps,
    )


def compile_launches(capability: int, call: Callable[[], object]) -> list[Compiled]:
    """Every kernel that `call` launches, compiled for the compute capability (80 for 8.0)."""
    kernels = []

    def subscript(self, grid):
        return functools.partial(compile_one, self, grid)

    def compile_one(function, grid, *args, **kwargs):
        kernels.append(function.warmup(*args, grid=grid, **kwargs))

    stock = triton.KernelInterface.__getitem__
    active = driver._active
    triton.KernelInterface.__getitem__ = subscript
    driver.set_active(AbsentGPU(capability))
    try:
        call()
    finally:
        triton.KernelInterface.__getitem__ = stock
        driver._active = active
    return [_inspect(kernel) for kernel in kernels]

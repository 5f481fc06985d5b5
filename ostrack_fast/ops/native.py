"""The compiled C++ and CUDA kernels: how tensors cross the C ABI of `csrc/ostrack_fast.h`.

A tensor crosses as (address, dtype, shape, strides). The kernels check shapes, dtypes and layout themselves, and raise
ValueError or TypeError; they have no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from .recording import launch
from .threads import gnu_parallel, thread_count

try:
    from .. import _C
except ImportError as error:
    _C = None  # type: ignore[assignment]
    _missing = (
        f"the compiled module ostrack_fast._C cannot be imported ({error}) from {Path(__file__).parents[1]}: "
        "install the package with pip, and if this is a source checkout, with pip install -e ."
    )

TensorView = tuple[int, int, tuple[int, ...], tuple[int, ...]]

_DTYPES: dict[torch.dtype, int] = {} if _C is None else {getattr(torch, name): n for name, n in _C.dtypes.items()}
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
MAX_GRID = 4096  # side of a map


def build_info() -> dict[str, Any]:
    """Version, compilers, CUDA architectures, detected CPU features and the CPU level in use of the compiled module.

    Raises:
        RuntimeError: the module is not built.
    """
    if _C is None:
        raise RuntimeError(_missing)
    return _C.build_info()


@cache  # asked for in every backward pass
def cpu_level() -> str:
    """What the compiled CPU kernels use: portable, avx2, avx_vnni, avx512, avx512_bf16; or unknown."""
    return build_info()["cpu_level"]


def multiplies_bfloat16() -> bool:
    """Whether the compiled CPU kernels of the level in use multiply pairs of bfloat16."""
    return cpu_level() == "avx512_bf16"


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of what layers of a compute dtype hand on to each other.

    int8 is quantized from bfloat16, or from float32 where no instruction rounds to bfloat16.
    """
    if dtype != torch.int8:
        return dtype
    return torch.bfloat16 if multiplies_bfloat16() else torch.float32


def has_cpu_feature(name: str) -> bool:
    """Whether the compiled module is there and finds this instruction set on the processor."""
    return _C is not None and build_info()["cpu_features"][name]


@cache
def _cuda_problem(device: int) -> str | None:
    """Why the compiled CUDA kernels cannot run on this device, or None."""
    count, reason = _C.cuda_device_count()
    if count <= device:
        return f"the CUDA runtime built into ostrack_fast._C sees {count} devices ({reason})"
    major, minor = torch.cuda.get_device_capability(device)
    built = _C.build_info()["cuda_architectures"]
    real = [int(name.removesuffix("-real")) for name in built if not name.endswith("-virtual")]
    virtual = [int(name.removesuffix("-virtual")) for name in built if not name.endswith("-real")]
    # Machine code runs on its own major generation from its minor number on; PTX on everything newer.
    if any(arch // 10 == major and arch % 10 <= minor for arch in real) or any(
        arch <= 10 * major + minor for arch in virtual
    ):
        return None
    return f"built for CUDA architectures {' '.join(built)}, not for this device's {major}.{minor}"


def unsupported_reason(kernel: str, device: torch.device) -> str | None:
    """Why no compiled kernel of this name can run on this device, or None."""
    if _C is None:
        return _missing
    if device.type not in ("cpu", "cuda"):
        return f"no kernels for device {device.type}"
    if not hasattr(_C, f"{device.type}_{kernel}"):
        return f"no compiled {device.type} kernel for {kernel} in this build"
    return _cuda_problem(device.index or 0) if device.type == "cuda" else None


def float_reason(dtype: torch.dtype) -> str | None:
    """Why kernels that compute, rather than copy, cannot take this dtype, or None."""
    return None if dtype in FLOATS else f"no kernel for {dtype}; only float32, float16 and bfloat16"


def element_reason(dtype: torch.dtype) -> str | None:
    """Why kernels that copy elements cannot take this dtype, or None."""
    return None if dtype in (*FLOATS, torch.float64) else f"no kernel for {dtype}"


def code(dtype: torch.dtype) -> int:
    """The dtype's number in the C ABI."""
    return _DTYPES[dtype]


def dense(tensor: Tensor) -> Tensor:
    """The tensor's values row by row in memory. PyTorch keeps a sign apart from memory where `is_neg()`."""
    return (tensor.resolve_neg() if tensor.is_neg() else tensor).contiguous()


def address(tensor: Tensor) -> int:
    """Where the tensor's first element lies.

    Raises:
        RuntimeError: it has no memory of its own, as fake and meta tensors.
    """
    # Asking a fake tensor's address warns, and gives 0.
    found = 0 if isinstance(tensor, FakeTensor) else tensor.data_ptr()
    if found == 0 and tensor.numel() != 0:
        raise RuntimeError(
            f"a tensor of type {type(tensor).__name__} has no memory that a compiled kernel could read: fake and meta "
            "tensors work with the functions of ostrack_fast.ops, not with layers, bound ops or an Engine"
        )
    return found


def view(tensor: Tensor) -> TensorView:
    """The tensor as it crosses the C ABI; raises as `address`."""
    # Plain tensors with memory need no questions: layers are called dozens of times a frame.
    pointer = (tensor.data_ptr() if type(tensor) is Tensor else 0) or address(tensor)
    return pointer, _DTYPES[tensor.dtype], tensor.shape, tensor.stride()


def call(kernel: str, device: torch.device, *arguments: Tensor | float | None) -> None:
    """Run a kernel on the device's current stream, or on as many threads as PyTorch uses."""
    converted = [view(value) if isinstance(value, Tensor) else value for value in arguments]
    function = getattr(_C, f"{device.type}_{kernel}")
    if device.type == "cuda":
        with torch.cuda.device(device):
            function(*converted, torch.cuda.current_stream().cuda_stream)
    else:
        launch(function, *converted, thread_count())


@contextmanager
def pytorch_threads() -> Iterator[None]:
    """Kernels that this thread calls inside run on PyTorch's OpenMP threads, where it has some with GNU's interface.

    For kernels between PyTorch's own ops, as in training: OpenMP's threads go on spinning for milliseconds after each
    op, and kernels on threads of their own would share the cores with them. Else those are better, as they wait for
    none that another process keeps from its core.
    """
    if _C is None:
        yield
        return
    before = _C.cpu_use_openmp(gnu_parallel())
    try:
        yield
    finally:
        _C.cpu_use_openmp(before)

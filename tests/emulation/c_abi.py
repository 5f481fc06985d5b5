"""Numpy arrays as the C ABI of csrc/ostrack_fast.h sees tensors. Imports no torch, which sanitizers do not bear."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np

HEADER = Path(__file__).resolve().parents[2] / "csrc" / "ostrack_fast.h"
_TEXT = HEADER.read_text(encoding="utf-8")
NUMBERS = {name: int(n) for name, n in re.findall(r"OSTF_(\w+) = (-?\d+)", _TEXT)}
# In the order of the header's list.
CUDA_KERNELS = tuple(re.findall(r"X\((\w+)\)", _TEXT.partition("OSTF_CUDA_KERNELS(X) ")[2].partition("\n\n")[0]))
# Ops without a CUDA kernel, which need AVX2 on a CPU. On a GPU the gradient of attention is Triton's, and PyTorch
# multiplies matrices and computes GELU.
FOR_CPUS = (
    "attention_backward", "gelu", "gelu_backward", "gelu_matmul", "matmul", "matmul_gelu", "matmul_gelu_backward",
)  # fmt: skip
F32, F16, BF16, I8, F64 = (NUMBERS[name] for name in ("F32", "F16", "BF16", "I8", "F64"))
EINVAL, EDTYPE = NUMBERS["EINVAL"], NUMBERS["EDTYPE"]

# bfloat16 arrays are held as uint16.
_CODES = {
    np.dtype(kind): NUMBERS[name]
    for kind, name in (
        (np.float32, "F32"), (np.float16, "F16"), (np.uint16, "BF16"), (np.int8, "I8"), (np.uint8, "U8"),
        (np.bool_, "BOOL"), (np.int32, "I32"), (np.int64, "I64"), (np.float64, "F64"),
    )
}  # fmt: skip


class Tensor(ctypes.Structure):
    """`ostf_tensor`."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 5),
        ("stride", ctypes.c_int64 * 5),
    )


def view(array: np.ndarray, shape: tuple[int, ...] | None = None) -> Tensor:
    """The array; with a `shape`, dense memory of that shape that begins where the array does, true or not."""
    size = array.itemsize
    strides = tuple(stride // size for stride in array.strides)
    if shape is not None:
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    shape = array.shape if shape is None else shape
    fill = (0,) * (5 - len(shape))
    found = Tensor(
        array.ctypes.data, _CODES[array.dtype], len(shape), (ctypes.c_int64 * 5)(*shape, *fill),
        (ctypes.c_int64 * 5)(*strides, *fill),
    )  # fmt: skip
    found.array = array  # its memory lives as long as the view
    return found

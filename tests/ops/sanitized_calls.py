"""Call the CPU kernels of one library at odd sizes, in a process that a sanitizer was loaded into.

    python sanitized_calls.py LIBRARY CALLS [half the memory]

CALLS is a folder that `test_sanitized.py` wrote: the ops' edge examples as calls of the C ABI, because torch does not
run under the sanitizers. What the kernels compute is checked elsewhere; here memory is: every array has exactly the
size the C ABI asks for.
"""

from __future__ import annotations

import ctypes
import os
import sys
from itertools import product
from pathlib import Path

import numpy as np
from c_abi import BF16, EDTYPE, EINVAL, F32, FOR_CPUS, I8, NUMBERS, view
from saved_calls import load, shortened

NONE, GELU, RELU = (NUMBERS[name] for name in ("NONE", "GELU", "RELU"))
GENERATOR = np.random.default_rng(0)


class Library:
    def __init__(self, path: str):
        self._library = ctypes.CDLL(path)
        self.calls = 0

    def __call__(self, name: str, *arguments: np.ndarray | int | float | None, status: int = 0) -> None:
        """A call whose tensors cross as views; int is int64_t, float double, None a null pointer."""
        converted = []
        for value in arguments:
            if isinstance(value, np.ndarray):
                converted.append(ctypes.byref(view(value)))
            elif isinstance(value, ctypes.Structure):
                converted.append(ctypes.byref(value))
            elif value is None:
                converted.append(ctypes.c_void_p(None))
            else:
                # 64 bits serve int and int64_t alike, in a register and, on a little-endian machine, on the stack.
                converted.append((ctypes.c_double if isinstance(value, float) else ctypes.c_int64)(value))
        found = getattr(self._library, "ostf_cpu_" + name)(*converted)
        assert found == status, f"{name}: status {found}"
        self.calls += 1

    def packed_bytes(self, weight: np.ndarray, dtype: int, groups: int, status: int = 0) -> int:
        size = ctypes.c_int64()
        found = self._library.ostf_cpu_linear_packed_bytes(
            ctypes.byref(view(weight)), dtype, groups, ctypes.byref(size)
        )
        assert found == status, f"linear_packed_bytes: status {found}"
        return size.value


def numbers(dtype: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    values = (GENERATOR.standard_normal(shape) * scale).astype(np.float32)
    return values if dtype == F32 else (values.view(np.uint32) >> 16).astype(np.uint16)


def empty(dtype: int, *shape: int) -> np.ndarray:
    return np.empty(shape, np.float32 if dtype == F32 else np.uint16)


def _refused(name: str, arguments: list, capability: str) -> bool:
    """Whether the kernel needs another instruction set, see ostrack_fast.h."""
    if name not in FOR_CPUS:
        return False
    first = arguments[0]
    halves = (first if isinstance(first, ctypes.Structure) else view(first)).dtype == BF16
    in_pairs = halves and name == "attention_backward"
    return capability == "portable" or (in_pairs and capability in ("avx2", "avx_vnni", "avx512"))


def recorded(call: Library, folder: Path, short: bool) -> None:
    """Every recorded call on several numbers of threads; with `short`, on memory that is too small."""
    capability = os.environ.get("OSTRACK_FAST_CPU_CAPABILITY", "")
    for name, arguments in load(folder):
        refused = _refused(name, arguments, capability)
        for threads in (1, 2, 3, 4, 5, 7):
            given = shortened(arguments) if short else arguments
            call(name, *given, threads, status=EDTYPE if refused else 0)


def packed(call: Library, dtype: int, outputs: int, inputs: int, taps: int, groups: int, threads: int) -> np.ndarray:
    weight, bias = numbers(F32, outputs, taps, inputs // groups), numbers(F32, outputs)
    weights = np.empty(call.packed_bytes(weight, dtype, groups), np.uint8)
    call("linear_pack", weight, bias, weights, dtype, groups, threads)
    return weights


def linear(call: Library, kinds: tuple[int, ...]) -> None:
    sizes = ((2, 19, 768, 100), (1, 1, 3, 1), (1, 19, 50, 49), (3, 8, 64, 33), (1, 10, 130, 48), (1, 40, 1540, 17))
    rows = (F32, BF16)
    for dtype, (B, R, inputs, outputs), act, threads in product(kinds, sizes, (NONE, GELU), (1, 2)):
        weights = packed(call, dtype, outputs, inputs, 1, 1, threads)
        for x_dtype, out_dtype, norm in product(rows, rows, (-1.0, 1e-6)):
            x, out = numbers(x_dtype, B, R, inputs), empty(out_dtype, B, R, outputs)
            call("linear", weights, x, None, out, dtype, norm, act, threads)
        x, total = numbers(F32, B, R, inputs), numbers(F32, B, R, outputs)
        call("linear", weights, x, total, total, dtype, -1.0, act, threads)  # the residual is the result
    for wrong in (weights[:-1].copy(), weights.astype(np.int64)):
        call("linear", wrong, x, None, total, dtype, -1.0, NONE, 1, status=EINVAL)
    call("linear", weights, x, total[:, 1:].copy(), total, dtype, -1.0, NONE, 1, status=EINVAL)
    call("linear", weights, x[:, :, ::-1], None, total, dtype, -1.0, NONE, 1, status=EINVAL)


def conv3x3(call: Library, kinds: tuple[int, ...]) -> None:
    for dtype, (B, F, inputs, outputs, groups), threads in product(
        kinds, ((1, 16, 96, 48, 3), (2, 5, 7, 3, 1), (1, 1, 64, 17, 1), (1, 3, 390, 33, 3)), (1, 2)
    ):
        weights = packed(call, dtype, outputs, inputs, 9, groups, threads)
        for x_dtype in (F32, BF16):
            x, out = numbers(x_dtype, B, F, F, inputs), empty(BF16, B, F, F, outputs)
            call("conv3x3", weights, x, out, dtype, groups, RELU, threads)
    call("conv3x3", weights, x, out[:, 1:].copy(), dtype, groups, RELU, 1, status=EINVAL)


def restore_conv3x3(call: Library) -> None:
    sizes = ((1, 89, 768, 16), (2, 5, 70, 3), (1, 0, 5, 1), (3, 9, 64, 3), (1, 1, 1, 1))
    for dtype, (B, K, C, F), threads in product((F32, BF16), sizes, (1, 2)):
        ids = np.stack([GENERATOR.permutation(F * F)[:K] for _ in range(B)]).astype(np.int64)
        taps, bias, grid = numbers(F32, B, K, 9, C), numbers(F32, C), empty(dtype, B, F, F, C)
        call("restore_conv3x3", taps, ids, bias, grid, RELU, threads)
    call("restore_conv3x3", taps, ids, bias, grid, GELU, 1, status=EINVAL)


def patches(call: Library) -> None:
    for dtype, (B, C, rows, columns, P), threads in product(
        (F32, BF16), ((1, 3, 2, 3, 16), (2, 1, 3, 1, 5), (1, 2, 1, 4, 1)), (1, 2)
    ):
        image, cut = numbers(dtype, B, C, rows * P, columns * P), empty(dtype, B, rows * columns, C, P, P)
        call("patches", image, cut, threads)
    call("patches", image[:, :, :, 1:].copy(), cut, 1, status=EINVAL)
    call("patches", image, empty(F32, 1, 4, 2, 1, 1), 1, status=EINVAL)


def head_maps(call: Library) -> None:
    for B, F in ((1, 12), (3, 5), (2, 1), (0, 3)):
        call("head_maps", numbers(F32, B, F * F, 5), empty(F32, B, 5, F, F), 1)
    call("head_maps", numbers(F32, 1, 8, 5), empty(F32, 1, 5, 3, 3), 1, status=EINVAL)
    call("head_maps", numbers(F32, 1, 9, 5), empty(F32, 1, 4, 3, 3), 1, status=EINVAL)


def main() -> None:
    call, folder = Library(sys.argv[1]), Path(sys.argv[2])
    recorded(call, folder, short=bool(sys.argv[3:]))
    kinds = []
    one = np.ones((1, 1, 1), np.float32)
    for dtype in (F32, BF16, I8):  # what this processor, or the capability asked for, has kernels for
        try:
            call.packed_bytes(one, dtype, 1)
            kinds.append(dtype)
        except AssertionError:
            call.packed_bytes(one, dtype, 1, status=EDTYPE)
    if kinds:
        linear(call, tuple(kinds))
        conv3x3(call, tuple(kinds))
    restore_conv3x3(call)
    patches(call)
    head_maps(call)
    print(call.calls, "calls, layers in", kinds)


if __name__ == "__main__":
    main()

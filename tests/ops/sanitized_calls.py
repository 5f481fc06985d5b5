"""Call the CPU kernels of one library at odd sizes, in a process that a sanitizer was loaded into.

    python sanitized_calls.py LIBRARY CALLS [one row too few]

CALLS is a folder that `test_sanitized.py` wrote: the registry's samples as calls of the C ABI, because torch does not
run under the sanitizers. What the kernels compute is checked elsewhere; here memory is: every array has exactly the
size the C ABI asks for.
"""

from __future__ import annotations

import ctypes
import json
import sys
from itertools import product
from pathlib import Path

import numpy as np
from c_abi import BF16, EDTYPE, F32, I8, view

GENERATOR = np.random.default_rng(0)


class Library:
    def __init__(self, path: str):
        self._library = ctypes.CDLL(path)
        self.calls = 0

    def views(self, name: str, arguments: list, threads: int, short: bool) -> None:
        """A call whose tensors cross as views; int is int64_t, float double, None a null pointer.

        short: plant a fault, the first tensor's memory lacks the last row that its view promises.
        """
        converted, kept = [], []
        for value in arguments:
            if isinstance(value, np.ndarray) and short and not converted:
                kept.append(value.reshape(-1)[: -value.shape[-1]].copy())
                converted.append(ctypes.byref(view(kept[0], value.shape)))
            elif isinstance(value, np.ndarray):
                converted.append(ctypes.byref(view(value)))
            elif value is None:
                converted.append(ctypes.c_void_p(None))
            else:
                converted.append((ctypes.c_double if isinstance(value, float) else ctypes.c_int64)(value))
        found = getattr(self._library, "ostf_cpu_" + name)(*converted, threads)
        assert found == 0, f"{name}: status {found}"
        self.calls += 1

    def __call__(self, name: str, *arguments: np.ndarray | int | float | None, status: int = 0) -> None:
        converted = []
        for value in arguments:
            if isinstance(value, np.ndarray):
                assert value.flags.c_contiguous
                converted.append(ctypes.c_void_p(value.ctypes.data))
            elif isinstance(value, float):
                converted.append(ctypes.c_double(value))
            else:
                # 64 bits serve int and int64_t alike, in a register and, on a little-endian machine, on the stack.
                converted.append(ctypes.c_void_p(None) if value is None else ctypes.c_int64(value))
        found = getattr(self._library, "ostf_cpu_" + name)(*converted)
        assert found == status, f"{name}: status {found}"
        self.calls += 1


def numbers(dtype: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    values = (GENERATOR.standard_normal(shape) * scale).astype(np.float32)
    return values if dtype == F32 else (values.view(np.uint32) >> 16).astype(np.uint16)


def empty(dtype: int, *shape: int) -> np.ndarray:
    return np.empty(shape, np.float32 if dtype == F32 else np.uint16)


def recorded(call: Library, folder: Path, short: bool) -> None:
    """Every recorded call on several numbers of threads; with `short`, the first tensor lacks its last row."""
    arrays = dict(np.load(folder / "arrays.npz"))
    for key in arrays:
        if key.endswith(" channels last"):
            arrays[key] = arrays[key].transpose(0, 3, 1, 2)
    for name, arguments in json.loads((folder / "calls.json").read_text()):
        for threads in (1, 2, 3, 4, 5, 7):
            call.views(name, [arrays[a] if isinstance(a, str) else a for a in arguments], threads, short)


def packed(call: Library, dtype: int, outputs: int, inputs: int, taps: int, groups: int, threads: int) -> np.ndarray:
    size = np.zeros(1, np.int64)
    call("linear_packed_bytes", dtype, outputs, inputs, taps, groups, size)
    weights = np.empty(size[0], np.uint8)
    weight, bias = numbers(F32, outputs, taps, inputs // groups), numbers(F32, outputs)
    call("linear_pack", dtype, weight, bias, weights, outputs, inputs, taps, groups, threads)
    return weights


def linear(call: Library, kinds: tuple[int, ...]) -> None:
    sizes = ((2, 19, 768, 100), (1, 1, 3, 1), (1, 19, 50, 49), (3, 8, 64, 33), (1, 10, 130, 48), (1, 40, 1540, 17))
    rows = (F32, BF16)
    for dtype, (B, R, inputs, outputs), act, threads in product(kinds, sizes, (0, 1), (1, 2)):
        weights = packed(call, dtype, outputs, inputs, 1, 1, threads)
        for x_dtype, out_dtype, norm in product(rows, rows, (-1.0, 1e-6)):
            x, out = numbers(x_dtype, B, R, inputs), empty(out_dtype, B, R, outputs)
            sizes_of_call = (B, R, outputs, inputs, norm, act, threads)
            call("linear", dtype, weights, x_dtype, x, R * inputs, None, 0, out_dtype, out, R * outputs, *sizes_of_call)
        x, total = (F32, numbers(F32, B, R, inputs), R * inputs), numbers(F32, B, R, outputs)
        to = (total, R * outputs, F32, total, R * outputs)  # the residual is the result
        call("linear", dtype, weights, *x, *to, B, R, outputs, inputs, -1.0, act, threads)


def conv3x3(call: Library, kinds: tuple[int, ...]) -> None:
    for dtype, (B, F, inputs, outputs, groups), threads in product(
        kinds, ((1, 16, 96, 48, 3), (2, 5, 7, 3, 1), (1, 1, 64, 17, 1), (1, 3, 390, 33, 3)), (1, 2)
    ):
        weights = packed(call, dtype, outputs, inputs, 9, groups, threads)
        for x_dtype in (F32, BF16):
            x, out = numbers(x_dtype, B, F, F, inputs), empty(BF16, B, F, F, outputs)
            sizes = (B, F, outputs, inputs, groups, 2, threads)
            call("conv3x3", dtype, weights, x_dtype, x, BF16, out, *sizes)


def restore_conv3x3(call: Library) -> None:
    sizes = ((1, 89, 768, 16), (2, 5, 70, 3), (1, 0, 5, 1), (3, 9, 64, 3), (1, 1, 1, 1))
    for dtype, (B, K, C, F), threads in product((F32, BF16), sizes, (1, 2)):
        ids = np.stack([GENERATOR.permutation(F * F)[:K] for _ in range(B)]).astype(np.int64)
        products, bias, grid = numbers(F32, B, K, 9, C), numbers(F32, C), empty(dtype, B, F, F, C)
        call("restore_conv3x3", products, ids, bias, dtype, grid, B, K, C, F, 2, threads)


def main() -> None:
    call, folder = Library(sys.argv[1]), Path(sys.argv[2])
    recorded(call, folder, short=bool(sys.argv[3:]))
    size, kinds = np.zeros(1, np.int64), []
    for dtype in (F32, BF16, I8):  # what this processor, or the capability asked for, has kernels for
        try:
            call("linear_packed_bytes", dtype, 1, 1, 1, 1, size)
            kinds.append(dtype)
        except AssertionError:
            call("linear_packed_bytes", dtype, 1, 1, 1, 1, size, status=EDTYPE)
    linear(call, tuple(kinds))
    conv3x3(call, tuple(kinds))
    restore_conv3x3(call)
    print(call.calls, "calls, layers in", kinds)


if __name__ == "__main__":
    main()

"""Call the CPU kernels of one library at odd sizes, in a process that a sanitizer was loaded into.

    python sanitized_calls.py LIBRARY [one row too many]

Imports no torch, which does not run under the sanitizers. What the kernels compute is checked elsewhere; here memory
is: every array has exactly the size the C ABI asks for.
"""

from __future__ import annotations

import ctypes
import sys
from itertools import product

import numpy as np

F32, BF16, I8 = 0, 2, 3
EDTYPE = -2
GENERATOR = np.random.default_rng(0)


class Library:
    def __init__(self, path: str):
        self._library = ctypes.CDLL(path)
        self.calls = 0

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


def attention(call: Library, extra: int = 0) -> None:
    sizes = ((1, 320, 64), (2, 153, 64), (1, 1, 1), (1, 65, 64), (2, 7, 3), (1, 63, 9), (1, 130, 128))
    for dtype, (B, N, T), H, D, threads in product((F32, 1, BF16), sizes, (1, 2), (1, 8, 33, 64), (1, 2)):
        for scale, M in product((1.0, 300.0), {N, T, max(1, N - T)}):
            q, kv = numbers(dtype, B, M, H, D, scale=scale), numbers(dtype, B, N, 2, H, D, scale=scale)
            mask = np.zeros((1, T), np.uint8)
            mask[0, [0, T // 2]] = 1
            scored = T < N and T <= M
            score = np.empty((B, N - T), np.float32) if scored else None
            out, lse = empty(dtype, B, M, H * D), np.empty((B, H, M), np.float32)
            strides = (q, M * H * D, H * D, kv, N * 2 * H * D, 2 * H * D)
            sizes_of_call = (B, M, N + extra, H, D, T, threads)
            call("attention", dtype, *strides, mask if scored else None, 1, out, M * H * D, score, lse, *sizes_of_call)


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


def restore(call: Library) -> None:
    sizes = ((1, 89, 768, 16), (2, 5, 70, 3), (1, 0, 5, 1), (3, 9, 64, 3), (1, 1, 1, 1))
    for dtype, (B, K, C, F), threads in product((F32, BF16), sizes, (1, 2)):
        ids = np.stack([GENERATOR.permutation(F * F)[:K] for _ in range(B)]).astype(np.int64)
        products, bias, grid = numbers(F32, B, K, 9, C), numbers(F32, C), empty(dtype, B, F, F, C)
        call("restore_conv3x3", products, ids, bias, dtype, grid, B, K, C, F, 2, threads)
        call("restore_norm", dtype, numbers(dtype, B, K, C), ids, bias, bias, 1e-6, dtype, grid, B, K, C, F, threads)
        size = 4 if dtype == F32 else 2
        call("restore", size, numbers(dtype, B, K, C), ids, empty(dtype, B, C, F, F), B, K, C, F, threads)


def eliminate(call: Library) -> None:
    for dtype, (B, T, S, K, C), threads in product(
        (F32, BF16), ((2, 64, 256, 180, 768), (1, 0, 1, 1, 1), (3, 5, 9, 1, 33), (1, 1, 40, 40, 7)), (1, 2)
    ):
        ids = np.tile(np.arange(S, dtype=np.int64), (B, 1))
        left, removed = np.empty((B, K), np.int64), np.empty((B, S - K), np.int64)
        size = 4 if dtype == F32 else 2
        call("eliminate", size, numbers(dtype, B, T + S, C), numbers(F32, B, S), ids, empty(dtype, B, T + K, C), left,
             removed, B, T, S, K, C, threads)  # fmt: skip


def frames(call: Library) -> None:
    frame = GENERATOR.integers(0, 256, (37, 53, 3), dtype=np.uint8)
    boxes = np.array([[5, 6, 20, 11], [-30, -9, 70, 60], [50.5, 30.2, 9, 9], [400, 3, 5, 5]], np.float64)
    mean = np.full(3, 0.5, np.float32)
    for dtype, size, factor, threads in product((F32, 1, BF16), (1, 16, 47), (0.3, 2.0, 4.0), (1, 2)):
        patch, scale = empty(dtype, 4, 3, size, size), np.empty(4, np.float64)
        call("crop", dtype, frame, 37, 53, boxes, factor, mean, mean, patch, scale, 4, size, threads)
    for dtype, F, threads in product((F32, 1, BF16), (1, 5, 16), (1, 2)):
        maps = [numbers(dtype, 4, channels, F, F) for channels in (1, 2, 2)]
        box, best = np.empty((4, 4), np.float32), np.empty(4, np.float32)
        for window in (None, numbers(F32, F, F)):
            call("decode", dtype, *maps, window, box, best, 4, F, threads)
        call("advance", box, boxes, 37, 53, 4.0, 10.0, boxes.copy(), 4, threads)


def main() -> None:
    call = Library(sys.argv[1])
    if sys.argv[2:]:
        attention(call, extra=1)
        return
    attention(call)
    size, kinds = np.zeros(1, np.int64), []
    for dtype in (F32, BF16, I8):  # what this processor, or the capability asked for, has products of
        try:
            call("linear_packed_bytes", dtype, 1, 1, 1, 1, size)
            kinds.append(dtype)
        except AssertionError:
            call("linear_packed_bytes", dtype, 1, 1, 1, 1, size, status=EDTYPE)
    linear(call, tuple(kinds))
    conv3x3(call, tuple(kinds))
    restore(call)
    eliminate(call)
    frames(call)
    print(call.calls, "calls, products of", kinds)


if __name__ == "__main__":
    main()

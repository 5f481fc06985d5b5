"""Run named cases on one library, in a process of its own: sanitizers end the process, or are preloaded into it.

Usage: worker.py LIBRARY CASE [CASE ...], a case being a JSON object {"name": ..., "configure": {...}}. Prints one JSON
line for each case that ended: {"name": ..., "digest": ...} with a digest of all output bytes, or {"name": ...,
"error": ...}.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import saved_calls
from c_abi import view
from emulator import EmulationError, Emulator, bf16_bits


def random(*shape: int, dtype=np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def attention(
    kernels: Emulator, dtype: str, tokens: int, width: int, heads: int, batch: int = 1, groups: int = 1
) -> list[np.ndarray]:
    """Chosen rows in two template tiles (one of them alone in its tile), partial tiles, a mask for each batch item."""
    qkv = random(batch, tokens, 3, heads, width)
    qkv = bf16_bits(qkv) if dtype == "bfloat16" else qkv.astype(dtype)
    mask = np.zeros((batch, 66), np.uint8)
    mask[0, [2, 65]] = mask[-1, 40] = 1
    return list(kernels.attention(qkv, mask, groups=groups))


def eliminate(kernels: Emulator, channels: int) -> list[np.ndarray]:
    score = np.round(random(2, 17, seed=1))
    return list(kernels.eliminate(random(2, 20, channels), score, np.tile(np.arange(17), (2, 1)), 11))


def restore(kernels: Emulator) -> list[np.ndarray]:
    ids = np.random.default_rng(0).permutation(49)[None, :30].astype(np.int64)
    return [kernels.restore(random(1, 30, 70, dtype=dtype), ids, 7) for dtype in (np.float16, np.float64)]


def crop(kernels: Emulator) -> list[np.ndarray]:
    frame = np.random.default_rng(0).integers(0, 256, (33, 41, 3), dtype=np.uint8)
    box = np.array([[-5.0, -5, 20, 20], [25.0, 20, 14, 11]])
    return list(kernels.crop(frame, box, 2.0, 20, [0.5] * 3, [2] * 3))


def decode(kernels: Emulator) -> list[np.ndarray]:
    score, size, offset = (random(2, channels, 17, 17, seed=seed) for seed, channels in enumerate((1, 2, 2)))
    return list(kernels.decode(score, size, offset, random(17, 17)))


def update_box(kernels: Emulator) -> list[np.ndarray]:
    return [kernels.update_box(random(70, 4), 1 + random(70, 4).astype(np.float64) ** 2, (30, 40), 4.0, 10.0)]


def shorter(kernels: Emulator, op: str) -> list[np.ndarray]:
    """A kernel told of one row more than the array has: what the address sanitizer must notice."""
    if op.startswith("attention"):
        groups = 2 if op == "attention two groups" else 1
        qkv = view(random(1, 130, 3, 1, 64, dtype=np.float16), (1, 131, 3, 1, 64))
        kernels.call("ostf_cuda_attention", qkv, None, np.zeros((1, 131, 64), np.float16), *[None] * 4, groups, None)
    elif op == "eliminate":
        tokens, out = random(1, 7, 8), random(1, 8, 8)
        kept, removed, ids = np.zeros((1, 8), np.int64), np.zeros((1, 0), np.int64), np.arange(8)[None]
        kernels.call("ostf_cuda_eliminate", view(tokens, (1, 8, 8)), random(1, 8), ids, out, kept, removed, None)
    elif op == "restore":
        tokens = view(random(1, 3, 8), (1, 4, 8))
        kernels.call("ostf_cuda_restore", tokens, np.arange(4)[None], random(1, 8, 2, 2), None)
    elif op == "crop":
        frame = view(np.zeros((9, 10, 3), np.uint8), (13, 10, 3))
        arrays = (np.ones(3, np.float32), np.ones(3, np.float32), random(1, 3, 16, 16), np.zeros(1))
        kernels.call("ostf_cuda_crop", frame, np.array([[0.0, 0, 10, 13]]), *arrays, 1.0, None)
    elif op == "update_box":
        box = view(np.ones((3, 4)), (4, 4))
        kernels.call("ostf_cuda_update_box", random(4, 4), box, np.ones((4, 4)), 30, 40, 4.0, 10.0, None)
    else:
        maps = [view(random(1, c, 5, 5), (1, c, 6, 6)) for c in (1, 2, 2)]
        kernels.call("ostf_cuda_decode", *maps, None, random(1, 4), random(1), None)
    return []


def examples(kernels: Emulator, folder: str) -> list[np.ndarray]:
    """All calls that tests/op_calls.py saved there: the examples of every op's own file."""
    arrays = []
    for kernel, arguments in saved_calls.load(Path(folder)):
        kernels.call(f"ostf_cuda_{kernel}", *arguments, None)
        arrays += [each for each in arguments if isinstance(each, np.ndarray)]
    return arrays


def fault(kernels: Emulator, name: str, broken: int) -> list[np.ndarray]:
    """One kernel of faults.cu; raises where the result is wrong."""
    data = np.zeros(64, np.float32)
    if name == "read_before_the_wait":
        kernels.written_before(data)
    pointer = data.ctypes.data_as(ctypes.c_void_p)
    code = kernels.library.run_fault(name.encode(), broken, pointer)
    if code:
        raise EmulationError(code, kernels.library.cuemu_error().decode() if code > 0 else "unknown fault")
    if np.isnan(data).any():
        raise EmulationError(0, "NaN: shared memory was read before it was written")
    return [data]


# What the orders of threads are tried with: sizes at which every barrier is needed.
CASES: dict[str, Callable[[Emulator], list[np.ndarray]]] = {
    "attention float16": lambda k: attention(k, "float16", 140, 32, 2),
    "attention two groups": lambda k: attention(k, "float16", 200, 64, 1, groups=2),
    # What the second group hands over lies where its last tiles were.
    "attention two groups, three steps": lambda k: attention(k, "float16", 340, 64, 1, groups=2),
    "attention bfloat16": lambda k: attention(k, "bfloat16", 140, 96, 1, 2),
    "attention float32": lambda k: attention(k, "float32", 140, 32, 2),
    "attention float32 wide": lambda k: attention(k, "float32", 80, 128, 1),
    "eliminate": lambda k: eliminate(k, 64),
    "eliminate narrow": lambda k: eliminate(k, 7),
    "restore": restore,
    "crop": crop,
    "decode": decode,
    "update_box": update_box,
}


def run(kernels: Emulator, name: str) -> list[np.ndarray]:
    kind, _, rest = name.partition(":")
    if kind == "examples":
        return examples(kernels, rest)
    if kind == "shorter":
        return shorter(kernels, rest)
    if kind in ("broken", "sound"):
        return fault(kernels, rest, kind == "broken")
    return CASES[name](kernels)


def digest(arrays: list[np.ndarray]) -> str:
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(array.tobytes())
    return whole.hexdigest()


def main() -> None:
    kernels = Emulator(sys.argv[1])
    for argument in sys.argv[2:]:
        case = json.loads(argument)
        kernels.configure(**case.get("configure", {}))
        try:
            answer = {"digest": digest(run(kernels, case["name"]))}
        except EmulationError as error:
            answer = {"error": str(error)}
        print(json.dumps({"name": case["name"], **answer}), flush=True)


if __name__ == "__main__":
    main()

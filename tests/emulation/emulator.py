"""Build the CUDA kernels for the CPU and call them on numpy arrays.

The kernels' own source is compiled with a host compiler against cuda_emulation.h. Flavours: "plain" (fast), "address"
(AddressSanitizer and UndefinedBehaviorSanitizer) and "thread" (ThreadSanitizer); the last two are for worker.py. This
module must import without torch, which does not run under the sanitizers.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
KERNELS = ("attention", "eliminate", "restore", "crop", "decode", "advance")
FLAVOURS = {
    "plain": ["-O2"],
    "address": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"],
    "thread": ["-O1"],
}
COMMON = ["-std=c++17", "-g1", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", "-fvisibility=hidden", "-Wall"]
F32, F16, BF16 = 0, 1, 2
EINVAL, EDTYPE = -1, -2
ORDERS = ("in turn", "reversed", "random")
COPIES = ("at wait", "at issue", "anytime")


def cuda_include() -> Path | None:
    """The include folder of a CUDA toolkit: nvcc's, or the one in NVIDIA's packages for Python."""
    nvcc = shutil.which("nvcc")
    candidates = []
    if nvcc:
        candidates.append(Path(nvcc).resolve().parents[1] / "include")
        answer = subprocess.run(
            [nvcc, "-v", "-E", "-x", "cu", "/dev/null"], capture_output=True, text=True, check=False
        )
        top = [line.split("=", 1)[1].strip() for line in answer.stderr.splitlines() if line.startswith("#$ TOP=")]
        candidates += [Path(one) / "include" for one in top]
    site = Path(np.__file__).resolve().parents[1]
    candidates += sorted(site.glob("nvidia/*/include"))
    return next((c for c in candidates if (c / "cuda_fp16.h").is_file() and (c / "vector_functions.h").is_file()), None)


def missing() -> str | None:
    """Why the emulation cannot be built here, or None."""
    if shutil.which("g++") is None:
        return "no g++"
    if cuda_include() is None:
        return "no CUDA headers (a CUDA toolkit, or the nvidia-cuda-runtime package)"
    return None


def build(folder: Path, flavour: str = "plain", arch: int = 800, kernels: tuple[str, ...] = KERNELS) -> Path:
    """Compile and link what is not in `folder` yet; returns the shared library."""
    jobs = [(CSRC / "cuda" / f"{name}.cu" if name in KERNELS else HERE / f"{name}.cu", True) for name in kernels]
    jobs += [(HERE / name, False) for name in ("cuda_emulation.cpp", "warp_exchange.cpp")]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda job: _compile(folder, flavour, arch, *job), jobs))
    library = folder / f"{_digest(*(o.name for o in objects))}.so"
    if not library.exists():
        sanitize = {"plain": [], "address": ["-fsanitize=address,undefined"], "thread": ["-fsanitize=thread"]}[flavour]
        _run(["g++", "-shared", *sanitize, *map(str, objects)], library)
    return library


def _compile(folder: Path, flavour: str, arch: int, source: Path, is_kernel: bool) -> Path:
    flags = [*COMMON, *FLAVOURS[flavour], f"-DCUEMU_ARCH={arch}", f"-I{HERE}", f"-I{CSRC}"]
    if flavour == "thread":  # the runtime only reports to ThreadSanitizer, see cuda_emulation.cpp
        flags.append("-fsanitize=thread" if is_kernel else "-DCUEMU_TSAN")
    if is_kernel:
        flags.append("-Wno-unknown-pragmas")  # unroll
    headers = sorted([*HERE.glob("*.h"), *CSRC.glob("*.h"), *(CSRC / "cuda").glob("*.cuh")])
    target = folder / f"{_digest(*flags, source.name, *(p.read_text() for p in (source, *headers)))}.o"
    if not target.exists():
        command = ["g++", *flags, "-isystem", str(cuda_include()), "-x", "c++", "-c", str(source)]
        _run(command, target)
    return target


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _run(command: list[str], target: Path) -> None:
    """Make `target`, which appears only when it is whole: other test processes may share the folder."""
    partial = target.with_suffix(f".{os.getpid()}")
    done = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    partial.rename(target)


class EmulationError(RuntimeError):
    """The emulated kernel did what CUDA forbids, or the C ABI refused its arguments (see `code`)."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"status {code}: {text}")
        self.code = code


class Emulator:
    """The kernels of one library. Outputs start as garbage, so that what a kernel leaves unwritten shows."""

    def __init__(self, library: Path | str) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.cuemu_error.restype = ctypes.c_char_p
        self.configure()

    def configure(self, order: str = "in turn", copies: str = "at wait", seed: int = 0, unordered: str = "") -> None:
        """The schedule of blocks and threads, when cp.async copies happen, and (see cuda_emulation.cpp) a bug."""
        self.library.cuemu_configure(
            ORDERS.index(order), COPIES.index(copies), ctypes.c_uint64(seed), ctypes.c_char_p(unordered.encode())
        )

    def counts(self) -> dict[str, int]:
        """What happened since the last call."""
        values = (ctypes.c_uint64 * 4)()
        self.library.cuemu_counts(values)
        return dict(zip(("barriers", "mma", "phases", "conflicts"), values, strict=True))

    def call(self, name: str, *args: np.ndarray | int | float | None) -> None:
        """Call a C function: arrays as pointers, float as double."""
        converted = []
        for arg in args:
            if isinstance(arg, np.ndarray):
                assert arg.flags.c_contiguous
                converted.append(arg.ctypes.data_as(ctypes.c_void_p))
            elif isinstance(arg, float):
                converted.append(ctypes.c_double(arg))
            else:
                converted.append(ctypes.c_void_p(None) if arg is None else ctypes.c_int(arg))
        code = getattr(self.library, name)(*converted)
        if code:
            raise EmulationError(code, self.library.cuemu_error().decode() if code > 0 else "refused")

    def attention(self, qkv, mask=None, dtype=None, template=None, tickets=None, with_lse=True):
        """(out, score, lse) of qkv (B,N,3,H,D); float32, float16, or bfloat16 as uint16."""
        batch, tokens, _, heads, width = qkv.shape
        template = (0 if mask is None else mask.shape[-1]) if template is None else template
        out = garbage((batch, tokens, heads * width), qkv.dtype)
        lse = garbage((batch, heads, tokens), np.float32) if with_lse else None
        score = scratch = None
        if mask is not None:
            search = max(tokens - template, 0)  # calls with a template too long are to be refused by the kernel
            score = garbage((batch, search), np.float32)
            scratch = garbage((batch * heads * -(-template // 32) * search,), np.float32)
            tickets = np.zeros(batch, np.uint32) if tickets is None else tickets
            mask = np.ascontiguousarray(mask, np.uint8)
        mask_batch = 1 if mask is None or mask.ndim == 1 else mask.shape[0]
        sizes = (batch, tokens, heads, width, template)
        dtype = dtype_code(qkv) if dtype is None else dtype
        arrays = (qkv, mask, mask_batch, out, score, lse, scratch, tickets)
        self.call("ostf_cuda_attention", dtype, *arrays, *sizes, None)
        if tickets is not None:
            assert not tickets.any(), "tickets are not left at zero"
        return out, score, lse

    def eliminate(self, tokens, score, ids, keep):
        """(tokens, kept ids, removed ids); the template is what tokens has more than score."""
        batch, search = score.shape
        template, channels = tokens.shape[1] - search, tokens.shape[2]
        out = garbage((batch, template + keep, channels), tokens.dtype)
        kept, removed = garbage((batch, keep), np.int64), garbage((batch, search - keep), np.int64)
        sizes = (batch, template, search, keep, channels)
        self.call("ostf_cuda_eliminate", tokens.itemsize, tokens, score, ids, out, kept, removed, *sizes, None)
        return out, kept, removed

    def restore(self, tokens, ids, grid):
        """The map (B,C,F,F)."""
        batch, kept, channels = tokens.shape
        out = garbage((batch, channels, grid, grid), tokens.dtype)
        self.call("ostf_cuda_restore", tokens.itemsize, tokens, ids, out, batch, kept, channels, grid, None)
        return out

    def crop(self, frame, box, factor, size, mean, inv_std, dtype=F32):
        """(patch, scale)."""
        patch = garbage((len(box), 3, size, size), np.float32 if dtype == F32 else np.uint16)
        scale = garbage((len(box),), np.float64)
        height, width = frame.shape[:2]
        sizes = (len(box), size)
        mean, inv_std = np.asarray(mean, np.float32), np.asarray(inv_std, np.float32)
        arguments = (frame, height, width, box, float(factor), mean, inv_std, patch, scale)
        self.call("ostf_cuda_crop", dtype, *arguments, *sizes, None)
        return patch, scale

    def decode(self, score, size, offset, window=None):
        """(box, score at the best cell)."""
        batch, grid = score.shape[0], score.shape[-1]
        box, best = garbage((batch, 4), np.float32), garbage((batch,), np.float32)
        arrays = (score, size, offset, window, box, best)
        self.call("ostf_cuda_decode", dtype_code(score), *arrays, batch, grid, None)
        return box, best

    def advance(self, found, box, frame_size, factor, margin):
        """The boxes in the frame."""
        moved = garbage(box.shape, np.float64)
        arguments = (found, box, *frame_size, float(factor), float(margin), moved)
        self.call("ostf_cuda_advance", *arguments, len(box), None)
        return moved


def dtype_code(array: np.ndarray) -> int:
    """The C ABI's number; bfloat16 arrays are held as uint16."""
    return {np.dtype(np.float32): F32, np.dtype(np.float16): F16, np.dtype(np.uint16): BF16}[array.dtype]


def garbage(shape: tuple[int, ...], dtype) -> np.ndarray:
    """An array that no kernel would write: NaN, or -1."""
    array = np.empty(shape, dtype)
    array.view(np.uint8).fill(0xFF)
    return array


def bf16_bits(values: np.ndarray) -> np.ndarray:
    """float32 rounded to bfloat16, as uint16."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)

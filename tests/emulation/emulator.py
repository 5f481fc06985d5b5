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
from c_abi import BF16, CUDA_KERNELS, F16, F32, F64, Tensor, view

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
KERNELS = CUDA_KERNELS
FLAVOURS = {
    "plain": ["-O2"],
    "address": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"],
    "thread": ["-O1"],
}
COMMON = ["-std=c++17", "-g1", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", "-fvisibility=hidden", "-Wall"]
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


def build(folder: Path, flavour: str = "plain", arch: int = 900, kernels: tuple[str, ...] = KERNELS) -> Path:
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

    def written_before(self, array: np.ndarray) -> None:
        """Let the emulated kernel before the next one write this: only the next one's wait orders the two."""
        self.library.cuemu_written_before(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes))

    def call(self, name: str, *args: np.ndarray | int | float | None) -> None:
        """Call a C function: arrays as views, float as double, int as int64_t; None is a null pointer."""
        converted, views = [], []
        for arg in args:
            if isinstance(arg, (np.ndarray, Tensor)):
                self.written_before(arg if isinstance(arg, np.ndarray) else arg.array)
                views.append(arg if isinstance(arg, Tensor) else view(arg))
                converted.append(ctypes.byref(views[-1]))
            elif isinstance(arg, float):
                converted.append(ctypes.c_double(arg))
            else:
                converted.append(ctypes.c_void_p(None) if arg is None else ctypes.c_int64(arg))
        code = getattr(self.library, name)(*converted)
        if code:
            raise EmulationError(code, self.library.cuemu_error().decode() if code > 0 else "refused")

    def attention(self, qkv, mask=None, template=None, arrivals=None, with_lse=True, groups=1):
        """(out, score, lse) of qkv (B,N,3,H,D); float32, float16, or bfloat16 as uint16."""
        batch, tokens, _, heads, width = qkv.shape
        template = (0 if mask is None else mask.shape[-1]) if template is None else template
        out = garbage((batch, tokens, heads * width), qkv.dtype)
        lse = garbage((batch, heads, tokens), np.float32) if with_lse else None
        score = partial = None
        if mask is not None:
            search = max(tokens - template, 0)  # calls with a template too long are to be refused by the kernel
            score = garbage((batch, search), np.float32)
            partial = garbage((batch * heads * -(-template // 32) * search,), np.float32)
            arrivals = np.zeros(batch, np.int32) if arrivals is None else arrivals
            mask = np.ascontiguousarray(mask, np.bool_)
        self.call("ostf_cuda_attention", qkv, mask, out, score, lse, partial, arrivals, groups, None)
        if arrivals is not None:
            assert not arrivals.any(), "arrival counters are not left at zero"
        return out, score, lse

    def eliminate(self, tokens, score, ids, keep):
        """(tokens, kept ids, removed ids); the template is what tokens has more than score."""
        batch, search = score.shape
        template, channels = tokens.shape[1] - search, tokens.shape[2]
        out = garbage((batch, template + keep, channels), tokens.dtype)
        kept, removed = garbage((batch, keep), np.int64), garbage((batch, search - keep), np.int64)
        self.call("ostf_cuda_eliminate", tokens, score, ids, out, kept, removed, None)
        return out, kept, removed

    def restore(self, tokens, ids, grid):
        """The map (B,C,F,F)."""
        out = garbage((tokens.shape[0], tokens.shape[2], grid, grid), tokens.dtype)
        self.call("ostf_cuda_restore", tokens, ids, out, None)
        return out

    def crop(self, frame, box, factor, size, mean, inv_std, dtype=F32):
        """(patch, scale)."""
        kind = {F32: np.float32, F16: np.float16, BF16: np.uint16, F64: np.float64}[dtype]
        patch = garbage((len(box), 3, size, size), kind)
        scale = garbage((len(box),), np.float64)
        mean, inv_std = np.asarray(mean, np.float32), np.asarray(inv_std, np.float32)
        self.call("ostf_cuda_crop", frame, box, mean, inv_std, patch, scale, float(factor), None)
        return patch, scale

    def decode(self, score, size, offset, window=None):
        """(box, score at the best cell)."""
        batch = score.shape[0]
        box, best = garbage((batch, 4), np.float32), garbage((batch,), np.float32)
        self.call("ostf_cuda_decode", score, size, offset, window, box, best, None)
        return box, best

    def update_box(self, found, box, frame_size, factor, margin):
        """The boxes in the frame."""
        moved = garbage(box.shape, np.float64)
        self.call("ostf_cuda_update_box", found, box, moved, *frame_size, float(factor), float(margin), None)
        return moved


def garbage(shape: tuple[int, ...], dtype) -> np.ndarray:
    """An array that no kernel would write: NaN, or -1."""
    array = np.empty(shape, dtype)
    array.view(np.uint8).fill(0xFF)
    return array


def bf16_bits(values: np.ndarray) -> np.ndarray:
    """float32 rounded to bfloat16, as uint16."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)

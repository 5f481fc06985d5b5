"""Which device and compute dtype a name stands for."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import cast

import torch

from .ops.layers import fast_bfloat16, why_no_int8, why_slow_in_half

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device a name stands for, with its index; "auto" is the first CUDA GPU if there is one, else the CPU.

    Raises:
        ValueError: not a device, or not one that is here.
    """
    available = torch.cuda.is_available()
    if device == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if available else torch.device("cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        resolved = None
    if resolved is None or resolved.type not in ("cpu", "cuda"):
        raise ValueError(f"device {str(device)!r} is not supported: choose auto, cpu, cuda or cuda:N")
    if resolved.type == "cpu":
        return torch.device("cpu")
    if not available:
        raise ValueError(f"device {str(device)!r} is not here: PyTorch {torch.__version__} finds no CUDA GPU")
    index = torch.cuda.current_device() if resolved.index is None else resolved.index
    if index >= torch.cuda.device_count():
        raise ValueError(f"device {str(device)!r} is not here: PyTorch finds {torch.cuda.device_count()} CUDA GPUs")
    return torch.device("cuda", index)


def automatic_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The compute dtype that "auto" stands for on a device, and why.

    It is the fastest that needs no consent: bfloat16 on a CPU that multiplies it faster than float32, float16 on a GPU.
    int8 is faster still on a CPU with kernels for it, but moves boxes more, so it must be asked for.
    """
    if device.type == "cuda":
        return torch.float16, "GPUs multiply it fastest"
    no_int8 = why_no_int8(device)
    int8 = "int8 is faster where its accuracy suffices" if no_int8 is None else f"int8 cannot run: {no_int8}"
    if fast_bfloat16():
        return torch.bfloat16, f"this CPU has AVX-512 BF16 or AMX; {int8}"
    return torch.float32, f"without AVX-512 BF16 or AMX, bfloat16 is no faster; {int8}"


@cache  # so that the warning comes once
def _warn_if_slow(dtype: torch.dtype) -> None:
    reason = why_slow_in_half(dtype)
    if reason is None:
        return
    level, frame = 1, cast("FrameType | None", sys._getframe())
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "ostrack_fast":
        level, frame = level + 1, frame.f_back  # the warning is about the caller's line, not about the package's
    warnings.warn(f"dtype {dtype} is slower than float32 on this CPU: {reason}", stacklevel=level)


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype a name stands for; "auto" is `automatic_dtype`. A half precision that is slow on this CPU warns once.

    Raises:
        ValueError: none of `DTYPES`, or int8 where there are no kernels for it.
    """
    if dtype == "auto":
        return automatic_dtype(device)[0]
    resolved = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if resolved is None or resolved not in DTYPES.values():
        raise ValueError(f"dtype {str(dtype)!r} is not supported: choose auto, {', '.join(DTYPES)}")
    reason = why_no_int8(device) if resolved == torch.int8 else None
    if reason is not None:
        raise ValueError(f"dtype int8 cannot run here ({reason}): choose auto or another dtype")
    if device.type == "cpu" and resolved in (torch.float16, torch.bfloat16):
        _warn_if_slow(resolved)
    return resolved


@contextmanager
def full_float32(device: str) -> Iterator[None]:
    """Inside, PyTorch multiplies float32 as float32 on this kind of device, whatever the caller has allowed.

    By default a GPU's convolutions round it to TF32's 10 bits.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.autocast(device, enabled=False),
            torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)

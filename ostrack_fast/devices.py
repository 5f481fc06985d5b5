"""Which device and compute dtype a name stands for."""

from __future__ import annotations

import torch

from .ops.layers import fast_bfloat16, why_no_int8

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
    except RuntimeError:
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


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype a name stands for. "auto" is float16 on a GPU; on a CPU bfloat16 where it is fast, else float32.

    Raises:
        ValueError: none of `DTYPES`, or int8 where there are no kernels for it.
    """
    if dtype == "auto":
        if device.type == "cuda":
            return torch.float16
        return torch.bfloat16 if fast_bfloat16() else torch.float32
    resolved = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if resolved is None or resolved not in DTYPES.values():
        raise ValueError(f"dtype {str(dtype)!r} is not supported: choose auto, {', '.join(DTYPES)}")
    reason = why_no_int8(device) if resolved == torch.int8 else None
    if reason is not None:
        raise ValueError(f"dtype int8 cannot run here ({reason}): choose auto or another dtype")
    return resolved

"""What the ops' checks and references share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce, wraps
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

Activation = Literal["none", "gelu", "relu"]  # of a layer's result; "gelu" is the exact one, with erf


class Seeded:
    """Random tensors on a device, the same whatever device and dtype PyTorch makes tensors of by default."""

    def __init__(self, seed: int, device: torch.device):
        self._generator, self._device = torch.Generator().manual_seed(seed), device

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        made = torch.randn(shape, generator=self._generator, dtype=torch.float32, device="cpu")
        return made.to(self._device, dtype)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        made = torch.rand(shape, generator=self._generator, dtype=torch.float64, device="cpu")
        return made.to(self._device, dtype)

    def bytes(self, *shape: int) -> Tensor:
        made = torch.randint(0, 256, shape, generator=self._generator, dtype=torch.uint8, device="cpu")
        return made.to(self._device)

    def orders(self, batch: int, count: int) -> Tensor:
        """(B,count) int64, each row the numbers from 0 in an order of its own."""
        rows = [torch.randperm(count, generator=self._generator, dtype=torch.int64, device="cpu") for _ in range(batch)]
        return torch.stack(rows).to(self._device)


def describe(value: Tensor) -> str:
    """dtype and shape, for messages."""
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def check_one_device(**tensors: Tensor | None) -> None:
    """Raises ValueError if the tensors are not all on one device."""
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        where = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"all tensors must be on one device, got {where}")


def check_no_derivative(what: str, *tensors: Tensor | None) -> None:
    """Raises RuntimeError if a derivative is wanted of something that has none."""
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        raise RuntimeError(f"{what} has no gradient: call it under torch.no_grad(), or detach() its inputs")
    if forward_ad._current_level >= 0 and any(
        tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    ):
        raise RuntimeError(f"{what} has no forward-mode derivative: call it outside of dual_level()")


def accumulate_dtype(*tensors: Tensor) -> torch.dtype:
    """The widest of the tensors' dtypes, and at least float32."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a tensor (and more), computed in the dtypes it names even while autocast is on."""

    @wraps(function)
    def exact(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        device = tensor.device.type
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return function(tensor, *arguments, **options)
        with torch.autocast(device, enabled=False):
            return function(tensor, *arguments, **options)

    return exact


@contextmanager
def ieee_float32(tensor: Tensor, kind: Literal["matmul", "conv"]) -> Iterator[None]:
    """Multiplies float32 as float32 inside, even where the program has allowed TF32 or bfloat16 for it."""
    backend = "cuda" if tensor.is_cuda else "mkldnn"
    # The getter behind torch.backends.*.fp32_precision, whose own Python takes ten times as long.
    before = torch._C._get_fp32_precision_getter(backend, kind) if tensor.dtype == torch.float32 else "ieee"
    if before in ("ieee", "none"):
        yield
        return
    torch._C._set_fp32_precision_setter(backend, kind, "ieee")
    try:
        yield
    finally:
        torch._C._set_fp32_precision_setter(backend, kind, before)

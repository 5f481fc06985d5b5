"""The roofline of the machine, measured in the same run: bytes copied and matmul operations done in a second."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from ostrack_fast import ops
from ostrack_fast.timing import Clock

# Sides of square matmuls, the fastest of which counts.
_CPU_SIDES, _CUDA_SIDES, _QUICK_SIDES = (512, 1024, 2048), (4096, 8192), (256,)


class Roofline:
    """Measured when first asked for and remembered; the fastest sample counts, as nothing can be faster.

    Args:
        timer: the clock of the implementations: on a GPU it keeps the copied bytes out of the cache as well.
    """

    def __init__(self, device: torch.device, timer: Clock, quick: bool = False):
        self._device, self.timer, self._quick = device, timer, quick
        self.bytes_per_second: dict[int, float] = {}
        self.flops_per_second: dict[torch.dtype, float] = {}

    def memory_rate(self, moved: float) -> float:
        """Bytes a second, read plus written, of a copy that moves about as much: what fits a cache is faster there."""
        half = 1 << max(12, round(moved / 2).bit_length() - 1)
        if half not in self.bytes_per_second:
            source, target = (torch.zeros(half, dtype=torch.uint8, device=self._device) for _ in range(2))
            self.bytes_per_second[half] = 2 * half / self._fastest([lambda: target.copy_(source)])
        return self.bytes_per_second[half]

    def compute_rate(self, dtype: torch.dtype) -> float:
        """Floating-point operations a second of the fastest large matmul, PyTorch's or ours.

        PyTorch's libraries differ by as much as half on one processor, so that one of them alone would be no roofline.
        """
        if dtype not in self.flops_per_second:
            sides = _CUDA_SIDES if self._device.type == "cuda" else _QUICK_SIDES if self._quick else _CPU_SIDES
            rates = (2 * side**3 / self._fastest(self._matmuls(side, dtype)) for side in sides)
            self.flops_per_second[dtype] = max(rates)
        return self.flops_per_second[dtype]

    def _matmuls(self, side: int, dtype: torch.dtype) -> list[Callable[[], Any]]:
        x, weight = (torch.randn(side, side, device=self._device) for _ in range(2))
        found: list[Callable[[], Any]] = []
        if ops.LAYERS["linear"].unsupported_reason("native", weight=weight, dtype=dtype) is None:
            with ops.use("native"):
                layer = ops.layers.linear(weight, torch.zeros(side, device=self._device), dtype=dtype)
            found.append(partial(layer, x.to(dtype if dtype.is_floating_point else torch.bfloat16)))
        if dtype.is_floating_point:
            a, b = x.to(dtype), weight.to(dtype)
            found += [lambda: a @ b, lambda: functional.linear(a, b)]
        return found

    def _fastest(self, runs: list[Callable[[], Any]]) -> float:
        def best(run: Callable[[], Any]) -> float:
            amount, _ = self.timer.prepare(run)
            return min(self.timer.sample(run, amount) for _ in range(3 if self._quick else 15))

        return min(map(best, runs))

    def seconds(self, flops: float, moved: float, dtype: torch.dtype) -> tuple[float, str]:
        """The least time this work can take, and what bounds it: "compute" or "memory"."""
        memory = moved / self.memory_rate(moved)
        compute = flops / self.compute_rate(dtype) if flops else 0.0
        return max((compute, "compute"), (memory, "memory"))

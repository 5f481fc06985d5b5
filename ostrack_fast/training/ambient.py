"""What the caller has set in PyTorch does not reach a training run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def as_configured() -> Iterator[None]:
    """Compute as a run's settings say: without the caller's default dtype and device, autocast and gradient mode."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    # PyTorch's default device is the CPU. Setting it takes a Python call for every operation: 2,600 in a step.
    elsewhere = torch.get_default_device().type != "cpu"
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            torch.device("cpu") if elsewhere else nullcontext(),
        ):
            yield
    finally:
        torch.set_default_dtype(before)

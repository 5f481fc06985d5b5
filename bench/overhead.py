"""What checks and the choice of a backend cost: an op as the public function, as an engine binds it, and bare.

    python -m ostrack_fast.bench.overhead > FILE

Tensors are so small that the kernels take next to nothing. Microseconds a call, medians over rounds in turn.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from ostrack_fast import machine, ops
from ostrack_fast.ops.registry import Op

from .timing import CpuClock, interleave


def measure(op: Op) -> dict[str, float]:
    """Microseconds of a call by way: the backend by itself, the bound op, the public one."""
    arguments = next(op.samples("small", torch.float32, torch.device("cpu")))
    bound = op.bind(*arguments)
    ways: dict[str, Callable] = {"backend": op.backends[bound.backend].run, "bound": bound, "public": op}
    times = interleave({way: partial(run, *arguments) for way, run in ways.items()}, CpuClock(), 1.0)
    return {way: round(1e6 * median(each), 2) for way, each in times.items()}


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with torch.inference_mode():
        found = {name: measure(op) for name, op in ops.OPS.items()}
    print(json.dumps({"machine": machine.describe(), "microseconds": found}, indent=1))

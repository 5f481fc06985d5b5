"""What checks and the choice of a backend cost: an op as the public function, as an engine binds it, and bare.

    python -m ostrack_fast.bench.overhead --json FILE

Tensors are so small that the kernels take next to nothing. Microseconds a call, medians over rounds in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from ostrack_fast import ops

from . import report
from .timing import CpuClock, interleave


def main() -> None:
    options = report.arguments(__doc__).parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    found = {}
    print(f"{'op':<20}{'backend':>10}{'bound':>10}{'public':>10}   microseconds a call")
    with torch.inference_mode():
        for name, op in ops.OPS.items():
            arguments = next(op.samples("small", torch.float32, torch.device("cpu")))
            bound = op.bind(*arguments)
            ways: dict[str, Callable] = {"backend": op.backends[bound.backend].run, "bound": bound, "public": op}
            times = interleave({way: partial(run, *arguments) for way, run in ways.items()}, CpuClock(), 1.0)
            found[name] = {way: round(1e6 * median(each), 2) for way, each in times.items()}
            print(f"{name:<20}" + "".join(f"{value:>10}" for value in found[name].values()))
    report.keep(options, {"microseconds": found})


if __name__ == "__main__":
    main()

"""What the checks and the choice of a backend cost: each public op beside its backend's function, on the CPU.

    python -m ostrack_fast.bench.overhead --json FILE

Tensors are so small that the kernels take next to nothing. Microseconds a call, medians over rounds in turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from ostrack_fast import ops
from ostrack_fast.ops import library, native

from . import report

CALLS, ROUNDS = 500, 15


def calls() -> dict[str, tuple[Any, ...]]:
    """Arguments of a call of each op, the smallest that make sense."""
    score, pair = torch.rand(1, 1, 4, 4), torch.rand(1, 2, 4, 4)
    mask = torch.zeros(4, dtype=torch.bool)
    mask[1] = True
    box = torch.tensor([[8.0, 8.0, 8.0, 8.0]], dtype=torch.float64)
    ids = torch.arange(8)[None]
    return {
        "attention": (torch.randn(1, 12, 3, 1, 32), mask),
        "eliminate": (torch.randn(1, 12, 32), torch.rand(1, 8), ids, 6),
        "restore": (torch.randn(1, 8, 32), ids, 4, None, None, 1e-6, False, torch.float32),
        "decode": (score, pair, pair, None),
        "crop": (torch.zeros(32, 32, 3, dtype=torch.uint8), box, 2.0, 8, torch.float32),
        "advance": (torch.rand(1, 4), box, (32, 32), 2.0, 10.0),
    }


def microseconds(function: Callable, arguments: tuple[Any, ...]) -> float:
    begin = perf_counter()
    for _ in range(CALLS):
        function(*arguments)
    return (perf_counter() - begin) / CALLS * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers and the machine's description here")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    found = {}
    print(f"{'op':<12}{'backend':>10}{'public':>10}{'torch.ops':>10}   microseconds a call")
    with torch.inference_mode():
        for name, arguments in calls().items():
            ways = {"backend": getattr(native, name), "public": getattr(ops, name)}
            if hasattr(library, name):
                ways["torch.ops"] = getattr(library, name)
            for way in ways.values():
                way(*arguments)
            rounds = [{way: microseconds(run, arguments) for way, run in ways.items()} for _ in range(ROUNDS)]
            found[name] = {way: round(median(one[way] for one in rounds), 2) for way in ways}
            print(f"{name:<12}" + "".join(f"{value:>10}" for value in found[name].values()))
    if chosen.json is not None:
        report.write(chosen.json, {"microseconds": found})


if __name__ == "__main__":
    main()

"""What checks and the choice of a backend cost: an op as the public function, as an engine binds it, and bare.

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

from . import report

CALLS, ROUNDS = 500, 15


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
    print(f"{'op':<20}{'backend':>10}{'bound':>10}{'public':>10}   microseconds a call")
    with torch.inference_mode():
        for name, op in ops.OPS.items():
            arguments = next(op.samples("small", torch.float32, torch.device("cpu")))
            bound = op.bind(*arguments)
            ways: dict[str, Callable] = {"backend": op.backends[bound.backend].run, "bound": bound, "public": op}
            for way in ways.values():
                way(*arguments)
            rounds = [{way: microseconds(run, arguments) for way, run in ways.items()} for _ in range(ROUNDS)]
            found[name] = {way: round(median(one[way] for one in rounds), 2) for way in ways}
            print(f"{name:<20}" + "".join(f"{value:>10}" for value in found[name].values()))
    if chosen.json is not None:
        report.write(chosen.json, {"microseconds": found})


if __name__ == "__main__":
    main()

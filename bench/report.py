"""Run cases, and what comes out of it: a table to look at, a JSON file to keep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import quantiles
from typing import Any

import cv2
import torch

from ostrack_fast import machine
from ostrack_fast.files import write_text
from ostrack_fast.timing import clock, interleave, speedup

from .case import Case, Comparison, short_name
from .roofline import Roofline

BASELINES = ("upstream", "torch")


def run(
    case: Case,
    threads: int,
    seconds: float,
    quick: bool = False,
    check_only: bool = False,
    only: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Check a case's implementations and time them for about `seconds`, with that many CPU threads.

    Args:
        check_only: time nothing.
        only: implementations by name.

    Returns:
        Plain numbers. Where nothing is timed, those of an implementation are its errors alone.

    Raises:
        WrongResult: an implementation's result is wrong.
    """
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    try:
        # Float32 means float32 for every implementation, and cuDNN may try its algorithms first.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            torch.manual_seed(0)
            comparison = case.build()
            chosen = [name for name in comparison.implementations if only is None or name in only]
            result: dict[str, Any] = {key: getattr(case, key) for key in ("op", "shape", "batch", "flops", "bytes")}
            result |= {"dtype": short_name(case.dtype), "device": str(case.device), "threads": threads}
            result["implementations"] = {name: {"errors": comparison.check(name)} for name in chosen}
            result["skipped"] = comparison.skipped
            if chosen and not check_only:
                _time(case, comparison, result, _roofline(case.device, threads, quick), seconds)
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
    return result


@cache
def _roofline(device: torch.device, threads: int, quick: bool) -> Roofline:
    """The roofline of a device; its rates are measured with the threads that are set now."""
    return Roofline(device, clock(device), quick)


def _time(case: Case, comparison: Comparison, result: dict[str, Any], roofline: Roofline, seconds: float) -> None:
    """Add the times to a result, and the roofline beside them."""
    least, bound = roofline.seconds(case.flops, case.bytes, case.dtype)
    result["roofline"] = {
        "seconds": least,
        "bound": bound,
        "bytes_per_second": roofline.memory_rate(case.bytes),
        "flops_per_second": roofline.compute_rate(case.dtype) if case.flops else None,
    }
    runs = {name: comparison.implementations[name].run for name in result["implementations"]}
    times = interleave(runs, roofline.timer, seconds, comparison.pause)
    if case.device.type == "cuda":
        torch.cuda.empty_cache()  # memory may be measured in another process, which needs room
    for name, numbers in result["implementations"].items():
        dtype = comparison.implementations[name].compute_dtype or case.dtype
        peak = comparison.implementations[name].peak_bytes
        low, middle, high = quantiles(times[name], n=4)
        numbers |= {
            "seconds": middle,
            "quartiles": [low, high],
            "percentile_90": quantiles(times[name], n=10)[-1],
            "rounds": len(times[name]),
            "speedup_over": {other: speedup(times[other], times[name]) for other in BASELINES if other in times},
            "roofline_fraction": roofline.seconds(case.flops, case.bytes, dtype)[0] / middle,
            "compute_dtype": short_name(dtype),
            "peak_bytes": peak() if callable(peak) else peak,
        }


def write(path: Path, document: dict[str, Any]) -> None:
    """Write numbers atomically, with the machine they were measured on. Seconds, bytes, floating-point operations."""
    write_text(path, json.dumps({"machine": machine.describe(), **document}, indent=1, allow_nan=False) + "\n")

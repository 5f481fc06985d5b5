"""How many threads a kernel on the CPU may use."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from functools import cache
from math import floor, inf
from pathlib import Path

import torch


@cache
def gnu_parallel() -> int:
    """The address of GOMP_parallel in the OpenMP runtime that PyTorch has loaded, 0 where there is none."""
    try:
        function = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):  # another runtime; no symbols of the whole program, as on Windows
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def thread_count() -> int:
    """PyTorch's number of threads, or fewer where the process may not use as many processors at a time."""
    return min(torch.get_num_threads(), _allowed())


@cache
def _allowed() -> int:
    """Processors this process may run on, by its affinity and by the limits of its control groups (a container's)."""
    runnable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(runnable, floor(min(cpu_limit(), runnable))))


def cpu_limit(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """Processors' worth of time that control groups, of version 1 or 2, grant this process; infinity without a limit.

    More threads than that would be stopped for the rest of each period, all at once.
    """
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return inf  # no Linux
    limits = [inf]
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        group = Path(path.lstrip("/"))
        # A container sees its own group at the root, whatever path its host gave it.
        limits += (limit for each in (group, *group.parents) for limit in _limits(base / each))
    return min(limits)


def _limits(folder: Path) -> Iterator[float]:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period")
            )
        if quota != "max" and float(quota) > 0:
            yield float(quota) / float(period)
    except (OSError, ValueError):
        return  # not visible here

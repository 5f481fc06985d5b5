"""Run cases, and what comes out of it: a table to look at, a JSON file to keep."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from importlib import metadata
from itertools import groupby
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import cv2
import torch
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from .. import __version__
from ..files import write_atomically
from ..ops import native
from .case import Case
from .ceilings import Ceilings
from .measure import clock, race, speedup

_RIVALS = ("published", "torch")


def run(cases: Iterable[Case], threads: int, seconds: float, quick: bool, done: Callable[[], None]) -> list[dict]:
    """Check and time every case with so many CPU threads, about `seconds` a case; one plain dictionary for each.

    Raises:
        WrongResult: a contender's result is wrong.
    """
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    tools: dict[torch.device, Ceilings] = {}
    results = []
    try:
        # Float32 means float32 for every contender, and cuDNN may try its algorithms first.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            for case in cases:
                if case.device not in tools:
                    tools[case.device] = Ceilings(case.device, clock(case.device), quick)
                results.append({**_run(case, tools[case.device], seconds), "threads": threads})
                done()
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
    return results


def _run(case: Case, ceilings: Ceilings, seconds: float) -> dict[str, Any]:
    torch.manual_seed(0)
    contest = case.build()
    for name in contest.contenders:
        contest.check(name)
    least, bound = ceilings.seconds(case.flops, case.bytes, case.dtype)
    times = race({name: one.run for name, one in contest.contenders.items()}, ceilings.timer, seconds)
    if case.device.type == "cuda":
        torch.cuda.empty_cache()  # memory may be measured in another process, which needs room
    memory = {name: case.memory(name) if case.memory else None for name in contest.contenders}
    return {
        "op": case.op,
        "shape": case.shape,
        "batch": case.batch,
        "dtype": str(case.dtype).removeprefix("torch."),
        "device": str(case.device),
        "flops": case.flops,
        "bytes": case.bytes,
        "ceiling": {
            "seconds": least,
            "bound": bound,
            "bytes_per_second": ceilings.copy(case.bytes),
            "flops_per_second": ceilings.product(case.dtype) if case.flops else None,
        },
        "contenders": {
            name: _numbers(case, name, times, ceilings.seconds(case.flops, case.bytes, one.products or case.dtype)[0])
            | {"products": str(one.products or case.dtype).removeprefix("torch."), "peak_bytes": memory[name]}
            for name, one in contest.contenders.items()
        },
        "skipped": contest.skipped,
    }


def _numbers(case: Case, name: str, times: dict[str, list[float]], least: float) -> dict[str, Any]:
    middle = median(times[name])
    low, _, high = quantiles(times[name], n=4)
    return {
        "seconds": middle,
        "quartiles": [low, high],
        "rounds": len(times[name]),
        "bytes_per_second": case.bytes / middle,
        "flops_per_second": case.flops / middle,
        "share_of_ceiling": least / middle,
        "speed_over": {rival: speedup(times[rival], times[name]) for rival in _RIVALS if rival in times},
    }


def tables(results: list[dict[str, Any]]) -> Iterator[Table]:
    """A table for each op and number of threads, a row for each contender."""
    for (op, device, threads), group in groupby(results, lambda r: (r["op"], r["device"], r["threads"])):
        where = device if device != "cpu" else f"cpu, {threads} thread{'s' * (threads > 1)}"
        made = Table(title=f"{op} on {where}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for title in ("shape", "batch", "dtype", "contender"):
            made.add_column(title, no_wrap=title != "shape")
        for title in ("µs", "±", "GB/s", "GFLOP/s", "of ceiling", *(f"x {rival}" for rival in _RIVALS)):
            made.add_column(title, justify="right", no_wrap=True)
        for result in group:
            _add_rows(made, result)
        yield made


def _add_rows(made: Table, result: dict[str, Any]) -> None:
    case = [escape(result["shape"]), str(result["batch"]), result["dtype"]]
    for name, one in result["contenders"].items():
        low, high = one["quartiles"]
        made.add_row(
            *case,
            name,
            f"{one['seconds'] * 1e6:.1f}",
            f"{(high - low) / 2 * 1e6:.1f}",
            f"{one['bytes_per_second'] / 1e9:.1f}",
            f"{one['flops_per_second'] / 1e9:.0f}" if result["flops"] else "",
            f"{one['share_of_ceiling']:.0%} {result['ceiling']['bound']}",
            *(f"{one['speed_over'][rival]:.2f}" if rival in one["speed_over"] else "" for rival in _RIVALS),
        )
        case = [""] * len(case)
    made.add_section()


def save(path: Path, results: list[dict[str, Any]], left_out: list[str]) -> None:
    """Everything measured, with the machine it was measured on. Seconds, bytes, floating-point operations."""
    document = {"machine": machine(), "left_out": left_out, "results": results}
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def machine() -> dict[str, Any]:
    """What the numbers depend on: processor, GPU and driver, versions, revision, and how busy the machine is."""
    versions = {name: _version(name) for name in ("triton", "opencv-python-headless", "numpy")}
    driver = Path("/proc/driver/nvidia/version")
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "gpus": [torch.cuda.get_device_properties(index).name for index in range(torch.cuda.device_count())],
        "driver": driver.read_text(encoding="utf-8").splitlines()[0] if driver.exists() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {"ostrack_fast": __version__, "torch": torch.__version__, **versions},
        "revision": _revision(),
        "compiled_kernels": _build_info(),
    }


def _cpu_name() -> str:
    """With the numbers of family and model: virtual machines often hide the rest of the name."""
    facts = Path("/proc/cpuinfo")
    if not facts.exists():
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in facts.read_text(encoding="utf-8").splitlines())
    found = {name.strip(): value.strip() for name, _, value in lines}
    if "model name" not in found:
        return platform.machine()
    return f"{found['model name']}, family {found.get('cpu family')}, model {found.get('model')}"


def _build_info() -> dict[str, Any] | None:
    try:
        return native.build_info()
    except RuntimeError:
        return None  # not built: the contenders say so


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    """The git commit, where the package lies in a checkout of its own repository, with `+changes` if not committed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # git is not there, or does not trust the folder: the numbers stand without it
    return described.stdout.strip()

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

from ostrack_fast import __version__
from ostrack_fast.files import write_atomically
from ostrack_fast.ops import native

from .case import Case, short_name
from .roofline import Roofline
from .timing import clock, interleave, speedup

BASELINES = ("upstream", "torch")

# Files written before these names changed stay readable.
_RENAMED = {
    "contenders": "implementations",
    "ceiling": "roofline",
    "share_of_ceiling": "roofline_fraction",
    "speed_over": "speedup_over",
    "products": "compute_dtype",
    "published": "upstream",
    "published bfloat16": "upstream bfloat16",
    "ours float32": "engine float32",
    "ours bfloat16": "engine bfloat16",
    "ours int8": "engine int8",
}


def run(cases: Iterable[Case], threads: int, seconds: float, quick: bool, done: Callable[[], None]) -> list[dict]:
    """Check and time every case, about `seconds` each, with that many CPU threads; one plain dictionary for each.

    Raises:
        WrongResult: an implementation's result is wrong.
    """
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    rooflines: dict[torch.device, Roofline] = {}
    results = []
    try:
        # Float32 means float32 for every implementation, and cuDNN may try its algorithms first.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            for case in cases:
                if case.device not in rooflines:
                    rooflines[case.device] = Roofline(case.device, clock(case.device), quick)
                results.append({**_run(case, rooflines[case.device], seconds), "threads": threads})
                done()
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
    return results


def _run(case: Case, roofline: Roofline, seconds: float) -> dict[str, Any]:
    torch.manual_seed(0)
    comparison = case.build()
    for name in comparison.implementations:
        comparison.check(name)
    least, bound = roofline.seconds(case.flops, case.bytes, case.dtype)
    runs = {name: one.run for name, one in comparison.implementations.items()}
    times = interleave(runs, roofline.timer, seconds)
    if case.device.type == "cuda":
        torch.cuda.empty_cache()  # memory may be measured in another process, which needs room
    numbers = {}
    for name, one in comparison.implementations.items():
        dtype = one.compute_dtype or case.dtype
        fraction = roofline.seconds(case.flops, case.bytes, dtype)[0] / median(times[name])
        numbers[name] = _numbers(case, name, times) | {
            "roofline_fraction": fraction,
            "compute_dtype": short_name(dtype),
            "peak_bytes": case.memory(name) if case.memory else None,
        }
    return {
        "op": case.op,
        "shape": case.shape,
        "batch": case.batch,
        "dtype": short_name(case.dtype),
        "device": str(case.device),
        "flops": case.flops,
        "bytes": case.bytes,
        "roofline": {
            "seconds": least,
            "bound": bound,
            "bytes_per_second": roofline.memory_rate(case.bytes),
            "flops_per_second": roofline.compute_rate(case.dtype) if case.flops else None,
        },
        "implementations": numbers,
        "skipped": comparison.skipped,
    }


def _numbers(case: Case, name: str, times: dict[str, list[float]]) -> dict[str, Any]:
    middle = median(times[name])
    low, _, high = quantiles(times[name], n=4)
    return {
        "seconds": middle,
        "quartiles": [low, high],
        "rounds": len(times[name]),
        "bytes_per_second": case.bytes / middle,
        "flops_per_second": case.flops / middle,
        "speedup_over": {other: speedup(times[other], times[name]) for other in BASELINES if other in times},
    }


def tables(results: list[dict[str, Any]]) -> Iterator[Table]:
    """A table for each op and number of threads, a row for each implementation."""
    for (op, device, threads), group in groupby(results, lambda r: (r["op"], r["device"], r["threads"])):
        where = device if device != "cpu" else f"cpu, {threads} thread{'s' * (threads > 1)}"
        made = Table(title=f"{op} on {where}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for title in ("shape", "batch", "dtype", "implementation"):
            made.add_column(title, no_wrap=title != "shape")
        for title in ("µs", "±", "GB/s", "GFLOP/s", "roofline", *(f"x {name}" for name in BASELINES)):
            made.add_column(title, justify="right", no_wrap=True)
        for result in group:
            _add_rows(made, result)
        yield made


def _add_rows(made: Table, result: dict[str, Any]) -> None:
    case = [escape(result["shape"]), str(result["batch"]), result["dtype"]]
    for name, one in result["implementations"].items():
        low, high = one["quartiles"]
        made.add_row(
            *case,
            name,
            f"{one['seconds'] * 1e6:.1f}",
            f"{(high - low) / 2 * 1e6:.1f}",
            f"{one['bytes_per_second'] / 1e9:.1f}",
            f"{one['flops_per_second'] / 1e9:.0f}" if result["flops"] else "",
            f"{one['roofline_fraction']:.0%} {result['roofline']['bound']}",
            *(f"{one['speedup_over'][other]:.2f}" if other in one["speedup_over"] else "" for other in BASELINES),
        )
        case = [""] * len(case)
    made.add_section()


def write(path: Path, document: dict[str, Any]) -> None:
    """Write numbers atomically, with the machine they were measured on. Seconds, bytes, floating-point operations."""
    text = json.dumps({"machine": machine(), **document}, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def read(path: Path) -> dict[str, Any]:
    """A file that `write` made, by this version or an earlier one, in today's names."""

    def renamed(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {_RENAMED.get(name, name): value for name, value in pairs}

    return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=renamed)


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
        return None  # not built: the implementations say so


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    """The git commit, where the package lies in a checkout of its own repository, with `+changes` if not committed."""
    root = Path(__file__).resolve().parents[1]
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

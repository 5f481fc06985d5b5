"""Run cases, and what comes out of it: a table to look at, a JSON file to keep."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from itertools import groupby
from pathlib import Path
from statistics import quantiles
from typing import Any

import cv2
import torch
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ostrack_fast import __version__
from ostrack_fast.files import write_text
from ostrack_fast.ops import native

from .case import Case, Comparison, short_name
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
            found = {name: {"errors": comparison.check(name)} for name in chosen}
            result = _facts(case) | {"threads": threads, "implementations": found, "skipped": comparison.skipped}
            if chosen and not check_only:
                _time(case, comparison, result, _roofline(case.device, threads, quick), seconds)
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
    return result


@cache
def _roofline(device: torch.device, threads: int, quick: bool) -> Roofline:
    """Of a machine in this process: its rates are measured with the threads that are set now."""
    return Roofline(device, clock(device), quick)


def _facts(case: Case) -> dict[str, Any]:
    names = ("op", "shape", "batch", "flops", "bytes")
    return {name: getattr(case, name) for name in names} | {"dtype": short_name(case.dtype), "device": str(case.device)}


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
    times = interleave(runs, roofline.timer, seconds)
    if case.device.type == "cuda":
        torch.cuda.empty_cache()  # memory may be measured in another process, which needs room
    for name, numbers in result["implementations"].items():
        dtype = comparison.implementations[name].compute_dtype or case.dtype
        low, middle, high = quantiles(times[name], n=4)
        numbers |= {
            "seconds": middle,
            "quartiles": [low, high],
            "percentile_90": quantiles(times[name], n=10)[-1],
            "rounds": len(times[name]),
            "speedup_over": {other: speedup(times[other], times[name]) for other in BASELINES if other in times},
            "roofline_fraction": roofline.seconds(case.flops, case.bytes, dtype)[0] / middle,
            "compute_dtype": short_name(dtype),
            "peak_bytes": case.memory(name) if case.memory else None,
        }


def tables(results: list[dict[str, Any]]) -> Iterator[Table]:
    """A table for each op and number of threads, a row for each implementation."""
    for (op, device, threads), group in groupby(results, lambda r: (r["op"], r["device"], r["threads"])):
        where = device if device != "cpu" else f"cpu, {threads} thread{'s' * (threads > 1)}"
        made = Table(title=f"{op} on {where}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for title in ("shape", "batch", "dtype", "implementation"):
            made.add_column(title, no_wrap=title != "shape")
        for title in ("error", "µs", "±", "GFLOP/s", "roofline", *(f"x {name}" for name in BASELINES)):
            made.add_column(title, justify="right", no_wrap=True)
        for result in group:
            case = [escape(result["shape"]), str(result["batch"]), result["dtype"]]
            for name, one in result["implementations"].items():
                made.add_row(*case, name, f"{max(one['errors']):.1g}", *_times(result, one))
                case = [""] * len(case)
            made.add_section()
        yield made


def _times(result: dict[str, Any], one: dict[str, Any]) -> list[str]:
    """The cells of what was timed."""
    if "seconds" not in one:
        return []
    low, high = one["quartiles"]
    return [
        f"{one['seconds'] * 1e6:.1f}",
        f"{(high - low) / 2 * 1e6:.1f}",
        f"{result['flops'] / one['seconds'] / 1e9:.0f}" if result["flops"] else "",
        f"{one['roofline_fraction']:.0%} {result['roofline']['bound']}",
        *(f"{one['speedup_over'][other]:.2f}" if other in one["speedup_over"] else "" for other in BASELINES),
    ]


def write(path: Path, document: dict[str, Any]) -> None:
    """Write numbers atomically, with the machine they were measured on. Seconds, bytes, floating-point operations."""
    write_text(path, json.dumps({"machine": machine(), **document}, indent=1, allow_nan=False) + "\n")


def read(path: Path) -> dict[str, Any]:
    """A file that `write` made, by this version or an earlier one, in today's names."""

    def renamed(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {_RENAMED.get(name, name): value for name, value in pairs}

    return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=renamed)


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """The command line of a script that measures."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers and the machine's description here")
    return parser


def keep(options: argparse.Namespace, document: dict[str, Any]) -> None:
    """Write what a script measured, if it was asked to."""
    if options.json is not None:
        write(options.json, document)


def replace_between(path: Path, mark: str, text: str) -> None:
    """Put text in a page between the comments `mark` and `end of mark`."""
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    before, rest = path.read_text(encoding="utf-8").split(begin)
    _, after = rest.split(end)
    write_text(path, f"{before}{begin}\n{text}{end}{after}")


def machine() -> dict[str, Any]:
    """What the numbers depend on: processor, GPU and driver, versions, revision, and how busy the machine is."""
    installed = {each.metadata["Name"]: each.version for each in metadata.distributions()}
    versions = {name: installed.get(name) for name in ("triton", "opencv-python-headless", "numpy")}
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
        "compiled_kernels": native.build_info()
        if native.unsupported_reason("attention", torch.device("cpu")) is None
        else None,
    }


def _cpu_name() -> str:
    """With the numbers of family and model: virtual machines often hide the rest of the name."""
    facts = Path("/proc/cpuinfo")
    text = facts.read_text(encoding="utf-8") if facts.exists() else ""
    found = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.MULTILINE))
    if "model name" not in found:
        return platform.processor() or platform.machine()
    return f"{found['model name']}, family {found.get('cpu family')}, model {found.get('model')}"


def _revision() -> str | None:
    """The git commit, where the package lies in a checkout of its own repository, with `+changes` if not committed."""
    root = Path(__file__).resolve().parents[1]
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    command = [git, "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    # Empty where git does not trust the folder: the numbers stand without it.
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None

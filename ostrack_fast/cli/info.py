"""`ostrack-fast info`: what runs here, and why."""

from __future__ import annotations

import os
import platform
from importlib import metadata

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_PACKAGES = ("ostrack_fast", "torch", "triton", "timm", "numpy", "opencv-python-headless", "opencv-python")


def info() -> None:
    """Show versions, devices, shipped weights, and which backend runs each op and why."""

    from .. import environment, machine, ops
    from ..devices import automatic_dtype, resolve_device
    from ..model.checkpoint import shipped_weights
    from ..ops.threads import thread_count

    threads = f"{thread_count()} threads of {os.cpu_count()} cores"
    here = resolve_device()
    dtype, why = automatic_dtype(here)
    rows = [
        *_versions(),
        ("cpu", f"{machine.cpu_name()}, {threads}"),
        *_gpus(),
        ("dtype auto", f"{str(dtype).removeprefix('torch.')} on {here}: {why}"),
        ("weights", ", ".join(shipped_weights()) or "none"),
        *environment.set_here(),
    ]
    console = Console(soft_wrap=True)
    for title, value in rows:
        console.print(f"[bold]{title:>22}[/]  {escape(value)}", highlight=False)
    table = Table(show_lines=True)
    for column in ("op", "device", "runs on", "why not the others"):
        table.add_column(column, overflow="fold")
    # One row for all ops that run alike.
    alike: dict[tuple, list[str]] = {}
    for op, device, chosen, others in ops.report():
        alike.setdefault((device, chosen, tuple(others)), []).append(op)
    for (device, chosen, others), names in alike.items():
        reasons = "\n".join(f"{backend}: {escape(reason)}" for backend, reason in others)
        table.add_row("\n".join(names), device, chosen, reasons)
    Console().print(table)


def _versions() -> list[tuple[str, str]]:
    from ..ops import native

    rows = [("python", f"{platform.python_version()} on {platform.platform()}")]
    for package in _PACKAGES:
        try:
            rows.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            # OpenCV goes by two names, and Triton is optional: say so only for what everybody has.
            continue
    try:
        built = native.build_info()
    except RuntimeError as error:
        return [*rows, ("compiled kernels", f"none: {error}")]
    facts = ", ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in built.items())
    return [*rows, ("compiled kernels", facts)]


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(key for key, present in value.items() if present) or "none"
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _gpus() -> list[tuple[str, str]]:
    import torch

    if not torch.cuda.is_available():
        return [("gpu", "none that PyTorch can use")]
    rows = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        memory = f"{facts.total_memory / 2**30:.0f} GiB"
        rows.append((f"cuda:{index}", f"{facts.name}, compute {facts.major}.{facts.minor}, {memory}"))
    return rows

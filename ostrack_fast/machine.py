"""What numbers depend on: processor, GPUs, versions and revision, as `info` shows and result files keep them."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    """Processor, GPUs and driver, versions, revision, and how busy the machine is, for a file of measurements."""
    import torch

    from .ops import native

    installed = {each.metadata["Name"]: each.version for each in metadata.distributions()}
    versions = {name: installed.get(name) for name in ("ostrack_fast", "triton", "opencv-python-headless", "numpy")}
    driver = Path("/proc/driver/nvidia/version")
    compiled = native.unsupported_reason("attention", torch.device("cpu")) is None
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "gpus": [torch.cuda.get_device_properties(index).name for index in range(torch.cuda.device_count())],
        "driver": driver.read_text(encoding="utf-8").splitlines()[0] if driver.exists() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {**versions, "torch": torch.__version__},
        "revision": revision(),
        "compiled_kernels": native.build_info() if compiled else None,
    }


def cpu_name() -> str:
    """The processor's name with the numbers of family and model: virtual machines often hide the rest of the name."""
    facts = Path("/proc/cpuinfo")
    text = facts.read_text(encoding="utf-8") if facts.exists() else ""
    found = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.MULTILINE))
    if "model name" not in found:
        return platform.processor() or platform.machine()
    return f"{found['model name']}, family {found.get('cpu family')}, model {found.get('model')}"


def revision() -> str | None:
    """The git commit, where the package lies in a checkout of its own repository, with `+changes` if not committed."""
    root = Path(__file__).resolve().parents[1]
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    command = [git, "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    # Empty where git does not trust the folder: the numbers stand without it.
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None

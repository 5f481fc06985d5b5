"""What a run is: its resolved settings, and the versions, code and machine of each of its starts."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import uuid
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from .. import __version__
from ..files import read_json, write_text
from .config import TrainConfig, settings_of

CONFIG = "config.yaml"
RUN = "run.json"
_PACKAGES = ("torch", "timm", "triton", "numpy", "opencv-python-headless", "safetensors")
_GIT_SECONDS = 20


def record_start(cfg: TrainConfig, output: Path, pairs: int, device: torch.device, processes: int) -> dict[str, Any]:
    """Write `config.yaml`, from which the run can be started again, and add this start to `run.json`.

    Args:
        pairs: that were trained on before this start.

    Returns:
        what `run.json` holds: `id` of the run, and `starts`.
    """
    write_text(output / CONFIG, yaml.safe_dump(settings_of(cfg), sort_keys=False))
    run = read_run(output) or {"id": uuid.uuid4().hex[:12], "starts": []}
    start = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "pairs": pairs,
        "command": sys.argv,
        "host": platform.node(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processes": processes,
        "versions": _versions(),
        "git": {"package": git_state(Path(__file__).parent, Path(__file__)), "working folder": git_state(Path.cwd())},
    }
    run["starts"].append(start)
    write_text(output / RUN, json.dumps(run, indent=1) + "\n")
    return run


def read_run(output: Path) -> dict[str, Any] | None:
    """What `run.json` of a run's folder holds; None where there is none that can be read."""
    try:
        run = read_json(output / RUN)
    except (OSError, ValueError):
        return None
    whole = isinstance(run, dict) and "id" in run and isinstance(run.get("starts"), list)
    return run if whole and all(isinstance(start, dict) for start in run["starts"]) else None


def _versions() -> dict[str, str]:
    found = {"ostrack_fast": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def git_state(folder: Path, tracked: Path | None = None) -> dict[str, Any] | None:
    """Commit of a folder's git checkout, and the files that differ from it; None where there is no checkout.

    Args:
        tracked: a file that must belong to the checkout, or it is another project's that merely lies around it.
    """
    git = shutil.which("git")
    if git is None:
        return None

    def answer(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                [git, "-C", str(folder), *arguments], capture_output=True, text=True, errors="replace", check=False,
                timeout=_GIT_SECONDS,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip("\n") if done.returncode == 0 else None

    if tracked is not None and answer("ls-files", "--error-unmatch", str(tracked)) is None:
        return None
    commit = answer("rev-parse", "HEAD")
    if commit is None:
        return None
    changed = answer("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": None if changed is None else [line[3:] for line in changed.splitlines()]}

"""Peak memory of a way to run the network, in a process of its own: `python -m ostrack_fast.benchmark.memory`."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
from pathlib import Path

import torch

from ..config import get_config

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(name: str, batch: int, contender: str, device: torch.device) -> int | None:
    """Bytes that weights and work take at their peak, without the interpreter and its libraries.

    None on a system that does not tell, and for compiled contenders, whose compiler would be measured.
    """
    if "compile" in contender or (device.type == "cpu" and not _CLEAR.exists()):
        return None
    command = [sys.executable, "-m", "ostrack_fast.benchmark.memory", name, str(batch), contender, str(device)]
    command.append(str(torch.get_num_threads()))
    # Started beside this very package: another folder might hold another one.
    home = Path(__file__).parents[2]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=home).stdout.split()[-1])


def _resident(field: str) -> int:
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def _measure(name: str, batch: int, contender: str, device: torch.device) -> int:
    from .model import make_model, rivals, steps  # which imports this module

    cfg = get_config(name)
    build, _ = (steps(device) | rivals(device))[contender]
    z = torch.randn(batch, 3, cfg.template_size, cfg.template_size, device=device)
    x = torch.randn(batch, 3, cfg.search_size, cfg.search_size, device=device)
    torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)  # the libraries' own buffers
    before = 0 if device.type == "cuda" else _resident("VmRSS")
    model = make_model(name, device)
    run = build(model, z, x)
    del model
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # what the building left to the allocator for later is no need of the running
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _CLEAR.write_text("5", encoding="utf-8")  # the peak starts again from what is resident now
    with torch.inference_mode():
        for _ in range(3):
            run()
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM") - before


def main() -> None:
    name, batch, contender, device, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    print(_measure(name, int(batch), contender, torch.device(device)))


if __name__ == "__main__":
    main()

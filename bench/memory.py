"""Peak memory of an implementation of the network, in a process of its own: `python -m ostrack_fast.bench.memory`."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
from pathlib import Path

import torch

import ostrack_fast
from ostrack_fast.config import get_config

from .networks import baselines, make_model, steps

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(name: str, batch: int, implementation: str, device: torch.device) -> int | None:
    """Bytes that weights and work take at their peak, without the interpreter and its libraries.

    None on a system that does not tell, and for compiled implementations, whose compiler would be measured.
    """
    if "compile" in implementation or (device.type == "cpu" and not _CLEAR.exists()):
        return None
    command = [sys.executable, "-m", "ostrack_fast.bench.memory", name, str(batch), implementation, str(device)]
    command.append(str(torch.get_num_threads()))
    # Started beside this very package: another folder might hold another one.
    home = Path(ostrack_fast.__file__).parents[1]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=home).stdout.split()[-1])


def _resident(field: str) -> int:
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def main() -> None:
    name, batch, implementation, where, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    cfg, device = get_config(name), torch.device(where)
    build, _ = (steps(device) | baselines(device))[implementation]
    z, x = (torch.randn(int(batch), 3, side, side, device=device) for side in (cfg.template_size, cfg.search_size))
    torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)  # the libraries' own buffers
    before = 0 if device.type == "cuda" else _resident("VmRSS")
    run = build(make_model(name, device), z, x)
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # return freed build-time memory to the system, so that the peak is that of inference
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _CLEAR.write_text("5", encoding="utf-8")  # the peak starts again from what is resident now
    with torch.inference_mode():
        for _ in range(3):
            run()
    print(torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM") - before)


if __name__ == "__main__":
    main()

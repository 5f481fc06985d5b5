"""The suite `model`: the whole network, from the upstream formulation step by step to the engine; time and memory."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from ostrack_fast.config import ModelConfig, get_config
from ostrack_fast.model.cost import parameter_count

from .case import Case, Comparison, Implementation, Options
from .networks import NAMES, images, implementations, make_model, network_cases, pause
from .peers import peers
from .upstream import UpstreamNetwork

__all__ = ["NAMES", "cases"]

# Mean error over a whole network. Half precision and int8 also change which candidates a network with random weights
# keeps, whose candidates are nearly alike: this finds what is broken, evaluation/rounding.py measures what is lost.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 0.25, torch.int8: 0.4}
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def cases(options: Options) -> Iterator[Case]:
    """A case for every network and batch, which must read all parameters at least."""

    def describe(cfg: ModelConfig) -> tuple[str, float]:
        return f"{cfg.template_size} and {cfg.search_size} px", 4.0 * parameter_count(cfg)

    return network_cases("model", options, describe, _compare)


def _compare(name: str, batch: int, options: Options) -> Comparison:
    model = make_model(name, options.device)
    z, x = images(model.cfg, batch, options.device)
    comparison = Comparison(UpstreamNetwork(deepcopy(model).double())(z, x), {}, mean_error=True, pause=pause())
    for label, (build, dtype) in implementations(model, z, x).items():
        if options.wants(label, dtype) and not (options.quick and "compile" in label):  # compiling takes minutes
            # Without elimination it is another function, there for comparison.
            tolerance = float("inf") if "all candidates" in label else _TOLERANCE[dtype]
            memory = None if options.quick else partial(peak_bytes, name, batch, label, options.device)
            comparison.implementations[label] = Implementation(build(), tolerance, dtype, memory)
    for label, (build, dtype) in peers(model, z, x).items() if options.peers else ():
        if options.wants(label, dtype):
            try:
                comparison.implementations[label] = Implementation(build(), _TOLERANCE[dtype], dtype)
            except ImportError as error:
                comparison.skipped[label] = f"{error}; the extra 'ostrack_fast[peers]' has it"
            except ArithmeticError as error:  # random weights, whose candidates are nearly alike, in int8
                comparison.skipped[label] = str(error)
    return comparison


def peak_bytes(name: str, batch: int, implementation: str, device: torch.device) -> int | None:
    """Bytes that weights and work take at their peak, in a process of its own and without the interpreter's.

    None on a system that does not tell, and for compiled implementations, whose compiler would be measured.
    """
    if "compile" in implementation or (device.type == "cpu" and not _CLEAR.exists()):
        return None
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_measure_peak, name, batch, implementation, device, torch.get_num_threads()).result()


def _measure_peak(name: str, batch: int, implementation: str, device: torch.device, threads: int) -> int:
    torch.set_num_threads(threads)
    z, x = images(get_config(name), batch, device)
    torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)  # the libraries' own buffers
    before = 0 if device.type == "cuda" else _resident("VmRSS")
    run = implementations(make_model(name, device), z, x)[implementation][0]()
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
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM") - before


def _resident(field: str) -> int:
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

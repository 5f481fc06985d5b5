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

from ostrack_fast.config import get_config
from ostrack_fast.model.cost import parameter_count, stage_flops

from .case import Case, Comparison, Implementation, Options
from .networks import NAMES, baselines, images, make_model, steps
from .peers import missing, peers
from .upstream import UpstreamNetwork

__all__ = ["NAMES", "cases"]

# Mean error over a whole network. Half precision and int8 also change which candidates a network with random weights
# keeps, whose candidates are nearly alike: this finds what is broken, evaluation/rounding.py measures what is lost.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 0.25, torch.int8: 0.4}
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def cases(options: Options) -> Iterator[Case]:
    """A case for every network and batch; the implementations have compute dtypes of their own, the case is float32."""
    for name in options.names or (NAMES[:1] if options.quick else NAMES[:3]):
        cfg = get_config(name)
        for batch in options.chosen_batches:
            flops = batch * sum(stage_flops(cfg).values())
            build = partial(_compare, name, batch, options)
            shape = f"{name}: {cfg.template_size} and {cfg.search_size} px"
            memory = None if options.quick else partial(peak_bytes, name, batch, device=options.device)
            moved = 4.0 * parameter_count(cfg)
            yield Case("model", shape, batch, torch.float32, options.device, flops, moved, build, memory)


def _compare(name: str, batch: int, options: Options) -> Comparison:
    model = make_model(name, options.device)
    z, x = images(model.cfg, batch, options.device)
    comparison = Comparison(UpstreamNetwork(deepcopy(model).double())(z, x), {}, mean_error=True)
    for label, (build, dtype) in (steps(options.device) | baselines(options.device)).items():
        if not options.wants(label) or (options.quick and "compile" in label):  # compiling takes minutes
            continue
        if label != "upstream" and options.dtypes is not None and dtype not in options.dtypes:
            continue
        # Without elimination it is another function, there for comparison.
        tolerance = float("inf") if "all candidates" in label else _TOLERANCE[dtype]
        comparison.implementations[label] = Implementation(build(model, z, x), tolerance, dtype)
    if options.peers:
        comparison.skipped.update(missing())
        for label, run, dtype in peers(model, z, x, comparison.skipped):
            comparison.implementations[label] = Implementation(run, _TOLERANCE[dtype], dtype)
    return comparison


def peak_bytes(name: str, batch: int, implementation: str, device: torch.device) -> int | None:
    """Bytes that weights and work take at their peak, in a process of its own and without the interpreter's.

    None on a system that does not tell, for compiled implementations, whose compiler would be measured, and for peers.
    """
    known = implementation in steps(device) | baselines(device) and "compile" not in implementation
    if not known or (device.type == "cpu" and not _CLEAR.exists()):
        return None
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_measure_peak, name, batch, implementation, device, torch.get_num_threads()).result()


def _measure_peak(name: str, batch: int, implementation: str, device: torch.device, threads: int) -> int:
    torch.set_num_threads(threads)
    build, _ = (steps(device) | baselines(device))[implementation]
    z, x = images(get_config(name), batch, device)
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
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM") - before


def _resident(field: str) -> int:
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

"""The sections of a GPU's first minutes, one a process: is it right, how fast, and where the time of a frame goes.

    python -m ostrack_fast.bench.gpu_measure SECTION --device cuda --json FILE

`bench/gpu_check.py` runs them in order. The file is written after every row, so that a section cut off keeps what it
has. Times are microseconds. Without a GPU the same code runs on a small network, to rehearse it.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from math import ceil
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ostrack_fast import Engine, ops, switches
from ostrack_fast.config import get_config
from ostrack_fast.ops import layers

from . import bench_attention, report
from .networks import baselines, make_model, steps
from .profiling import profile
from .suite_track import smooth_frame
from .timing import back_to_back, graphed
from .upstream import UpstreamNetwork, UpstreamTracker

BOX = (300.0, 250.0, 180.0, 140.0)


class Section:
    """What a section needs, and the rows it has found."""

    def __init__(self, device: torch.device, path: Path | None):
        self.device, self.path = device, path
        self.on_gpu = device.type == "cuda"
        self.networks = ("ostrack_256_ce", "ostrack_384_ce") if self.on_gpu else ("small",)
        self.dtype = torch.float16 if self.on_gpu else torch.float32
        self.rows: dict[str, Any] = {}
        self.failed = 0

    def row(self, name: str, measure: Callable[[], Any]) -> None:
        """Measure and keep one row; a failure is kept as well, since the next row may still tell something."""
        try:
            self.rows[name] = measure()
        except Exception as error:
            traceback.print_exc()
            self.failed += 1
            self.rows[name] = f"failed: {type(error).__name__}: {error}".splitlines()[0]
        print(f"{name}: {self.rows[name]}", flush=True)
        if self.path is not None:
            report.write(self.path, {"rows": self.rows})

    def device_time(self, run: Callable[[], Any], repeats: int = 1) -> float:
        """Microseconds of one of the `repeats` that a run makes: of graph replays on a GPU."""
        run = graphed(run) if self.on_gpu else run
        calls = max(1, 100 // repeats) if self.on_gpu else 2
        return round(1e6 * back_to_back(run, self.device, calls) / repeats, 2)

    def images(self, name: str, batch: int = 1) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        cfg = get_config(name)
        z, x = (torch.randn(batch, 3, s, s, device=self.device) for s in (cfg.template_size, cfg.search_size))
        return z, x

    def network_time(self, name: str, batch: int = 1) -> float:
        """The frozen network alone, from search crop to maps."""
        z, x = self.images(name, batch)
        engine = Engine(make_model(name, self.device), self.device, self.dtype)
        engine.set_template(z)
        run = partial(engine.forward, x)
        if not self.on_gpu:
            return self.device_time(run)
        # A graph cannot be captured inside a graph: the network's own functions are captured here.
        network = engine.network
        template = network.embed_template(z.to(network.dtype))
        mask = torch.zeros(get_config(name).template_grid ** 2, dtype=torch.bool, device=self.device)
        mask[bench_attention.center_row(get_config(name))] = True
        crop = x.to(network.dtype)
        return self.device_time(lambda: network(template, crop, mask))


def error(section: Section) -> None:
    """Mean error over mean value of every map, against the upstream formulation in float64."""

    def measure(name: str, dtype: torch.dtype) -> dict[str, float]:
        z, x = section.images(name)
        model = make_model(name, section.device)
        engine = Engine(model, section.device, dtype)
        engine.set_template(z)
        found = engine.forward(x)
        maps = zip(
            ("score_map", "size_map", "offset_map"), UpstreamNetwork(deepcopy(model).double())(z, x), strict=True
        )
        return {key: float((found[key].double() - e).abs().mean() / e.abs().mean()) for key, e in maps}

    for name in section.networks:
        for dtype in (section.dtype, torch.float32)[: 1 + section.on_gpu]:
            section.row(f"{name}, {dtype}", partial(measure, name, dtype))


def graph_time(section: Section) -> None:
    for name in section.networks:
        section.row(name, partial(section.network_time, name))


def nodes(section: Section) -> None:
    """Every node of a 1080p frame, in order: name, duration, gap before it. On a CPU the stages of a frame."""

    def measure(name: str) -> dict[str, Any]:
        engine = Engine(make_model(name, section.device), section.device, section.dtype)
        found = profile(engine, smooth_frame().numpy(), BOX, 20 if section.on_gpu else 3)
        if section.on_gpu:
            listed = [(one.name[:80], round(1e6 * one.seconds, 2), round(1e6 * one.gap, 2)) for one in found.nodes]
        else:
            listed = [(one.name, round(1e6 * one.seconds, 2), 0.0) for one in found.stages]
        for node, time, gap in listed:
            print(f"  {time:8.2f} us  gap {gap:7.2f}  {node}")
        busy, idle = round(sum(one[1] for one in listed), 1), round(sum(one[2] for one in listed), 1)
        return {"count": len(listed), "busy": busy, "gaps": idle, "roofline": 1e6 * found.roofline, "nodes": listed}

    for name in section.networks:
        section.row(name, partial(measure, name))


def upstream(section: Section) -> None:
    """The upstream network in float32 and float16, and PyTorch's libraries in one CUDA graph, beside the engine."""
    half = "float16" if section.on_gpu else "bfloat16"
    entries = steps(section.device) | baselines(section.device)

    def measure(name: str, label: str) -> float:
        run = entries[label][0](make_model(name, section.device), *section.images(name))
        return round(1e6 * back_to_back(run, section.device, 20 if section.on_gpu else 1), 1)

    for name in section.networks:
        for label in ("upstream", f"upstream {half}", f"torch {half}, CUDA graph", f"+ {half}"):
            if label in entries:
                section.row(f"{name}, {label}", partial(measure, name, label))


def frames(section: Section) -> None:
    """Whole 1080p frames, from pixels to box, as a user sees them: median and 90th percentile."""
    frame = smooth_frame()

    def wall(run: Callable[[], Any]) -> dict[str, float]:
        times = []
        for _ in range(100 if section.on_gpu else 5):
            begin = perf_counter()
            run()  # waits for the box
            times.append(1e6 * (perf_counter() - begin))
        times = sorted(times[len(times) // 5 :])
        return {"median": round(median(times), 1), "p90": round(times[int(0.9 * len(times))], 1)}

    def by_engine(name: str) -> dict[str, float]:
        engine = Engine(make_model(name, section.device), section.device, section.dtype)
        engine.add(frame.numpy(), BOX)
        return wall(lambda: (engine.place([BOX]), engine.step(frame.numpy())))

    def by_upstream(name: str) -> dict[str, float]:
        tracker = UpstreamTracker(UpstreamNetwork(make_model(name, section.device)))
        tracker.initialize(frame, BOX)
        return wall(partial(tracker.track, frame))

    for name in section.networks:
        section.row(f"{name}, engine", partial(by_engine, name))
        section.row(f"{name}, upstream float32", partial(by_upstream, name))


def gemms(section: Section) -> None:
    """Every GEMM shape of a block, with its prologue and epilogue, beside cuBLAS's GEMM alone, weights in no cache."""

    def measure(rows: int, outputs: int, inputs: int, normed: bool) -> dict[str, float]:
        copies = ceil(100e6 / (2 * outputs * inputs)) if section.on_gpu else 1  # twice an H100's second-level cache
        weights = [torch.randn(outputs, inputs, device=section.device) * inputs**-0.5 for _ in range(copies)]
        bias, x = torch.randn(outputs, device=section.device), torch.randn(1, rows, inputs, device=section.device)
        residual = None if normed else torch.randn(1, rows, outputs, device=section.device)
        how: dict[str, Any] = {"norm_eps": 1e-6 if normed else None, "dtype": section.dtype}
        how["activation"] = "gelu" if outputs == 4 * inputs else "none"
        ours = [layers.linear(weight, bias, **how) for weight in weights]
        half, given = x.to(section.dtype), x if normed else x.to(section.dtype)
        theirs, half_bias = [weight.to(section.dtype) for weight in weights], bias.to(section.dtype)
        return {
            "ours": section.device_time(lambda: [layer(given, residual) for layer in ours], copies),
            "torch": section.device_time(lambda: [functional.linear(half, w, half_bias) for w in theirs], copies),
        }

    for name in section.networks:
        cfg = get_config(name)
        width, template = cfg.embed_dim, cfg.template_grid**2
        for rows in dict.fromkeys(template + count for count in cfg.search_tokens()):
            for outputs, inputs, normed in (
                (3 * width, width, True), (width, width, False), (4 * width, width, True), (width, 4 * width, False),
            ):  # fmt: skip
                shape = f"M {rows}, N {outputs}, K {inputs}{', norm' if normed else ''}"
                section.row(shape, partial(measure, rows, outputs, inputs, normed))


def attention(section: Section) -> None:
    """Attention without and with the score, native and Triton, beside SDPA."""
    copies = 24 if section.on_gpu else 1
    backends = ("native", "triton", "SDPA") if section.on_gpu else ("native", "SDPA")

    def measure(backend: str, qkv: list[Tensor], template: int, row: int | None) -> float:
        if backend == "SDPA":
            return section.device_time(
                lambda: [bench_attention.torch_best(each, row, template) for each in qkv], copies
            )
        mask = torch.zeros(template, dtype=torch.bool, device=section.device)
        if row is not None:
            mask[row] = True
        with ops.use(backend):
            return section.device_time(
                lambda: [ops.attention(each, None if row is None else mask) for each in qkv], copies
            )

    for name in section.networks:
        cfg = get_config(name)
        template, center = cfg.template_grid**2, bench_attention.center_row(cfg)
        for kept in dict.fromkeys((cfg.search_tokens()[0], cfg.search_tokens()[-1])):
            shape = 1, template + kept, 3, cfg.num_heads, cfg.embed_dim // cfg.num_heads
            qkv = [torch.randn(shape, device=section.device).to(section.dtype) for _ in range(copies)]
            for backend in backends:
                for row in (None, center):
                    label = f"N {template + kept}, {backend}{'' if row is None else ' with score'}"
                    section.row(label, partial(measure, backend, qkv, template, row))


def batches(section: Section) -> None:
    """Many targets at once: the frozen network, and PyTorch's libraries."""
    name, half = section.networks[0], "float16, CUDA graph" if section.on_gpu else "bfloat16"

    def best(batch: int) -> float:
        build, _ = baselines(section.device)[f"torch {half}"]
        run = build(make_model(name, section.device), *section.images(name, batch))
        return round(1e6 * back_to_back(run, section.device, 20 if section.on_gpu else 1), 1)

    for batch in (8, 64) if section.on_gpu else (2,):
        section.row(f"{name}, batch {batch}, engine", partial(section.network_time, name, batch))
        section.row(f"{name}, batch {batch}, torch {half}", partial(best, batch))


@contextmanager
def _switched(setting: str) -> Iterator[None]:
    before = os.environ.get(switches.VARIABLE)
    os.environ[switches.VARIABLE] = setting
    try:
        yield
    finally:
        os.environ.pop(switches.VARIABLE)
        if before is not None:
            os.environ[switches.VARIABLE] = before


def switched(section: Section) -> None:
    """Every switch off and on, and every backend: the network's time, and a whole frame's."""
    name = section.networks[0]
    frame = smooth_frame().numpy()

    def measure() -> dict[str, float]:
        engine = Engine(make_model(name, section.device), section.device, section.dtype)
        engine.add(frame, BOX)
        step = back_to_back(lambda: (engine.place([BOX]), engine.step(frame)), section.device, 20)
        return {"network": section.network_time(name), "frame": round(1e6 * step, 1)}

    def with_switch(setting: str) -> dict[str, float]:
        with _switched(setting):
            return measure()

    def with_backend(backend: str) -> dict[str, float]:
        with ops.use(backend):
            return measure()

    for switch in switches.DEFAULTS:
        for state in ("off", "on"):
            section.row(f"{switch}={state}", partial(with_switch, f"{switch}={state}"))
    for backend in ("auto", "triton", "reference") if section.on_gpu else ("auto", "reference"):
        section.row(f"backend {backend}", partial(with_backend, backend))


SECTIONS = {
    "error": error,
    "graph_time": graph_time,
    "nodes": nodes,
    "upstream": upstream,
    "frames": frames,
    "gemms": gemms,
    "attention": attention,
    "batches": batches,
    "switches": switched,
}


def summary(rows: dict[str, Any]) -> str:
    """One line: the numbers of every row, without the lists."""
    short = {
        name: {key: each for key, each in value.items() if not isinstance(each, list)}
        if isinstance(value, dict)
        else value
        for name, value in rows.items()
    }
    return "; ".join(f"{name}: {value}" for name, value in short.items()).replace("'", "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("section", choices=tuple(SECTIONS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    section = Section(device, options.json)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        SECTIONS[options.section](section)
    print(summary(section.rows))
    return int(section.failed > 0 or not section.rows)


if __name__ == "__main__":
    sys.exit(main())

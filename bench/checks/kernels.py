"""Every kernel of a backend once for each dtype and class of sizes, compared with the reference: for compute-sanitizer.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python bench/checks/kernels.py

Inputs are made on the CPU and copied, results are copied back, so that little runs on the GPU but the kernels. Exits
with 1 if a result is wrong. How exact the kernels are, the tests hold; here a stray value must show.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ostrack_fast import ops
from ostrack_fast.ops import dispatch, layers, reference

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
Call = tuple[str, dict[str, Any]]


def random(*shape: int) -> Tensor:
    return torch.randn(shape)


def attention() -> Iterator[Call]:
    """All head dimensions; tokens in part of a tile, in one, in many; masks of every form."""
    for dtype in FLOATS:
        for batch, tokens, heads, width, template in (
            (1, 1, 1, 32, 0), (2, 33, 2, 32, 9), (1, 64, 1, 64, 64), (1, 320, 12, 64, 64), (2, 153, 2, 64, 64),
            (1, 720, 2, 64, 144), (1, 100, 1, 96, 36), (3, 70, 2, 128, 40),
        ):  # fmt: skip
            mask = None
            if template:
                mask = torch.zeros(batch, template, dtype=torch.bool)
                mask[:, template // 2] = mask[-1, ::3] = True
                mask = mask if batch > 1 else mask[0]
            yield "attention", {"qkv": random(batch, tokens, 3, heads, width).to(dtype), "template_mask": mask}


def eliminate() -> Iterator[Call]:
    """Elements of 2, 4 and 8 bytes; rows that vectors fit and rows that they do not; ties; nothing or most removed."""
    for dtype in (torch.float16, torch.float32, torch.float64):
        for batch, template, search, keep, channels in (
            (1, 64, 256, 180, 768), (2, 3, 17, 11, 7), (1, 0, 1, 1, 1), (1, 144, 576, 404, 384), (3, 5, 100, 100, 65),
        ):  # fmt: skip
            ids = torch.stack([torch.randperm(search) for _ in range(batch)])
            score = random(batch, search).round(decimals=1)
            tokens = random(batch, template + search, channels).to(dtype)
            yield "eliminate", {"tokens": tokens, "score": score, "ids": ids, "keep": keep}


def restore() -> Iterator[Call]:
    for dtype in (torch.float16, torch.float32, torch.float64):
        for batch, kept, grid, channels in ((1, 89, 16, 768), (2, 30, 7, 70), (1, 1, 1, 1), (1, 576, 24, 384)):
            ids = torch.stack([torch.randperm(grid * grid)[:kept] for _ in range(batch)])
            yield "restore", {"tokens": random(batch, kept, channels).to(dtype), "ids": ids, "grid": grid}


def crop() -> Iterator[Call]:
    """Boxes inside, over each edge, far outside, larger than the frame and smaller than a pixel."""
    boxes = [[50, 40, 30, 20], [-8, -6, 20, 20], [150, 110, 30, 30], [900, 900, 5, 5], [-400, -300, 900, 800]]
    boxes += [[80.3, 60.7, 0.4, 0.3]]
    for dtype in FLOATS:
        for size in (20, 96, 256):
            frame = torch.randint(0, 256, (121, 163, 3), dtype=torch.uint8)
            box = torch.tensor(boxes, dtype=torch.float64)
            yield "crop", {"frame": frame, "box": box, "factor": 4.0, "size": size, "dtype": dtype}


def decode() -> Iterator[Call]:
    for dtype in FLOATS:
        for batch, grid in ((1, 1), (2, 5), (1, 16), (8, 24), (1, 61)):
            maps = {
                f"{name}_map": torch.rand(batch, channels, grid, grid).to(dtype)
                for name, channels in (("score", 1), ("size", 2), ("offset", 2))
            }
            for window in (None, torch.rand(grid, grid) + 0.1):
                yield "decode", {**maps, "window": window}


def advance() -> Iterator[Call]:
    for batch in (1, 33, 300):
        box = 1 + 50 * torch.rand(batch, 4, dtype=torch.float64)
        yield (
            "advance",
            {"found": torch.rand(batch, 4), "box": box, "frame_size": (90, 70), "factor": 4.0, "margin": 10},
        )


def linear() -> Iterator[Call]:
    for dtype in FLOATS:
        for rows, inputs, outputs, norm, activation in (
            (320, 768, 2304, True, "none"), (153, 768, 768, False, "none"), (107, 384, 1536, True, "gelu"),
            (1, 40, 12, False, "relu"), (65, 100, 33, True, "none"),
        ):  # fmt: skip
            weight = random(outputs, inputs) * inputs**-0.5
            how = {"weight": weight, "bias": random(outputs), "norm_eps": 1e-6 if norm else None}
            residual = None if activation == "gelu" else random(1, rows, outputs)
            yield (
                "linear",
                {**how, "activation": activation, "dtype": dtype, "call": (random(1, rows, inputs), residual)},
            )


def conv3x3() -> Iterator[Call]:
    for dtype in FLOATS:
        for batch, grid, inputs, outputs, groups in ((1, 16, 384, 192, 3), (2, 12, 72, 36, 3), (1, 5, 64, 48, 1)):
            weight = random(outputs, inputs // groups, 3, 3) * (9 * inputs / groups) ** -0.5
            how = {"weight": weight, "bias": random(outputs), "groups": groups, "dtype": dtype}
            yield "conv3x3", {**how, "call": (random(batch, grid, grid, inputs).to(dtype),)}


OPS = (attention, eliminate, restore, crop, decode, advance, linear, conv3x3)


def moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, tuple):
        return tuple(moved(each, device) for each in value)
    return value.to(device) if isinstance(value, Tensor) else value


def results(op: str, arguments: dict[str, Any], module: Any) -> tuple[Tensor, ...]:
    """Of an op called by name, or of a layer that is built and called with `call`."""
    arguments = dict(arguments)
    values = arguments.pop("call", None)
    found = getattr(module, op)(**arguments)
    found = found if values is None else found(*values)
    return tuple(each for each in (found if isinstance(found, tuple) else (found,)) if each is not None)


def wide(value: Any) -> Any:
    """In float64, rounded first as the kernel gets it."""
    if isinstance(value, tuple):
        return tuple(map(wide, value))
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def expected(op: str, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
    named = dict(zip(("linear", "conv3x3"), (reference.Linear, reference.Conv3x3), strict=True))
    exact = {name: wide(value) for name, value in arguments.items()}
    if op in named:
        exact |= {"dtype": torch.float64}
        values = exact.pop("call")
        return (named[op](**exact)(*values),)
    if op == "advance":  # its sides are rounded up: it is exact as it is
        exact = arguments
    return results(op, exact | ({"dtype": torch.float64} if op == "crop" else {}), reference)


def wrong(op: str, arguments: dict[str, Any], device: torch.device) -> str | None:
    """How the kernel's results differ from the reference's, or None."""
    where = {name: moved(value, device) for name, value in arguments.items()}
    found = results(op, where, layers if op in ("linear", "conv3x3") else ops)
    exact = expected(op, arguments)
    if len(found) != len(exact):
        return f"{len(found)} results, not {len(exact)}"
    for index, (got, right) in enumerate(zip(found, exact, strict=True)):
        got = got.cpu()
        if not got.is_floating_point():
            if not torch.equal(got, right):
                return f"result {index}: other numbers"
            continue
        dtype = next((v for v in (arguments.get("dtype"), got.dtype) if v in TOLERANCE), torch.float32)
        error = float((got.double() - right.double()).abs().max()) if got.numel() else 0.0
        if not error <= TOLERANCE[dtype] * max(1.0, float(right.abs().max()) if right.numel() else 0.0):
            return f"result {index}: wrong by {error:.3g}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", default="native", choices=("native", "triton"))
    parser.add_argument("--op", help="this one only")
    options = parser.parse_args()

    device = torch.device(options.device)
    torch.manual_seed(0)
    ran, unsupported, faults = 0, {}, 0
    with torch.inference_mode(), ops.use(options.backend):
        for make in OPS:
            for op, arguments in make() if options.op in (None, make.__name__) else ():
                here = {name: moved(value, device) for name, value in arguments.items() if name != "call"}
                reason = dispatch.problem(options.backend, op, here)
                if reason is not None:
                    unsupported[f"{op}: {reason}"] = True
                    continue
                ran += 1
                if (fault := wrong(op, arguments, device)) is not None:
                    faults += 1
                    shapes = {name: tuple(v.shape) if isinstance(v, Tensor) else v for name, v in arguments.items()}
                    shapes.pop("call", None)
                    print(f"Error: {op} {shapes}: {fault}")
    for reason in unsupported:
        print(f"not run: {reason}")
    if device.type == "cuda":
        torch.cuda.synchronize()
    print(f"{ran} calls of {options.backend} kernels on {device}, {faults} wrong")
    return 1 if faults or not ran else 0


if __name__ == "__main__":
    sys.exit(main())

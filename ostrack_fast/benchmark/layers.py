"""The cases of the frozen network's layers, `linear`, `conv3x3` and `restore_conv3x3`, for the suite `ops`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..config import ModelConfig
from ..ops import dispatch, reference
from ..ops.layers import restore_conv3x3
from . import published, torch_best
from .case import TOLERANCE, Case, Contender, Contest

_NORM_EPS = 1e-6
# int8 rounds both factors of each product to 8 bits.
_TOLERANCE = {**TOLERANCE, torch.int8: 5e-2}


def linear_cases(cfg: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """The four products of a block, with what the engine fuses into them."""
    tokens, wide = cfg.template_grid**2 + cfg.search_grid**2, round(cfg.mlp_ratio * cfg.embed_dim)
    for layer, inputs, outputs, normed, gelu in (
        ("norm, qkv", cfg.embed_dim, 3 * cfg.embed_dim, True, False),
        ("proj, residual", cfg.embed_dim, cfg.embed_dim, False, False),
        ("norm, fc1, gelu", cfg.embed_dim, wide, True, True),
        ("fc2, residual", wide, cfg.embed_dim, False, False),
    ):
        rows = batch * tokens
        build = partial(_linear, (batch, tokens, inputs), outputs, normed, gelu, dtype, device)
        # The residual stream is float32 on its way in and out.
        ends = 4 * inputs + dtype.itemsize * outputs if normed else dtype.itemsize * inputs + 8 * outputs
        moved = float(rows * ends + inputs * outputs * dtype.itemsize)
        shape = f"{layer}: {tokens} x {inputs} to {outputs}"
        yield Case("linear", shape, batch, dtype, device, 2.0 * rows * inputs * outputs, moved, build)


def _linear(
    shape: tuple[int, int, int], outputs: int, normed: bool, gelu: bool, dtype: torch.dtype, device: torch.device
) -> Contest:
    x = torch.randn(shape, device=device)
    # Weights that a conversion to the dtype does not change: the contenders differ by their arithmetic alone.
    weight = (torch.randn(outputs, shape[2], device=device) * shape[2] ** -0.5).to(dtype)
    bias = torch.randn(outputs, device=device).to(dtype)
    residual = None if normed else torch.randn(*shape[:2], outputs, device=device)
    x = x if normed else x.to(dtype)
    how: dict[str, Any] = {"norm_eps": _NORM_EPS if normed else None, "activation": "gelu" if gelu else "none"}
    expected = reference.Linear(weight.double(), bias.double(), **how, dtype=torch.float64)(
        x.double(), None if residual is None else residual.double()
    )
    affine = (torch.ones(shape[2], dtype=dtype, device=device), torch.zeros(shape[2], dtype=dtype, device=device))
    theirs = (x.to(dtype), weight, bias, affine if normed else None, gelu)
    stream = None if residual is None else residual.to(dtype)
    best = reference.Linear(weight, bias, **how, dtype=dtype)
    contest = Contest(
        (expected,),
        {
            "published": Contender(partial(published.linear, *theirs, stream), TOLERANCE[dtype]),
            "torch": Contender(partial(best, x, residual), TOLERANCE[dtype]),
        },
    )
    _add_backends(contest, "linear", dtype, (x, residual), weight=weight, bias=bias, **how)
    return contest


def conv3x3_cases(cfg: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """The head's convolutions, its three towers side by side."""
    grid, widths = cfg.search_grid, [3 * cfg.head_channels >> level for level in range(4)]
    for groups, inputs, outputs in zip((1, 3, 3, 3), (cfg.embed_dim, *widths), widths, strict=False):
        weights = outputs * inputs // groups * 9
        flops = 2.0 * batch * grid * grid * weights
        moved = float((batch * grid * grid * (inputs + outputs) + weights) * dtype.itemsize)
        build = partial(_conv3x3, batch, grid, inputs, outputs, groups, dtype, device)
        shape = f"{grid} x {grid}, {inputs} to {outputs}, {'towers apart' if groups > 1 else 'all towers'}"
        yield Case("conv3x3", shape, batch, dtype, device, flops, moved, build)


def _conv3x3(
    batch: int, grid: int, inputs: int, outputs: int, groups: int, dtype: torch.dtype, device: torch.device
) -> Contest:
    x = torch.randn(batch, grid, grid, inputs, device=device).to(dtype)
    fan = inputs // groups
    weight = (torch.randn(outputs, fan, 3, 3, device=device) * (9 * fan) ** -0.5).to(dtype)
    bias = torch.randn(outputs, device=device).to(dtype)
    expected = reference.Conv3x3(weight.double(), bias.double(), groups, dtype=torch.float64)(x.double())
    towers = list(zip(weight.chunk(3), bias.chunk(3), strict=True))
    planes = x.permute(0, 3, 1, 2).contiguous()
    images = [plane.contiguous() for plane in planes.chunk(3, dim=1)] if groups == 3 else [planes] * 3
    # Mean 0, variance 1: the convolution's own result, at BatchNorm's cost.
    zeros, ones = (torch.full((outputs // 3,), value, dtype=dtype, device=device) for value in (0.0, 1.0))

    def by_published() -> Any:
        return tuple(
            tower.permute(0, 2, 3, 1) for tower in published.conv3x3(images, towers, (zeros, ones, ones, zeros))
        )

    best = reference.Conv3x3(weight, bias, groups, dtype=dtype)
    contest = Contest(
        expected.chunk(3, dim=-1),
        {
            "published": Contender(by_published, TOLERANCE[dtype]),
            "torch": Contender(partial(_in_parts, best, x, 3), TOLERANCE[dtype]),
        },
    )
    _add_backends(contest, "conv3x3", dtype, (x,), weight=weight, bias=bias, groups=groups)
    return contest


def restore_conv3x3_cases(cfg: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """The head's first convolution of all towers, from the tokens that elimination leaves."""
    grid, inputs, outputs, kept = cfg.search_grid, cfg.embed_dim, 3 * cfg.head_channels, cfg.search_tokens()[-1]
    # As the convolution it stands for; the products with empty places need not be taken.
    flops = 2.0 * batch * kept * outputs * inputs * 9
    moved = float(batch * (kept * inputs * 4 + grid * grid * outputs * dtype.itemsize))
    moved += outputs * inputs * 9 * dtype.itemsize
    build = partial(_restore_conv3x3, batch, kept, grid, inputs, outputs, dtype, device)
    shape = f"{kept} of {grid} x {grid}, {inputs} to {outputs}, all towers"
    yield Case("restore_conv3x3", shape, batch, dtype, device, flops, moved, build)


def _restore_conv3x3(
    batch: int, kept: int, grid: int, inputs: int, outputs: int, dtype: torch.dtype, device: torch.device
) -> Contest:
    tokens = torch.randn(batch, kept, inputs, device=device)
    order = torch.rand(batch, grid * grid, device=device).argsort(1)
    ids, removed = order.split((kept, grid * grid - kept), dim=1)
    weight = (torch.randn(outputs, inputs, 3, 3, device=device) * (9 * inputs) ** -0.5).to(dtype)
    bias = torch.randn(outputs, device=device).to(dtype)
    scale, shift = torch.ones(inputs, device=device), torch.zeros(inputs, device=device)
    wide = (scale.double(), shift.double(), _NORM_EPS)
    restored = reference.restore(tokens.double(), ids, grid, *wide, channels_last=True)
    expected = reference.Conv3x3(weight.double(), bias.double(), dtype=torch.float64)(restored.permute(0, 2, 3, 1))
    towers = list(zip(weight.chunk(3), bias.chunk(3), strict=True))
    zeros, ones = (torch.full((outputs // 3,), value, dtype=dtype, device=device) for value in (0.0, 1.0))
    first = torch.arange(0, batch * grid * grid, grid * grid, device=device)[:, None]
    best = reference.Conv3x3(weight, bias, dtype=dtype)

    def normed() -> Tensor:
        return torch.nn.functional.layer_norm(tokens, (inputs,), scale, shift, _NORM_EPS).to(dtype)

    def by_published() -> Any:
        planes = published.restore(normed(), ids, removed, grid)
        made = published.conv3x3([planes] * 3, towers, (zeros, ones, ones, zeros))
        return tuple(tower.permute(0, 2, 3, 1) for tower in made)

    def by_torch() -> Any:
        return best(torch_best.restore(normed(), ids, grid, first).permute(0, 2, 3, 1)).chunk(3, dim=-1)

    contest = Contest(
        expected.chunk(3, dim=-1),
        {"published": Contender(by_published, TOLERANCE[dtype]), "torch": Contender(by_torch, TOLERANCE[dtype])},
    )
    kinds = {"native": dtype, "triton": dtype}
    if dtype == torch.bfloat16 and device.type == "cpu":
        kinds["native int8"] = torch.int8
    for name, kind in kinds.items():
        backend = name.split()[0]
        reason = dispatch.problem(backend, "conv3x3", {"weight": weight.float(), "dtype": kind})
        if reason is not None:
            contest.skipped[name] = reason
            continue
        with dispatch.use(backend):
            built = restore_conv3x3(weight.float(), bias.float(), (scale, shift, _NORM_EPS), kept, grid, kind)

        def run(backend: str = backend, built: Callable[[Tensor, Tensor], Tensor] = built) -> Any:
            with dispatch.use(backend):
                return built(tokens, ids).chunk(3, dim=-1)

        contest.contenders[name] = Contender(run, _TOLERANCE[kind], products=kind)
    return contest


def _add_backends(contest: Contest, op: str, dtype: torch.dtype, inputs: tuple[Any, ...], **layer: Any) -> None:
    kinds = {"native": dtype, "triton": dtype}
    if dtype == torch.bfloat16 and layer["weight"].device.type == "cpu":
        kinds["native int8"] = torch.int8  # takes and gives bfloat16
    layer["weight"], layer["bias"] = layer["weight"].float(), layer["bias"].float()
    parts = len(contest.expected)
    for name, kind in kinds.items():
        backend = name.split()[0]
        arguments = {**layer, "dtype": kind}
        asked: dict[str, Any] = {key: arguments[key] for key in ("weight", "groups", "dtype") if key in arguments}
        reason = dispatch.problem(backend, op, asked)
        if reason is not None:
            contest.skipped[name] = reason
            continue
        with dispatch.use(backend):
            built = dispatch.select(op, asked)(**arguments)
        run = partial(built, *inputs) if parts == 1 else partial(_in_parts, built, inputs[0], parts)
        contest.contenders[name] = Contender(run, _TOLERANCE[kind], products=kind)


def _in_parts(layer: Callable[[Tensor], Tensor], x: Tensor, parts: int) -> tuple[Tensor, ...]:
    return layer(x).chunk(parts, dim=-1)

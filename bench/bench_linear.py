"""linear: the four GEMMs of a block, with what the engine fuses into their prologue and epilogue."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ostrack_fast import ops
from ostrack_fast.config import ModelConfig
from ostrack_fast.ops import layers

from .case import TOLERANCE, Case, Comparison, Implementation, add_layer

_NORM_EPS = 1e-6


def upstream(
    x: Tensor, weight: Tensor, bias: Tensor, norm: tuple[Tensor, Tensor] | None, gelu: bool, residual: Tensor | None
) -> Tensor:
    """LayerNorm with its affine, matmul, GELU, residual: one call each, everything in one dtype."""
    if norm is not None:
        x = functional.layer_norm(x, x.shape[-1:], *norm, _NORM_EPS)
    x = functional.linear(x, weight, bias)
    x = functional.gelu(x) if gelu else x
    return x if residual is None else residual + x


def cases(cfg: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    tokens, hidden = cfg.template_grid**2 + cfg.search_grid**2, round(cfg.mlp_ratio * cfg.embed_dim)
    for layer, inputs, outputs, normed, gelu in (
        ("norm, qkv", cfg.embed_dim, 3 * cfg.embed_dim, True, False),
        ("proj, residual", cfg.embed_dim, cfg.embed_dim, False, False),
        ("norm, fc1, gelu", cfg.embed_dim, hidden, True, True),
        ("fc2, residual", hidden, cfg.embed_dim, False, False),
    ):
        rows = batch * tokens
        build = partial(_compare, (batch, tokens, inputs), outputs, normed, gelu, dtype, device)
        # The residual stream is float32 on its way in and out.
        ends = 4 * inputs + dtype.itemsize * outputs if normed else dtype.itemsize * inputs + 8 * outputs
        moved = float(rows * ends + inputs * outputs * dtype.itemsize)
        shape = f"{layer}: {tokens} x {inputs} to {outputs}"
        yield Case("linear", shape, batch, dtype, device, 2.0 * rows * inputs * outputs, moved, build)


def _compare(
    shape: tuple[int, int, int], outputs: int, normed: bool, gelu: bool, dtype: torch.dtype, device: torch.device
) -> Comparison:
    x = torch.randn(shape, device=device)
    # Weights that a conversion to the dtype does not change: the implementations differ by their arithmetic alone.
    weight = (torch.randn(outputs, shape[2], device=device) * shape[2] ** -0.5).to(dtype)
    bias = torch.randn(outputs, device=device).to(dtype)
    residual = None if normed else torch.randn(*shape[:2], outputs, device=device)
    x = x if normed else x.to(dtype)
    how: dict[str, Any] = {"norm_eps": _NORM_EPS if normed else None, "activation": "gelu" if gelu else "none"}
    with ops.use("reference"):
        exact = layers.linear(weight.double(), bias.double(), **how, dtype=torch.float64)
        best = layers.linear(weight, bias, **how, dtype=dtype)
    expected = exact(x.double(), None if residual is None else residual.double())
    affine = (torch.ones(shape[2], dtype=dtype, device=device), torch.zeros(shape[2], dtype=dtype, device=device))
    stream = None if residual is None else residual.to(dtype)
    theirs = partial(upstream, x.to(dtype), weight, bias, affine if normed else None, gelu, stream)
    baselines = {
        "upstream": Implementation(theirs, TOLERANCE[dtype]),
        "torch": Implementation(partial(best, x, residual), TOLERANCE[dtype]),
    }
    comparison = Comparison((expected,), baselines)
    weight, bias = weight.float(), bias.float()
    add_layer(
        comparison, "linear", weight, dtype,
        lambda kind: partial(layers.linear(weight, bias, **how, dtype=kind), x, residual),
    )  # fmt: skip
    return comparison


def test_linear(check_then_time, case, implementation):
    check_then_time(case, implementation)

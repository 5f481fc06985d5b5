"""linear: the four GEMMs of a block, with what the engine fuses into their prologue and epilogue."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from ostrack_fast import ops

from .case import Case, Comparison, Implementation, Setting, compare

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


def cases(at: Setting) -> Iterator[Case]:
    """The four layers of a block, at each number of tokens that candidate elimination leaves."""
    width, hidden = at.cfg.embed_dim, round(at.cfg.mlp_ratio * at.cfg.embed_dim)
    for search in dict.fromkeys(at.cfg.search_tokens()):
        tokens = at.cfg.template_grid**2 + search
        for layer, inputs, outputs, normed, gelu in (
            ("norm, qkv", width, 3 * width, True, False),
            ("proj, residual", width, width, False, False),
            ("norm, fc1, gelu", width, hidden, True, True),
            ("fc2, residual", hidden, width, False, False),
        ):
            rows, size = at.batch * tokens, at.dtype.itemsize
            # The residual stream is float32 on its way in and out.
            ends = 4 * inputs + size * outputs if normed else size * inputs + 8 * outputs
            moved = float(rows * ends + inputs * outputs * size)
            shape = f"{layer}: {tokens} x {inputs} to {outputs}"
            flops = 2.0 * rows * inputs * outputs
            yield at.case("linear", shape, flops, moved, _compare, at, tokens, inputs, outputs, normed, gelu)


def _compare(at: Setting, tokens: int, inputs: int, outputs: int, normed: bool, gelu: bool) -> Comparison:
    how = (_NORM_EPS if normed else None, "gelu" if gelu else "none")
    arguments = at.example("linear", inputs, outputs, *how)
    x, residual = ops.LAYERS["linear"].inputs(*arguments, at.batch, tokens)
    x = x if normed else x.to(at.dtype)
    weight, bias = (each.to(at.dtype) for each in arguments[:2])
    affine = torch.ones_like(x[0, 0], dtype=at.dtype), torch.zeros_like(x[0, 0], dtype=at.dtype)
    half, stream = x.to(at.dtype), None if residual is None else residual.to(at.dtype)
    whole = partial(upstream, half, weight, bias, affine if normed else None, gelu, stream)
    comparison = compare("linear", arguments, at.dtype, {"upstream": whole}, (x, residual))
    # Another function, there for comparison: what the library takes for the matmul by itself.
    alone = Implementation(partial(functional.linear, half, weight, bias), float("inf"))
    comparison.implementations["matmul alone"] = alone
    return comparison

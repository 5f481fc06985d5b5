"""Linear layers with prepacked weights: alone, behind a LayerNorm, and the two of an MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..ops.layers import Layer, linear
from ..ops.tensors import Activation


def packed(
    layer: nn.Linear, dtype: torch.dtype, norm: nn.LayerNorm | None = None, activation: Activation = "none"
) -> Layer:
    """activation(layer(norm(x))) with prepacked weights; the norm's affine is folded into them."""
    weight, bias = layer.weight.detach(), layer.bias
    shift = weight.new_zeros(len(weight)) if bias is None else bias.detach()
    if norm is None:
        return linear(weight.float(), shift.float(), activation=activation, dtype=dtype)
    wide, shift = weight.double(), shift.double()
    if norm.bias is not None:
        shift = shift + wide @ norm.bias.detach().double()
    if norm.weight is not None:
        wide = wide * norm.weight.detach().double()
    return linear(wide.float(), shift.float(), norm.eps, activation, dtype)


def in_dtype_of(x: Tensor, layer: Layer, rows: Tensor, outputs: int) -> Tensor:
    """layer(rows) in the dtype of x: written in float32 at once where x is, instead of converted afterwards."""
    if x.dtype == torch.float32:
        return layer(rows, out=x.new_empty(*rows.shape[:-1], outputs))
    return layer(rows).to(x.dtype)


def readable(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in a dtype that the layers of this compute dtype take."""
    return x if x.dtype in (torch.float32, dtype) else x.float()


def is_plain(module: Any) -> bool:
    """Whether it holds a weight matrix (O,I) of its own, as nn.Linear does, and not a computed one."""
    return isinstance(module, nn.Linear) and "weight" in dict(module.named_parameters(recurse=False))


def owns_only(module: nn.Module, *parts: nn.Module) -> bool:
    """Whether all parameters of a module are those of these parts."""
    known = {id(each) for part in parts for each in part.parameters()}
    return all(id(each) in known for each in module.parameters())


def build_linear(module: nn.Module, dtype: torch.dtype) -> Callable[..., Tensor]:
    layer, outputs = packed(cast(nn.Linear, module), dtype), cast(nn.Linear, module).out_features

    def run(x: Tensor) -> Tensor:
        return in_dtype_of(x, layer, readable(x, dtype), outputs)

    return run


def _norm_and_linear(module: nn.Module) -> tuple[nn.LayerNorm, nn.Linear] | None:
    parts = [each for each in module.children() if not isinstance(each, (nn.Identity, nn.Dropout))]
    if len(parts) != 2 or not isinstance(parts[0], nn.LayerNorm) or not is_plain(parts[1]):
        return None
    norm, layer = parts[0], cast(nn.Linear, parts[1])
    fits = norm.normalized_shape == (layer.in_features,) and owns_only(module, norm, layer)
    return (norm, layer) if fits else None


def is_norm_linear(module: nn.Module) -> bool:
    return _norm_and_linear(module) is not None


def build_norm_linear(module: nn.Module, dtype: torch.dtype) -> Callable[..., Tensor]:
    norm, layer = cast("tuple[nn.LayerNorm, nn.Linear]", _norm_and_linear(module))
    both = packed(layer, dtype, norm)

    def run(x: Tensor) -> Tensor:
        return in_dtype_of(x, both, readable(x, dtype), layer.out_features)

    return run


def is_mlp(module: nn.Module) -> bool:
    """Whether it has `fc1` and `fc2`, the second as wide as the first leaves it, and no other parameters."""
    fc1, fc2 = getattr(module, "fc1", None), getattr(module, "fc2", None)
    if not is_plain(fc1) or not is_plain(fc2):
        return False
    first, second = cast(nn.Linear, fc1), cast(nn.Linear, fc2)
    return first.out_features == second.in_features and owns_only(module, first, second)


def build_mlp(module: nn.Module, dtype: torch.dtype) -> Callable[..., Tensor]:
    first, second = cast(nn.Linear, module.fc1), cast(nn.Linear, module.fc2)
    fc1, fc2, outputs = packed(first, dtype, activation="gelu"), packed(second, dtype), second.out_features

    def run(x: Tensor, *_: Any, **__: Any) -> Tensor:
        return in_dtype_of(x, fc2, fc1(readable(x, dtype)), outputs)

    return run

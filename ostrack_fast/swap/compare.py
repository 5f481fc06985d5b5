"""Whether two results are the same, and what a call looks like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

# The largest difference allowed between a module and its replacement, as a share of the largest number.
TOLERANCES = {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 4e-2, torch.int8: 8e-2}


def difference(expected: Any, found: Any, ids: bool = True) -> float:
    """The largest difference as a share of the largest number of the same tensor; inf where they are no pair.

    Args:
        ids: tensors of whole numbers count too, whatever their dtype.
    """
    if isinstance(expected, Tensor):
        if not ids and (not expected.is_floating_point() or torch.equal(expected, expected.round())):
            return 0.0
        return _tensor_difference(expected, found) if isinstance(found, Tensor) else float("inf")
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        pairs = [(expected[key], found[key]) for key in expected if key in found]
        same = expected.keys() == found.keys()
    elif isinstance(expected, (list, tuple)) and isinstance(found, (list, tuple)):
        pairs, same = list(zip(expected, found, strict=False)), len(expected) == len(found)
    elif isinstance(expected, (list, tuple, Mapping)) or isinstance(found, Tensor):
        return float("inf")
    else:
        return 0.0 if expected is None or found is not None else float("inf")
    return max((difference(a, b, ids) for a, b in pairs), default=0.0) if same else float("inf")


def _tensor_difference(expected: Tensor, found: Tensor) -> float:
    if expected.shape != found.shape or expected.dtype != found.dtype or expected.device != found.device:
        return float("inf")
    if expected.is_contiguous() and not found.is_contiguous():
        return float("inf")  # what follows may view it
    if not expected.is_floating_point():
        return 0.0 if torch.equal(expected, found) else float("inf")
    if expected.numel() == 0:
        return 0.0
    a, b = expected.double(), found.double()
    error = float((a - b).abs().max() / a.abs().max().clamp(min=1e-9))
    return error if error == error else float("inf")


def difference_of_values(expected: Any, found: Any) -> float:
    """`difference`, whatever the order in which tensors hold their values."""
    return difference(
        *(tree_map_only(Tensor, lambda each: each.flatten().sort().values, of) for of in (expected, found))
    )


def pattern_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple | None:
    """What a call looks like: shapes and dtypes of tensors, and the values of the rest; None if it has other things."""
    entries = [*((None, each) for each in args), *kwargs.items()]
    found: list[tuple] = []
    for name, value in entries:
        if isinstance(value, Tensor):
            found.append((name, "tensor", value.shape, value.dtype))
        elif value is None or isinstance(value, (bool, int, float, str)):
            found.append((name, type(value), value))
        else:
            return None
    return tuple(found)

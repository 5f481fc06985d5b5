"""What can be replaced, and by what: the table of matchers and replacements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from . import attention, block, centre_head
from .compare import difference
from .linear import build_linear, build_mlp, build_norm_linear, is_mlp, is_norm_linear, is_plain
from .patch_embedding import build_patch_embedding, is_patch_embedding


def _itself(found: Any) -> Any:
    return found


class Kind(NamedTuple):
    """A kind of module, told by its attributes, and its replacement.

    `build` packs a module's weights for a compute dtype and returns a function of the module's arguments. One of
    `forms` makes of its result what the module returns. `method` is the one replaced. With `tensors`, arguments behind
    the first may be tensors.
    """

    name: str
    matches: Callable[[nn.Module], bool]
    build: Callable[[nn.Module, torch.dtype], Callable[..., Any]]
    forms: tuple[Callable[[Any], Any], ...] = (_itself,)
    method: str = "forward"
    tensors: bool = False
    loosely: Callable[[Any, Any], float] = difference  # what is compared in a dtype of less precision


# A module takes the first kind that it matches. Those inside it take theirs too, for calls that it does not serve.
KINDS = (
    Kind("centre head", centre_head.is_centre_head, centre_head.build_centre_head, centre_head.FORMS, "get_score_map"),
    Kind("block", block.is_block, block.build_block, block.FORMS, tensors=True, loosely=block.loosely),
    Kind("attention", attention.is_attention, attention.build_attention, attention.FORMS),
    Kind("MLP", is_mlp, build_mlp),
    Kind("LayerNorm and linear", is_norm_linear, build_norm_linear),
    Kind("patch embedding", is_patch_embedding, build_patch_embedding),
    Kind("linear", is_plain, build_linear),
)

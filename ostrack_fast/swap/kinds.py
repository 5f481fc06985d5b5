"""What can be replaced, and by what: the table of matchers and replacements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from . import attention, block, centre_head, written_out
from .compare import difference
from .linear import build_linear, build_mlp, build_norm_linear, is_mlp, is_norm_linear, is_plain
from .patch_embedding import build_patch_embedding, is_patch_embedding


def _itself(found: Any) -> Any:
    return found


class Kind(NamedTuple):
    """A kind of module, told by its attributes, and its replacement.

    `build` packs a module's weights for a compute dtype and returns a function of the module's arguments. One of
    `forms` makes of its result what the module returns. `method` is the one replaced. With `tensors`, arguments behind
    the first may be tensors. With `own_code` the replacement runs the module's own code, and keeps what that keeps:
    `build` is given the method as well.
    """

    name: str
    matches: Callable[[nn.Module], bool]
    build: Callable[..., Callable[..., Any]]
    forms: tuple[Callable[[Any], Any], ...] = (_itself,)
    method: str = "forward"
    tensors: bool = False
    own_code: bool = False
    exactly: Callable[[Any, Any], float] = difference  # what is compared in float32
    loosely: Callable[[Any, Any], float] = difference  # and in a dtype of less precision


# A module takes the first kind that it matches. Those inside it take theirs too, for calls that it does not serve.
KINDS = (
    Kind("centre head", centre_head.is_centre_head, centre_head.build_centre_head, centre_head.FORMS, "get_score_map"),
    Kind(
        "block",
        block.is_block,
        block.build_block,
        block.FORMS,
        tensors=True,
        exactly=block.exactly,
        loosely=block.loosely,
    ),
    Kind("attention", attention.is_attention, attention.build_attention, attention.FORMS),
    Kind("MLP", is_mlp, build_mlp),
    Kind("LayerNorm and linear", is_norm_linear, build_norm_linear),
    Kind("patch embedding", is_patch_embedding, build_patch_embedding),
    Kind("linear", is_plain, build_linear),
)
WRITTEN_OUT = Kind(
    "written-out attention", attention.is_attention_of_any_kind, written_out.WrittenOut, tensors=True, own_code=True
)
METHODS = {kind.method for kind in KINDS}  # those that are called in most networks
BY_NAME = {kind.name: kind for kind in (*KINDS, WRITTEN_OUT)}


def kinds_of(module: nn.Module) -> dict[str, tuple[Kind, ...]]:
    """Of the methods that can be replaced: what by, in the order in which it is tried."""
    found = next((kind for kind in KINDS if kind.matches(module)), None)
    kinds: dict[str, tuple[Kind, ...]] = {} if found is None else {found.method: (found,)}
    if WRITTEN_OUT.matches(module):
        for method in (WRITTEN_OUT.method, *written_out.methods_of(module)):
            kinds[method] = (*kinds.get(method, ()), WRITTEN_OUT)
    return kinds

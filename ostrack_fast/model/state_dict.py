"""Which of the objects in a checkpoint is the network's state dict, and under which names."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from typing import Any

from .unpickle import CheckpointError, Foreign, StoredTensor

# Any of these makes a state dict an OSTrack's, or that of a network made from it.
_MARKS = ("backbone.pos_embed_z", "backbone.patch_embed.proj.weight", "box_head.conv1_ctr.0.weight")
# Where trainers put the network, in order of preference; then the top level, then averages of the weights.
_PLACES = ("net", "network", "model", "state_dict", "model_state_dict", "module", "weights", "params")
_MAX_OBJECTS = 10_000
_MAX_DEPTH = 6

Tensors = dict[str, StoredTensor]


def find_state(content: Any) -> Tensors:
    """The tensors of the network by name, without the prefixes that wrappers add (`module.`, `_orig_mod.`, `net.`).

    A network trained beside an average of its weights (`net_ema`, `ema.module`) is preferred to it.

    Args:
        content: of a `WeightsFile`.

    Returns:
        The tensors, not yet read.

    Raises:
        CheckpointError: there is no state dict, or two tensors have the same name, or two networks the same claim to be
            the one that is wanted. The message names no file.
    """
    found = [(place, tensors, _prefixes(tensors)) for place, tensors in _state_dicts(content)]
    if not found:
        raise CheckpointError(f"holds no state dict: {_summary(content)}")
    choices = [
        (
            (not prefixes, _rank([*place, *prefix.split(".")]), len(place) + prefix.count(".")),
            ".".join([*place, prefix]).strip("."),
            _below(tensors, prefix),
        )
        for place, tensors, prefixes in found
        for prefix in prefixes or [""]
    ]
    claim, name, chosen = min(choices, key=lambda choice: choice[0])
    rivals = [other for one, other, tensors in choices if one == claim and tensors != chosen]
    if rivals and is_ostrack(chosen):
        raise CheckpointError(f"holds several networks ({', '.join([name, *rivals])}): save the one you want alone")
    return chosen


def _below(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors whose names begin with a prefix, without it."""
    # Beside the network lies the number of averaged steps, where PyTorch's AveragedModel made it.
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix) and name != "n_averaged"
    }


def is_ostrack(names: Any) -> bool:
    """Whether a state dict with these names is an OSTrack's, or that of a network made from it."""
    return any(mark in names for mark in _MARKS)


def _rank(place: list[str]) -> tuple[bool, int]:
    average = any("ema" in key.lower() or "average" in key.lower() for key in place)
    names = [key for key in place if key]
    order = _PLACES.index(names[-1]) if names and names[-1] in _PLACES else len(_PLACES) + bool(names)
    return average, order


def _state_dicts(content: Any) -> Iterator[tuple[list[str], Tensors]]:
    """Every dictionary of tensors by name, and every pickled module as one, from the top downwards."""
    queue: deque[tuple[list[str], Any]] = deque([([], content)])
    seen: set[int] = set()
    while queue and len(seen) < _MAX_OBJECTS:
        place, value = queue.popleft()
        if id(value) in seen or len(place) > _MAX_DEPTH:
            continue
        seen.add(id(value))
        if isinstance(value, Foreign) and isinstance(value.attributes.get("_modules"), dict):
            tensors = _of_module(value)
        else:
            items = value.items if isinstance(value, Foreign) else value
            if not isinstance(items, dict):
                continue
            tensors = {key: each for key, each in items.items() if isinstance(key, str) and _is_tensor(each)}
            queue.extend(([*place, key], each) for key, each in items.items() if isinstance(key, str))
        if tensors:
            yield place, _without_wrappers(tensors)


def _is_tensor(value: Any) -> bool:
    # A tensor of a kind that is not understood is a foreign object: reading it says so, leaving it out would not.
    foreign = isinstance(value, Foreign) and value.name.startswith(("torch._utils._rebuild", "torch._tensor._rebuild"))
    return foreign or isinstance(value, StoredTensor)


def _of_module(module: Foreign) -> Tensors:
    """The state dict of a module that was pickled whole."""
    tensors: Tensors = {}
    stack: list[tuple[str, Foreign]] = [("", module)]
    for _ in range(_MAX_OBJECTS):
        if not stack:
            break
        prefix, each = stack.pop()
        for kind in ("_parameters", "_buffers", "_modules"):
            members = each.attributes.get(kind)
            for key, value in members.items() if isinstance(members, dict) else ():
                if kind != "_modules" and isinstance(key, str) and _is_tensor(value):
                    tensors[prefix + key] = value
                elif isinstance(value, Foreign) and isinstance(key, str) and len(prefix) < 200:
                    stack.append((f"{prefix}{key}.", value))
    return tensors


def _without_wrappers(tensors: Tensors) -> Tensors:
    """Names without what DataParallel and torch.compile put between their parts."""
    cleaned = {re.sub(r"(^|(?<=\.))(module|_orig_mod)\.", "", name): value for name, value in tensors.items()}
    if len(cleaned) < len(tensors):
        raise CheckpointError("holds two tensors of the same name, once inside and once outside of a wrapper")
    return cleaned


def _prefixes(tensors: Tensors) -> list[str]:
    """What stands before the names of an OSTrack's state dict, for each such network among the tensors."""
    found = {name.removesuffix(mark) for mark in _MARKS for name in tensors if name.endswith(mark)}
    return sorted(prefix for prefix in found if not prefix or prefix.endswith("."))


def _summary(content: Any) -> str:
    if isinstance(content, StoredTensor):
        return "it is a single tensor"
    if isinstance(content, dict):
        keys = [str(key)[:40] for key in list(content)[:8]]
        return f"at its top level are {', '.join(keys)}" if keys else "it is an empty dictionary"
    return f"it is {content.name[:80]}" if isinstance(content, Foreign) else f"it is a {type(content).__name__}"

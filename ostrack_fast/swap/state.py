"""What modules keep between calls."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .compare import difference

_PARTS = ("_parameters", "_buffers", "_modules")


class State:
    """What a module and those in it hold: attributes, buffers, parameters, modules."""

    def __init__(self, module: nn.Module):
        self._held = [(each, dict(each.__dict__), dict(each._buffers)) for each in module.modules()]
        self._values = {
            (id(each), name): value
            for each in module.modules()
            for holder in (each.__dict__, *(each.__dict__[part] for part in _PARTS))
            for name, value in holder.items()
            if name not in _PARTS
        }
        self._versions = {key: changes_of(value) for key, value in self._values.items()}

    def restore(self) -> None:
        """Attributes and buffers are again what they were; what changed in place stays changed."""
        for module, attributes, buffers in self._held:
            for name in module.__dict__.keys() - attributes.keys():
                del module.__dict__[name]
            module.__dict__.update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)

    def has_same_objects(self, other: State) -> bool:
        same_names = self._values.keys() == other._values.keys()
        return same_names and all(value is other._values[key] for key, value in self._values.items())

    def changed_in_place(self, other: State) -> bool:
        """Whether a tensor that both hold has other numbers there."""
        both = (key for key, value in self._values.items() if other._values.get(key) is value)
        return any(self._versions[key] != other._versions[key] for key in both)

    def difference(self, other: State) -> float:
        """The largest of the differences between what the two hold; inf where it is not the same."""
        if self._values.keys() != other._values.keys():
            return float("inf")
        pairs = ((value, other._values[key]) for key, value in self._values.items())
        return max((_difference(*pair) for pair in pairs if pair[0] is not pair[1]), default=0.0)


def _difference(a: Any, b: Any) -> float:
    if isinstance(a, (Tensor, list, tuple, dict)):
        return difference(a, b)
    return 0.0 if type(a) is type(b) and a == b else float("inf")


def changes_of(value: Any) -> int:
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0

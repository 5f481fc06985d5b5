"""Settings from yaml files: read without surprises, and bound to dataclasses by the types of their fields."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from difflib import SequenceMatcher
from math import isfinite
from numbers import Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

T = TypeVar("T")

_MAX_BYTES = 1_000_000
_MAX_DEPTH = 50
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text (put it in quotes)"}


# Python prints no longer numbers, and no setting is one.
_MAX_BITS = 4096
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


class _Loader(yaml.SafeLoader):
    """YAML as PyYAML's safe loader reads it, but that keys are unique and numbers are what they look like.

    1e-3 is a number, as in YAML 1.2; 010 and 1:30, which YAML 1.1 takes for 8 and 90, are texts.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, f"expected a mapping, got a {node.id}", node.start_mark)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        problem = ""
        try:
            value = super().construct_object(node, deep)
        except (AttributeError, LookupError, TypeError):  # what PyYAML raises for a tag that the value does not fit
            problem = f"{_shortened(node.value)} does not fit the tag {node.tag.rpartition(':')[2]}"
        else:
            if isinstance(value, int) and value.bit_length() > _MAX_BITS:
                problem = f"a number of {value.bit_length()} bits"
            # No name of a file holds either, and neither can be written to a log.
            if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
                problem = "a text with a character that is none, NUL or half of a surrogate pair"
        if problem:
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return value


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in (
    (_INT, r"[-+]?(0|[1-9][\d_]*|0x[\da-fA-F_]+)$"),
    (_FLOAT, r"[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d+(?=[eE]))([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"),
):
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern, re.ASCII), list("-+.0123456789"))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping that a yaml file holds.

    Tags beyond plain data, anchors and aliases (a few of them make gigabytes), repeated keys and nesting beyond 50
    levels are refused.

    Raises:
        OSError: there is no such file, or it may not be read.
        ValueError: it is no such yaml file; the message names file and line.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    if path.is_file() and path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes: this is no file of settings")
    data = path.read_bytes()
    try:
        _check_events(data)
        document = yaml.load(data, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{where}: {error.problem or error.context}: correct the yaml") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} cannot be read as yaml: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path} is not a mapping of settings, lines of KEY: VALUE, but {_shown(document)}")
    return document


def _check_events(data: bytes) -> None:
    """Find aliases and deep nesting from the events: composing them takes the memory and the stack they abuse."""
    depth = 0
    for event in yaml.parse(data, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            problem = f"the alias *{event.anchor}: write the value out"
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            problem = f"nested more than {_MAX_DEPTH} levels deep" if depth > _MAX_DEPTH else ""
        else:
            depth -= isinstance(event, yaml.CollectionEndEvent)
            continue
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)  # type: ignore[arg-type]


def bind(kind: type[T], values: object, where: str, base: T | None = None) -> T:
    """The dataclass `kind` made from the mapping `values`, or `base` with these fields changed.

    Fields may be bool, int, float, str, Literal, tuple, dict[str, ...], Any, another dataclass, and any of these or
    None. Whole numbers serve as floats, 6e4 as an int, lists as tuples.

    Args:
        where: file and key, for messages.

    Raises:
        ValueError: an unknown, missing or repeated key, a value of another type, or one that `kind` refuses. The
            message names file and key, and the nearest key that is known.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected settings, {{KEY: VALUE, ...}}, got {_shown(values)}")
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind) if field.init]  # type: ignore[arg-type]
    check_known(values, known, "settings", where)
    made = {key: _converted(hints[key], value, f"{where}: {key}") for key, value in values.items()}
    if base is None:
        for field in fields(kind):  # type: ignore[arg-type]
            if field.name not in made and field.default is MISSING and field.default_factory is MISSING:
                raise ValueError(f"{where}: the setting {field.name!r} is missing")
    try:
        return kind(**made) if base is None else replace(base, **made)  # type: ignore[type-var]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def check_known(given: Iterable[object], known: Iterable[str], what: str, where: str) -> None:
    """Raise ValueError for keys that are not known, with the nearest one that is."""
    known = list(known)
    unknown = [key for key in given if key not in known]
    if unknown:
        names, near = ", ".join(map(_shortened, unknown)), nearest(unknown[0], known)
        raise ValueError(f"{where}: unknown {what} [{names}]; did you mean {near!r}? Known: {', '.join(known)}")


def nearest(name: object, known: Iterable[str]) -> str:
    """The known name most like this one."""
    return max(known, key=lambda one: SequenceMatcher(None, str(name)[:80].lower(), one.lower()).ratio())


def _converted(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        if value is None and NoneType in args:
            return None
        return _converted(next(one for one in args if one is not NoneType), value, where)
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{where}={_shortened(value)} must be one of {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        return _converted_tuple(args, value, where)
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ValueError(f"{where}: expected settings, {{KEY: VALUE, ...}}, got {_shown(value)}")
        return {key: _converted(args[1], one, f"{where}: {key}") for key, one in value.items()}
    if is_dataclass(hint):
        return value if isinstance(value, hint) else bind(hint, value, where)  # type: ignore[arg-type]
    return _converted_scalar(hint, value, where)


def _converted_tuple(args: tuple, value: Any, where: str) -> tuple:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where}: expected a list, [...], got {_shown(value)}")
    if args[-1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(value) != len(args):
        raise ValueError(f"{where}: expected a list of {len(args)} values, got {_shown(value)}")
    pairs = zip(args, value, strict=True)
    return tuple(_converted(hint, one, f"{where}, entry {i}") for i, (hint, one) in enumerate(pairs, 1))


def _converted_scalar(hint: type, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e300:
        value = float(value)
    if hint is int and isinstance(value, float) and isfinite(value) and value == int(value):
        value = int(value)
    if type(value) is not hint:
        raise ValueError(f"{where}: expected {_KINDS[hint]}, got {_shown(value)}")
    if isinstance(value, float) and not isfinite(value):
        raise ValueError(f"{where}: expected a finite number, got {value}")
    return value


def _shown(value: object) -> str:
    """A value of a file in a message: short, and with its kind where that is what is wrong."""
    if value is None:
        return "nothing (leave the key out for its default, if it has one)"
    names: dict[type, str] = {dict: "settings", list: "a list", tuple: "a list", str: "the text"}
    name = names.get(type(value)) or ("" if isinstance(value, (bool, int, float)) else f"a {type(value).__name__}")
    return f"{name} {_shortened(value)}".strip()


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def check_ranges(settings: object, **ranges: tuple[float, float]) -> None:
    """Raise TypeError or ValueError unless each named field, or each entry of it, is a number in its range.

    Both ends are included.
    """
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(one, Real) for one in numbers):
            raise TypeError(f"{name}={_shortened(value)} must be a number")
        if not all(low <= one <= high for one in numbers):
            raise ValueError(f"{name}={_shortened(value)} must lie in [{low:g}, {high:g}]")


def check_folder_name(name: str, value: str) -> None:
    """Raise ValueError unless a setting names a folder: an empty name would be the folder the run was started in."""
    if not value.strip() or not value.isprintable():
        raise ValueError(f"{name}={value!r} is no name of a folder: write . for the current one")

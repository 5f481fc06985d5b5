"""A strict reader of pickles that imports nothing, calls nothing and changes nothing in the running program.

PyTorch's checkpoints describe their tensors in a pickle, which is a program for a small stack machine. This module
interprets that program itself, opcode by opcode (`pickletools.genops`). It knows containers, numbers, strings and the
few constructors of tensors; every other object becomes a `Foreign`: its name, its items and its attributes, as data.
The interpreter is a loop, so no nesting exhausts Python's stack, and the work it does is bounded.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple, Protocol, cast

# A ViT-L with its optimizer takes about 60,000 opcodes in 2 MB.
MAX_OPCODES = 500_000
MAX_BYTES = 64 << 20
# No checkpoint has longer ones, and each could be used again and again at the price of one opcode.
_MAX_BITS = 4096
_MAX_NAME = 512
_MAX_ARGUMENTS = 16
_MAX_DEPTH = 100


class CheckpointError(ValueError):
    """A file of weights that cannot be used: damaged, hostile, of another kind, or of another network.

    Its message names the file and says what is wrong and what to do.
    """


class _Refused(Exception):
    """Why a pickle is refused; `read_pickle` makes a `CheckpointError` of it."""


class File(Protocol):
    """What `read_pickle` reads from: a binary file at the start of a pickle."""

    def read(self, size: int, /) -> bytes: ...
    def readline(self) -> bytes: ...
    def tell(self) -> int: ...


class Global(NamedTuple):
    """A name that the pickle mentions, such as `torch.FloatStorage`."""

    name: str


class Storage(NamedTuple):
    """A run of numbers of one type in the file: PyTorch's name of the type, and the record's key."""

    kind: str
    key: str


class StoredTensor(NamedTuple):
    """A tensor as the pickle describes it, nothing checked yet. `dtype` is given where the storage has no type."""

    storage: Any
    offset: Any
    size: Any
    stride: Any
    dtype: Any = None


@dataclass(eq=False, slots=True)
class Foreign:
    """An object of foreign code, as data: nothing of it was imported or called.

    Args:
        name: of its class, or of the function that would have made it.
        items: what would have been stored in it by key, if it is a kind of dictionary.
        attributes: its `__dict__`.
    """

    name: str
    items: dict[Any, Any] = field(default_factory=dict)
    attributes: dict[Any, Any] = field(default_factory=dict)


def read_pickle(file: File, storages: dict[str, str] | None = None) -> Any:
    """Interpret one pickle and leave the file behind it.

    Args:
        storages: receives the storages that the pickle names: the type of each by its key.

    Returns:
        The object it describes, made of dict, list, tuple, str, bytes, int, float, bool, None and the classes of this
        module. Dictionaries keep the entries whose keys are strings, bytes, small integers, booleans or None.

    Raises:
        CheckpointError: it is no pickle, is damaged, or exceeds a bound. The message names no file.
    """
    machine = _Machine({} if storages is None else storages)
    begin = file.tell()
    try:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(cast("IO[bytes]", file))):
            if count >= MAX_OPCODES or (position or begin) - begin > MAX_BYTES:
                raise _Refused(f"its pickle is larger than {MAX_OPCODES} operations or {MAX_BYTES >> 20} MiB")
            machine.run(opcode.name, argument)
    except _Refused as error:
        raise CheckpointError(str(error)) from None
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        # The reader of opcodes raises ValueError, an empty stack or memo the others.
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
        raise CheckpointError(f"its pickle is damaged ({text[:120]})") from error
    return machine.stack[0]


class _Machine:
    """The stack machine. `marks` are the heights of the stack that MARK remembers."""

    def __init__(self, storages: dict[str, str]) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.work = 0
        self.storages = storages
        self.nested: dict[int, tuple[int, tuple]] = {}

    def run(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            if type(argument) is int and argument.bit_length() > _MAX_BITS:
                raise _Refused(f"its pickle holds a number of {argument.bit_length()} bits")
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _PUTS:
            self.memo[argument if name != "MEMOIZE" else len(self.memo)] = self.stack[-1]
        elif name in _GETS:
            self.stack.append(self.memo[argument])
        elif name in _OPERATIONS:
            _OPERATIONS[name](self, argument)
        elif name not in _IGNORED:
            raise _Refused(f"its pickle uses {name}, which no checkpoint needs")

    def pop(self) -> Any:
        # Below a mark lies what belongs to another object.
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise _Refused("its pickle is damaged (the stack is empty)")
        return self.stack.pop()

    def pop_mark(self, _: Any = None) -> list[Any]:
        """What lies above the last mark."""
        height = self.marks.pop()
        values = self.stack[height:]
        del self.stack[height:]
        return values

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def discard(self, _: Any) -> None:
        # A mark is popped the same way as a value.
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def duplicate(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def stop(self, _: Any) -> None:
        if len(self.stack) != 1 or self.marks:
            raise _Refused("its pickle is damaged (it ends in the middle of an object)")

    def tuple_of(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.push_tuple(tuple(reversed(values)))

    def push_tuple(self, made: tuple) -> None:
        depth = 1 + max((self.nested.get(id(each), (1,))[0] for each in made if type(each) is tuple), default=0)
        if depth > _MAX_DEPTH:
            raise _Refused(f"its pickle nests tuples more than {_MAX_DEPTH} deep")
        if depth > 1:
            # Kept with its depth, so that its id belongs to no other.
            self.nested[id(made)] = depth, made
        self.stack.append(made)

    def append(self, _: Any) -> None:
        value = self.pop()
        if isinstance(self.stack[-1], list):
            self.stack[-1].append(value)

    def appends(self, _: Any) -> None:
        values = self.pop_mark()
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def dictionary(self, _: Any) -> None:
        values = self.pop_mark()
        self.stack.append({})
        _store(self.stack[-1], values)

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        _store(self.stack[-1], [key, value])

    def set_items(self, _: Any) -> None:
        values = self.pop_mark()
        _store(self.stack[-1], values)

    def foreign_set(self, _: Any) -> None:
        # Sets hash what they hold, and no weights lie in them.
        self.stack.append(Foreign("builtins.set"))

    def frozen_set(self, _: Any) -> None:
        self.pop_mark()
        self.foreign_set(None)

    def elsewhere(self, _: Any) -> None:
        self.stack.append(Foreign("an object kept outside the pickle"))

    def name(self, module: Any, name: Any) -> None:
        if not all(isinstance(part, str) and len(part) <= _MAX_NAME for part in (module, name)):
            raise _Refused("its pickle is damaged (a name that is none)")
        self.stack.append(Global(f"{module}.{name}"))

    def global_name(self, argument: str) -> None:
        self.name(*argument.split(" ", 1))

    def stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        self.name(module, name)

    def reduce(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        self.make(function, arguments)

    def new_with_keywords(self, _: Any) -> None:
        keywords, arguments, function = self.pop(), self.pop(), self.pop()
        self.make(function, None if keywords else arguments)

    def instance(self, argument: str) -> None:
        arguments = tuple(self.pop_mark())
        self.global_name(argument)
        self.make(self.pop(), arguments)

    def object_of(self, _: Any) -> None:
        function, *arguments = self.pop_mark()
        self.make(function, tuple(arguments))

    def make(self, function: Any, arguments: Any) -> None:
        """What a constructor would have made of its arguments."""
        made = None
        if isinstance(arguments, tuple) and len(arguments) <= _MAX_ARGUMENTS:
            # A long argument can be given again and again, and is read each time.
            self.work += sum(len(each) for each in arguments if isinstance(each, (list, tuple)))
            if self.work > MAX_OPCODES:
                raise _Refused(f"its pickle is larger than {MAX_OPCODES} operations")
            made = _made(ALLOWED, function, arguments)
        name = function.name if isinstance(function, (Global, Foreign)) else "an object without a class"
        self.stack.append(Foreign(name) if made is None else made)

    def build(self, _: Any) -> None:
        """Give an object its state, which of classes with __slots__ is a pair (attributes, slots)."""
        state, target = self.pop(), self.stack[-1]
        parts = state[:2] if isinstance(state, tuple) else (state,)
        if isinstance(target, Foreign):
            # Kept, not copied: one state may be given to many objects.
            target.attributes = next((part for part in parts if isinstance(part, dict)), target.attributes)

    def persistent(self, _: Any) -> None:
        """PyTorch's storages: ("storage", type, key, device, count), and in old files a view behind."""
        pid = self.pop()
        what: Any = Foreign("an object kept outside the pickle")
        if isinstance(pid, tuple) and 5 <= len(pid) <= 6 and pid[0] == "storage" and isinstance(pid[1], Global):
            if isinstance(pid[2], str) and len(pid[2]) <= _MAX_NAME:
                self.storages.setdefault(pid[2], pid[1].name)
                what = Storage(pid[1].name, pid[2]) if pid[5:] in ((), (None,)) else Foreign("a view of a storage")
        elif isinstance(pid, tuple) and len(pid) >= 2 and pid[0] == "module":
            what = pid[1]  # a class, beside its source, which old files hold
        self.stack.append(what)


def _store(target: Any, values: list[Any]) -> None:
    """Keys and values in turn, into a dictionary or an object that would have been one."""
    if len(values) % 2:
        raise _Refused("its pickle is damaged (a key without a value)")
    items = target.items if isinstance(target, Foreign) else target
    if isinstance(items, dict):
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Other keys can be made to take time without end: a tuple is hashed with all that it holds.
            if key is None or type(key) in (str, bytes, bool) or (type(key) is int and key.bit_length() < 60):
                items[key] = value


_Makers = dict[str, tuple[Callable[..., Any], int]]


def _made(makers: _Makers, function: Any, arguments: Any) -> Any:
    """What one of the makers makes of the arguments, or None."""
    maker, fewest = makers.get(function.name if isinstance(function, Global) else "", (None, 0))
    if maker is None or not isinstance(arguments, tuple) or not fewest <= len(arguments) <= _MAX_ARGUMENTS:
        return None
    return maker(*arguments)


def _dictionary(pairs: Any = (), *_: Any) -> dict[Any, Any]:
    """Of OrderedDict's argument in pickles of Python 2; today the items come later, one by one."""
    made: dict[Any, Any] = {}
    for pair in pairs if isinstance(pairs, (list, tuple)) else ():
        if isinstance(pair, (list, tuple)) and len(pair) == 2:
            _store(made, [*pair])
    return made


# PyTorch keeps some signs in a bit beside the numbers, which it says in a last argument that others lack.
_NEGATED = Foreign("torch._utils._rebuild_tensor of a negated view: save it after .resolve_neg()")


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any = None, hooks: Any = None, bits: Any = None, *_: Any
) -> Any:
    return _NEGATED if bits else StoredTensor(storage, offset, size, stride)


def _typed_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, bits: Any = None, *_: Any
) -> Any:
    return _NEGATED if bits else StoredTensor(storage, offset, size, stride, dtype)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _with_attributes(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    """A tensor with attributes. A class other than PyTorch's own may mean other numbers by the same storage."""
    plain = kind in (Global("torch.Tensor"), Global("torch._tensor.Tensor"), Global("torch.nn.parameter.Parameter"))
    return _made(_TENSORS, function, arguments) if plain else None


# The constructors that are understood, and the fewest arguments that each takes.
_TENSORS: _Makers = {
    "torch._utils._rebuild_tensor": (_tensor, 4),
    "torch._utils._rebuild_tensor_v2": (_tensor, 4),
    "torch._utils._rebuild_tensor_v3": (_typed_tensor, 7),
    "torch._utils._rebuild_parameter": (_parameter, 1),
    "torch._utils._rebuild_parameter_with_state": (_parameter, 1),
}
ALLOWED: _Makers = {
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": (_with_attributes, 3),
    "collections.OrderedDict": (_dictionary, 0),
    "builtins.dict": (_dictionary, 0),
    "collections.defaultdict": (lambda *_: {}, 0),
}

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_IGNORED = {"PROTO", "FRAME", "READONLY_BUFFER"}
_OPERATIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    "STOP": _Machine.stop,
    "MARK": _Machine.mark,
    "POP": _Machine.discard,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.duplicate,
    "TUPLE": lambda machine, _: machine.push_tuple(tuple(machine.pop_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "LIST": lambda machine, _: machine.stack.append(machine.pop_mark()),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "DICT": _Machine.dictionary,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "EMPTY_SET": _Machine.foreign_set,
    "FROZENSET": _Machine.frozen_set,
    "ADDITEMS": _Machine.pop_mark,
    "GLOBAL": _Machine.global_name,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "NEWOBJ_EX": _Machine.new_with_keywords,
    "INST": _Machine.instance,
    "OBJ": _Machine.object_of,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
    **dict.fromkeys(("PERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER"), _Machine.elsewhere),
}

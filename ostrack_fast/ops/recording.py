"""The compiled kernels that a function calls on the CPU, called again without the Python between them.

Checks, views and memory take some 20 microseconds between two kernels, which leave little of all that in the caches of
the processor: a fifth of a frame of a small network on two threads.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from math import prod
from typing import Any
from weakref import finalize

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .threads import thread_count

# A recording holds its memory, about as much as a frame needs.
_MAX_RECORDINGS = 2

_aten = torch.ops.aten


class NotRecordable(RuntimeError):
    """A kernel reads, or the function returns, what PyTorch computed: calling the kernels again would not change it."""


class Recording:
    """The kernel calls of `function(value)`, which is called once for it and returns tensors.

    Every replay overwrites what the function returned. What it reads beside `value` must stay where it is.

    Raises:
        NotRecordable: the function does more than allocate, view and call kernels.
    """

    def __init__(self, function: Callable[[Tensor], tuple[Tensor, ...]], value: Tensor):
        self._noted: list[tuple[Callable[..., None], tuple]] = []
        self._watch = _Watch()
        token = _current.set(self)
        try:
            with self._watch:
                self._result = function(value)
        finally:
            _current.reset(token)
        self._watch.check(each.data_ptr() for each in self._result)
        self._blocks = self._watch.free  # all memory that no result lies in
        del self._watch
        from .. import _C  # without compiled kernels PyTorch computes, and this is not reached

        self._calls = _C.Calls(value.data_ptr())
        for called, arguments in self._noted:
            called(self._calls, *arguments)
        del self._noted

    def add(self, function: Callable[..., None], arguments: tuple) -> None:
        """Note a call, while the function runs."""
        self._watch.check(map(_address, arguments))
        self._noted.append((function, arguments))

    def replay(self, value: Tensor) -> tuple[Tensor, ...]:
        """The function of another value, of the same dtype, shape and strides."""
        self._calls.replay(value.data_ptr())
        return self._result


class Recordings:
    """Functions of a tensor that are called again and again, recorded where that is possible: the latest few."""

    def __init__(self) -> None:
        # By where and how the inputs lie; None where the kernels that run cannot be recorded.
        self._kept: dict[tuple, tuple[Recording | None, tuple]] = {}

    def __call__(
        self, function: Callable[[Tensor], tuple[Tensor, ...]], value: Tensor, *reads: Any
    ) -> tuple[Tensor, ...]:
        """`function(value)`, or its replay, which overwrites what the call before returned.

        `reads`: tensors that it reads, and what else it takes, beside `value`. Equal ones mean the same function.
        """
        places = (each.data_ptr() if isinstance(each, Tensor) else each for each in reads)
        key = thread_count(), value.dtype, value.shape, value.stride(), *places
        if key not in self._kept:
            if len(self._kept) == _MAX_RECORDINGS:
                del self._kept[next(iter(self._kept))]
            try:
                recording = Recording(function, value)
            except NotRecordable:
                recording = None
            self._kept[key] = recording, reads  # held, so that nothing else comes to lie in these places
        recording = self._kept[key][0]
        return function(value) if recording is None else recording.replay(value)

    def __getstate__(self) -> dict[str, Any]:
        # PyTorch moves tensors that are sent to another process to memory that both share: what was recorded of them is
        # void here too.
        self._kept.clear()
        return self.__dict__


_current: ContextVar[Recording | None] = ContextVar("ostrack_fast_recording", default=None)


def launch(function: Callable[..., None], *arguments: Any) -> None:
    """Call a compiled kernel for the CPU, and note the call where one is being recorded."""
    function(*arguments)
    recording = _current.get()
    if recording is not None:
        recording.add(function, arguments)


class _Watch(TorchDispatchMode):
    """Gives new tensors memory that stays, and is used again when no tensor lies in it; notes what PyTorch computes.

    Attributes:
        free: blocks of memory in which no tensor lies.
    """

    def __init__(self) -> None:
        super().__init__()
        self.free: list[Tensor] = []
        self._computed: list[Tensor] = []  # held, so that nothing else comes to lie there
        self._writes: list[str] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # PyTorch would import its compiler, to tell it to leave this class alone

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: tuple = (), named: Any = None) -> Any:
        named = named or {}
        if operator is _aten.empty.memory_format:
            return self._empty(arguments[0], named["dtype"])
        if operator is _aten.new_empty.default:
            return self._empty(arguments[1], named.get("dtype") or arguments[0].dtype)
        result = operator(*arguments, **named)
        if operator._schema.is_mutable:
            self._writes.append(str(operator))
        elif not operator.is_view:
            made = result if isinstance(result, tuple) else (result,)
            self._computed += [each for each in made if isinstance(each, Tensor)]
        return result

    def check(self, addresses: Any) -> None:
        """Raises NotRecordable if PyTorch wrote to a tensor, or computed one that lies at one of these addresses."""
        starts = [(each.data_ptr(), each.untyped_storage().nbytes()) for each in self._computed]
        if self._writes or any(start <= each < start + size for each in addresses for start, size in starts):
            raise NotRecordable("PyTorch computes between the kernels")

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size = prod(shape) * dtype.itemsize
        if size == 0:
            return torch.empty(shape, dtype=dtype, device="cpu")
        fitting = [index for index, each in enumerate(self.free) if len(each) >= size]
        if fitting:
            block = self.free.pop(min(fitting, key=lambda index: len(self.free[index])))
        else:
            block = torch.empty(size, dtype=torch.uint8, device="cpu")
        # Tensors over an array hold it: when the last of them is gone, the block is free.
        array = block.numpy()[:size]
        finalize(array, self.free.append, block)
        return torch.from_numpy(array).view(dtype).view(shape)


def _address(argument: Any) -> int:
    """Where a tensor that a kernel is called with lies; 0 for what is no tensor."""
    return argument[0] if isinstance(argument, tuple) else 0

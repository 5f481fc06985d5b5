"""A memory checker for Triton's interpreter.

    with guard(seed=1):
        kernel[grid](...)

The interpreter runs programs one after another in a fixed order, so a race or a read past the end passes in silence.
Inside `guard` programs run in a random order, and every access is checked:

* it must stay on elements of the tensors passed in (not merely inside their storage);
* two programs may touch one element, one of them writing, only if they are ordered: both accesses atomic, or the first
  program released (an atomic with release order after the access) what the second acquired before its own. The order is
  kept in vector clocks, as data race detectors do.

Accesses are looked at where the pointer is used, so a lane switched off by its mask counts for nothing.
"""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from triton.runtime import interpreter

Builder, Executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
SEVERAL = -2  # in place of a program number: several programs have read the element
NOBODY = -1


class MemoryAccessError(RuntimeError):
    """A kernel read or wrote where it must not."""


class Segment:
    """One storage: which bytes a view passed in reaches, and who accessed each byte last and when."""

    def __init__(self, tensors: list[torch.Tensor]):
        storage = tensors[0].untyped_storage()
        self.start, self.size = storage.data_ptr(), storage.nbytes()
        self.legal = np.zeros(self.size, bool)
        for tensor in tensors:
            offsets = np.full((), tensor.storage_offset(), np.int64)
            for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
                offsets = offsets[..., None] + np.arange(size) * stride
            width = tensor.element_size()
            self.legal[(offsets.reshape(-1, 1) * width + np.arange(width)).reshape(-1)] = True
        self.writer, self.write_epoch, self.write_atomic = self._blank(NOBODY), self._blank(0), self._blank(0)
        self.reader, self.read_epoch = self._blank(NOBODY), self._blank(0)

    def _blank(self, value: int) -> np.ndarray:
        return np.full(self.size, value, np.int32)


class Shadow:
    """The state of one launch: segments of memory and a vector clock for every program."""

    def __init__(self, tensors: list[torch.Tensor], programs: int):
        storages: dict[int, list[torch.Tensor]] = {}
        for tensor in tensors:
            if tensor.numel():
                storages.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
        self.segments = [Segment(group) for group in storages.values()]
        self.clocks = np.zeros((programs, programs), np.int32)
        np.fill_diagonal(self.clocks, 1)
        self.released: dict[int, np.ndarray] = {}
        self.program = 0

    def access(self, kind: str, pointers: np.ndarray, mask: np.ndarray | None, width: int) -> np.ndarray:
        """Check one access and record it; returns the addresses that took part."""
        addresses = np.asarray(pointers).astype(np.int64).reshape(-1)
        if mask is not None:
            # A scalar condition that was broadcast into the mask makes integers of it.
            lanes = np.broadcast_to(np.asarray(mask, bool), np.shape(pointers))
            addresses = addresses[lanes.reshape(-1)]
        unknown = np.ones(addresses.size, bool)
        for segment in self.segments:
            inside = (addresses >= segment.start) & (addresses + width <= segment.start + segment.size)
            if inside.any():
                unknown &= ~inside
                self._check(segment, kind, addresses[inside] - segment.start)
        if unknown.any():
            raise MemoryAccessError(
                f"program {self.program}: {kind} outside every tensor passed in, {unknown.sum()} lanes"
            )
        return addresses

    def _check(self, segment: Segment, kind: str, at: np.ndarray) -> None:
        if not segment.legal[at].all():
            raise MemoryAccessError(
                f"program {self.program}: {kind} outside the view passed in, at byte {at[~segment.legal[at]][0]}"
            )
        clock = self.clocks[self.program]
        writer, reader = segment.writer[at], segment.reader[at]
        clash = (writer != NOBODY) & (writer != self.program) & (segment.write_epoch[at] > clock[writer])
        if kind == "atomic":
            clash &= segment.write_atomic[at] == 0
        if clash.any():
            raise MemoryAccessError(
                f"race: {kind} of program {self.program} on an element that program {writer[clash][0]} wrote"
            )
        if kind == "load":
            segment.reader[at] = np.where((reader == NOBODY) | (reader == self.program), self.program, SEVERAL)
            segment.read_epoch[at] = clock[self.program]
            return
        # A write after reads of several programs counts as a race even if all of them were ordered before it.
        ordered = (reader >= 0) & (segment.read_epoch[at] <= clock[reader])
        clash = (reader != NOBODY) & (reader != self.program) & ~ordered
        if clash.any():
            raise MemoryAccessError(f"race: {kind} of program {self.program} on an element that another program read")
        if kind == "store" and np.unique(at).size < at.size:
            raise MemoryAccessError(f"race: program {self.program} stores two lanes to one element")
        segment.writer[at], segment.write_epoch[at] = self.program, clock[self.program]
        segment.write_atomic[at] = kind == "atomic"

    def synchronize(self, addresses: np.ndarray, semantics: str) -> None:
        """Acquire from and release to the given addresses, as far as the memory order of the atomic says."""
        clock = self.clocks[self.program]
        for address in addresses.tolist():
            if "ACQUIRE" in semantics and address in self.released:
                np.maximum(clock, self.released[address], out=clock)
            if "RELEASE" in semantics:
                before = self.released.get(address, np.zeros_like(clock))
                self.released[address] = np.maximum(before, clock)
        if "RELEASE" in semantics:
            clock[self.program] += 1


def _launch_tensors(args: list, kwargs: dict) -> list[torch.Tensor]:
    return [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]


@contextlib.contextmanager
def guard(seed: int = 0) -> Iterator[None]:
    """Check every launch inside; `seed` chooses the order in which programs run."""
    saved = {
        (owner, name): getattr(owner, name)
        for owner, names in (
            (Builder, ("create_masked_load", "create_masked_store", "create_atomic_rmw", "create_atomic_cas")),
            (Builder, ("set_grid_dim", "set_grid_idx")),
            (Executor, ("_init_args_hst",)),
        )
        for name in names
    }
    stock = {name: function for (_, name), function in saved.items()}
    tensors: list[torch.Tensor] = []
    shadow: Shadow | None = None
    order: list[int] = []

    def width(pointers):
        return max(1, pointers.get_element_ty().primitive_bitwidth // 8)

    def init(self, args, kwargs):
        nonlocal tensors
        hosted = stock["_init_args_hst"](self, args, kwargs)
        tensors = _launch_tensors(*hosted)
        return hosted

    def grid_dim(self, x, y, z):
        nonlocal shadow, order
        shadow = Shadow(tensors, x * y * z)
        order = list(range(x * y * z))
        random.Random(seed).shuffle(order)
        return stock["set_grid_dim"](self, x, y, z)

    def grid_idx(self, x, y, z):
        _, size_y, size_z = self.grid_dim
        program = order[(x * size_y + y) * size_z + z]
        shadow.program = program
        return stock["set_grid_idx"](self, program // (size_y * size_z), program // size_z % size_y, program % size_z)

    def load(self, pointers, mask, *rest):
        shadow.access("load", pointers.data, mask.data, width(pointers))
        return stock["create_masked_load"](self, pointers, mask, *rest)

    def store(self, pointers, value, mask, *rest):
        shadow.access("store", pointers.data, mask.data, width(pointers))
        return stock["create_masked_store"](self, pointers, value, mask, *rest)

    def rmw(self, op, pointers, value, mask, semantics, *rest):
        addresses = shadow.access("atomic", pointers.data, mask.data, width(pointers))
        shadow.synchronize(addresses, str(semantics))
        return stock["create_atomic_rmw"](self, op, pointers, value, mask, semantics, *rest)

    def cas(self, pointers, expected, value, semantics, *rest):
        addresses = shadow.access("atomic", pointers.data, None, width(pointers))
        shadow.synchronize(addresses, str(semantics))
        return stock["create_atomic_cas"](self, pointers, expected, value, semantics, *rest)

    checked = (load, store, rmw, cas, grid_dim, grid_idx, init)
    for (owner, name), function in zip(saved, checked, strict=True):
        setattr(owner, name, function)
    try:
        yield
    finally:
        for (owner, name), function in saved.items():
            setattr(owner, name, function)

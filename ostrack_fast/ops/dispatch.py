"""Which implementation runs an op: ordered candidates, each of which says why it cannot.

Backends: `native`, the compiled extension (C++ on CPU tensors, CUDA on GPU tensors); `triton`; `reference`, plain
PyTorch. Without a word from the user the first candidate that supports a call runs it, and if it fails, it raises:
nothing falls back behind the user's back. `use("triton")`, or the environment variable OSTRACK_FAST_BACKEND, forces
one, and a call it cannot run raises with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from torch import Tensor

from . import native, reference

BACKENDS = ("native", "triton", "reference")
OPS = ("crop", "attention", "eliminate", "restore", "decode")

# On a GPU without the CUDA toolkit at install time only Triton is there; where both are, the order is that of the
# measurements in bench/results.
_ORDER = {"cpu": ("native", "reference"), "cuda": ("native", "triton", "reference")}

_forced: ContextVar[str | None] = ContextVar("ostrack_fast_backend", default=None)


def _checked(backend: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose {', '.join(BACKENDS)} or auto")
    return backend


def forced_backend() -> str | None:
    """The backend `use` or OSTRACK_FAST_BACKEND asks for, or None for the automatic choice."""
    chosen = _forced.get() or os.environ.get("OSTRACK_FAST_BACKEND", "auto")
    return None if chosen == "auto" else _checked(chosen)


@contextmanager
def use(backend: str) -> Iterator[None]:
    """Force a backend for the ops called inside; `"auto"` chooses by itself even where the environment forces one."""
    token = _forced.set(backend if backend == "auto" else _checked(backend))
    try:
        yield
    finally:
        _forced.reset(token)


def _module(backend: str) -> ModuleType:
    if backend == "triton":
        # Imported when first wanted: Triton need not be installed, and costs a second to import.
        from .. import kernels

        return kernels
    return {"native": native, "reference": reference}[backend]


def problem(backend: str, op: str, arguments: dict[str, Any]) -> str | None:
    """Why a backend cannot run a call, or None."""
    if backend == "reference":
        return None
    try:
        module = _module(backend)
    except ImportError as error:
        return f"cannot be imported: {error}"
    return module.supports(op, **arguments)


def select(op: str, arguments: dict[str, Any]) -> Any:
    """The function that runs this call.

    Raises:
        RuntimeError: a forced backend cannot, with its reason.
    """
    backend = forced_backend()
    if backend is not None:
        reason = problem(backend, op, arguments)
        if reason is not None:
            raise RuntimeError(f"backend {backend!r} was asked for, but cannot run {op}: {reason}")
        return getattr(_module(backend), op)
    device = next(value.device.type for value in arguments.values() if isinstance(value, Tensor))
    for backend in _ORDER.get(device, ("reference",)):
        if problem(backend, op, arguments) is None:
            return getattr(_module(backend), op)
    raise AssertionError("the reference runs everything")

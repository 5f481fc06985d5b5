"""Which implementation runs an op: ordered candidates, each of which says why it cannot.

Backends: `native`, the compiled extension (C++ on CPU tensors, CUDA on GPU tensors); `triton`; `reference`, plain
PyTorch. Without a word from the user the first candidate that supports a call runs it, and if it fails, it raises:
nothing falls back behind the user's back. `use("triton")`, or the environment variable OSTRACK_FAST_BACKEND, forces
one, and a call it cannot run raises with the reason.

To add an op: a function of its name in `reference`, and in every backend that has it; `supports(name, **arguments)`
there; the name in `OPS`. An op that is built once and called often, like a layer with packed weights, is a class
instead: `LAYERS` holds its name, and `select("linear", {"weight": weight, "dtype": dtype, ...})` returns the class,
given the arguments of its constructor.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import native, reference

BACKENDS = ("native", "triton", "reference")
OPS = ("crop", "attention", "eliminate", "restore", "decode", "advance")
LAYERS = {"linear": "Linear", "conv3x3": "Conv3x3"}

# On a GPU without the CUDA toolkit at install time only Triton is there. Where both are, the order is a guess until
# bench/gpu_check.sh has run on one. Devices not named here have the reference alone.
_ORDER = {"cpu": ("native", "reference"), "cuda": ("native", "triton", "reference")}


class _Exception(NamedTuple):
    """Calls of `op` on `device` for which `applies(arguments)` holds, and the order of backends for them."""

    op: str
    device: str
    applies: Callable[[dict[str, Any]], bool]
    order: tuple[str, ...]


def _more_than_a_scatter(arguments: dict[str, Any]) -> bool:
    return arguments.get("norm_weight") is not None or arguments.get("channels_last", False)


def _in_float32(arguments: dict[str, Any]) -> bool:
    return arguments.get("dtype") == torch.float32


# The first that applies counts. `applies` may look at dtypes, shapes and the architecture, never at values.
_EXCEPTIONS = (
    # One launch in Triton; the compiled kernel scatters to (B,C,F,F) only and needs PyTorch for the rest.
    _Exception("restore", "cuda", _more_than_a_scatter, ("triton", "native", "reference")),
    # Exact products run on no tensor core: cuBLAS and cuDNN have more kernels for that than one Triton tile.
    _Exception("linear", "cuda", _in_float32, ("reference", "triton", "native")),
    _Exception("conv3x3", "cuda", _in_float32, ("reference", "triton", "native")),
)

_forced: ContextVar[str | None] = ContextVar("ostrack_fast_backend", default=None)


def _checked(backend: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose {', '.join(BACKENDS)} or auto")
    return backend


def _wanted() -> str:
    return _forced.get() or os.environ.get("OSTRACK_FAST_BACKEND", "auto")


def forced_backend() -> str | None:
    """The backend `use` or OSTRACK_FAST_BACKEND asks for, or None for the automatic choice."""
    wanted = _wanted()
    return None if wanted == "auto" else _checked(wanted)


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


def order(op: str, arguments: dict[str, Any]) -> tuple[str, ...]:
    """The candidates for a call, best first."""
    device = next(value.device.type for value in arguments.values() if isinstance(value, Tensor))
    for exception in _EXCEPTIONS:
        if (exception.op, exception.device) == (op, device) and exception.applies(arguments):
            return exception.order
    return _ORDER.get(device, ("reference",))


def choose(op: str, arguments: dict[str, Any]) -> str:
    """The backend that runs this call.

    Raises:
        RuntimeError: a forced backend cannot, with its reason.
    """
    forced = forced_backend()
    if forced is None:
        return next(backend for backend in order(op, arguments) if problem(backend, op, arguments) is None)
    reason = problem(forced, op, arguments)
    if reason is not None:
        raise RuntimeError(f"backend {forced!r} was asked for, but cannot run {op}: {reason}")
    return forced


def select(op: str, arguments: dict[str, Any], name: str = "") -> Any:
    """The function that runs this call, or the class that runs such a layer; raises as `choose`.

    `name`: of a variant that every backend of the op has under that name.
    """
    return getattr(_module(choose(op, arguments)), name or LAYERS.get(op, op))


_MEMORY = 4096  # calls remembered; more than any program has kinds of calls, few enough to hold
_remembered: dict[tuple, Callable] = {}


def checked_function(op: str, check: Callable[..., dict[str, Any]], *values: Any) -> Callable:
    """The function that runs `op` on these values, after `check` of them.

    `check` raises on values that are wrong, and returns them by name; it and the backends' `supports` look at dtypes,
    shapes, devices and plain numbers only, so a call like one before needs neither again.
    """
    signature = [
        (value.shape, value.dtype, value.device, value.requires_grad) if isinstance(value, Tensor) else value
        for value in values
    ]
    key = (op, _wanted(), torch.is_grad_enabled(), *signature)
    function = _remembered.get(key)
    if function is None:
        function = select(op, check(*values))
        if len(_remembered) >= _MEMORY:
            _remembered.clear()
        _remembered[key] = function
    return function

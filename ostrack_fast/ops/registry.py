"""What an op is, told once: from an `Op` follow its registration with PyTorch, its dispatch, its tests and its report.

`Op(...)` declares a function of tensors: schema, checks, outputs, reference, gradient, backends and sample inputs. It
registers `torch.ops.ostrack_fast.NAME`, which the public function calls, so that PyTorch's own dispatcher serves
autograd, torch.compile, torch.export, fake and meta tensors, torch.func, negative bits and subclasses. `LayerOp(...)`
declares what is built once and called often, like a linear layer with prepacked weights.

Backends: `native`, the compiled extension (C++ on CPU tensors, CUDA on GPU tensors); `triton`; `reference`, plain
PyTorch. In auto mode the first backend that supports a call runs it. If that backend fails, the call raises: it never
falls back. `use("triton")`, or the environment variable OSTRACK_FAST_BACKEND, forces a backend on all that is declared
to have it, and a call it cannot run raises with the reason. Public functions choose at each call; what is built or
bound chooses once, when it is made.

To add an op: a file like `update_box.py` beside this one, and its name in `__init__`; CONTRIBUTING.md has the rest.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import native
from .tensors import without_autocast

BACKENDS = ("native", "triton", "reference")

# On a GPU without the CUDA toolkit at install time only Triton is there. Where both are, the order is a guess until
# the GPU checks of `bench` have run on one. Devices not named here have the reference alone.
_ORDER = {"cpu": ("native", "reference"), "cuda": ("native", "triton", "reference")}

OPS: dict[str, Op] = {}
LAYERS: dict[str, LayerOp] = {}

_forced: ContextVar[str | None] = ContextVar("ostrack_fast_backend", default=None)

# "small": a few numbers. "typical": OSTrack-256's first eliminating block. "edge": tiles begun and not filled, sizes of
# one, ties; what overruns show at.
Size = Literal["small", "typical", "edge"]
Sizes = Mapping[Size, Sequence[tuple]]


class Backend(NamedTuple):
    """`run(*arguments)` computes the op, or builds the layer; `unless(*arguments)` says why it cannot, or None."""

    run: Callable[..., Any]
    unless: Callable[..., str | None]


class Preference(NamedTuple):
    """The order of backends for calls on `device` for which `when(*arguments)` holds.

    `when` may look at dtypes, shapes and the processor, never at values.
    """

    device: str
    order: tuple[str, ...]
    when: Callable[..., bool]


def _checked_name(backend: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose {', '.join(BACKENDS)} or auto")
    return backend


def forced_backend() -> str | None:
    """The backend `use` or OSTRACK_FAST_BACKEND asks for, or None for the automatic choice."""
    wanted = _forced.get() or os.environ.get("OSTRACK_FAST_BACKEND", "auto")
    return None if wanted == "auto" else _checked_name(wanted)


@contextmanager
def use(backend: str) -> Iterator[None]:
    """Force a backend for what is called or built inside; `"auto"` lifts what the environment forces."""
    token = _forced.set(backend if backend == "auto" else _checked_name(backend))
    try:
        yield
    finally:
        _forced.reset(token)


def triton_kernel(name: str) -> Callable[..., Any]:
    """The launcher of an op's Triton kernel: the function `name` of `kernels/name.py`, imported when first wanted."""
    return getattr(import_module(f"ostrack_fast.kernels.{name}"), name)


def triton_kernels() -> ModuleType:
    """The package of the Triton kernels, imported when first wanted: Triton may be absent, and is slow to import."""
    from .. import kernels

    return kernels


def _no_triton_reason(device: torch.device) -> str | None:
    if device.type != "cuda" and "TRITON_INTERPRET" not in os.environ:
        # Asked before the import, which takes 70 MB of memory that nothing on this device would use.
        return f"Triton kernels need a CUDA device, the tensors are on {device}"
    try:
        return triton_kernels().unsupported_reason(device)
    except ImportError as error:
        return f"cannot be imported: {error}"


def _device_of(arguments: tuple) -> torch.device:
    for value in arguments:
        if isinstance(value, Tensor):
            return value.device
        if isinstance(value, torch.device):
            return value
    raise ValueError("no argument has a device")


class _Declaration:
    """Backends of one name, and the choice among them."""

    def __init__(
        self,
        name: str,
        backends: dict[str, Backend],
        preferences: tuple[Preference, ...],
        sizes: Sizes,
        example: Callable[..., tuple],
    ):
        self.name, self.backends, self.preferences = name, backends, preferences
        self.sizes, self.example = sizes, example
        self.kernel = name  # what the C ABI calls it
        parameters = inspect.signature(backends["reference"].run).parameters.values()
        self.parameters = {each.name: None if each.default is each.empty else each.default for each in parameters}

    def complete(self, arguments: tuple, named: dict[str, Any]) -> tuple:
        """All arguments by position: defaults, or None, stand for those that are not given."""
        given = dict(zip(self.parameters, arguments, strict=False)) | named
        if len(given) < len(arguments) + len(named) or not given.keys() <= self.parameters.keys():
            raise TypeError(f"{self.name} takes {', '.join(self.parameters)}; got {', '.join(given)}")
        return tuple(given.get(name, default) for name, default in self.parameters.items())

    def samples(self, size: Size, dtype: torch.dtype, device: torch.device) -> Iterator[tuple]:
        """Example arguments of these sizes: what tests, sanitizers, the emulation, `report` and `bench` call with."""
        return (self.example(dtype, device, *numbers) for numbers in self.sizes[size])

    def unsupported_reason(self, backend: str, *arguments: Any, **named: Any) -> str | None:
        """Why a backend cannot run a call with these arguments, or None if it can."""
        arguments = self.complete(arguments, named)
        if backend not in self.backends:
            return f"{self.name} has no {backend} kernel"
        device = _device_of(arguments)
        reason = None
        if backend == "native":
            reason = native.unsupported_reason(self.kernel, device)
        elif backend == "triton":
            reason = _no_triton_reason(device)
        return reason or self.backends[backend].unless(*arguments)

    def order(self, *arguments: Any) -> tuple[str, ...]:
        """The candidates for a call, best first."""
        device = _device_of(arguments).type
        for preference in self.preferences:
            if preference.device == device and preference.when(*arguments):
                return preference.order
        return _ORDER.get(device, ("reference",))

    def choose(self, *arguments: Any) -> str:
        """The backend that runs a call with these arguments.

        Raises:
            RuntimeError: a forced backend cannot, or none can; with the reasons.
        """
        forced = forced_backend()
        if forced not in self.backends:
            forced = None  # nothing of that kind was ever written: the automatic choice serves
        reasons = {}
        for backend in (forced,) if forced else self.order(*arguments):
            reason = self.unsupported_reason(backend, *arguments)
            if reason is None:
                return backend
            reasons[backend] = reason
        if forced:
            raise RuntimeError(f"backend {forced!r} was asked for, but cannot run {self.name}: {reasons[forced]}")
        raise RuntimeError(f"no backend can run {self.name}: " + "; ".join(f"{k}: {v}" for k, v in reasons.items()))

    def report_row(self, device: torch.device) -> tuple[str, str, str, list[tuple[str, str]]]:
        """(name, device, chosen backend, [(backend not chosen, why), ...]) for typical arguments in float32."""
        arguments = next(self.samples("typical", torch.float32, device))
        chosen, forced = self.choose(*arguments), forced_backend()
        other = f"{forced} is asked for" if forced else f"{chosen} comes first"
        reasons = {name: self.unsupported_reason(name, *arguments) for name in BACKENDS if name != chosen}
        return self.name, str(device), chosen, [(name, reason or other) for name, reason in reasons.items()]


def _supports_all(*_: Any) -> None:
    return None


def _nothing(*_: Any) -> None:
    pass


class Op(_Declaration):
    """A function of tensors. Every function given takes all arguments of the schema, by position.

    Args:
        schema: in PyTorch's notation, without the namespace.
        check: raises ValueError for shapes, dtypes, devices and numbers that are wrong, whatever runs the op.
        check_values: raises ValueError for values that are wrong; only for CPU tensors, where looking is cheap.
        outputs: the results, uninitialized: what fake tensors show, and what kernels write to.
        reference: the specification, in plain PyTorch; also what torch.func and forward-mode AD differentiate.
        backends: besides the reference.
        sizes: what `example` takes by name of a size, see `Size`.
        example: `example(dtype, device, *numbers)`, arguments with random values of a fixed seed, floats in `dtype`.
        save: `save(ctx, inputs, outputs)` keeps what the gradient needs; None where there is no gradient.
        gradient: `gradient(ctx, *grads)`, one gradient for each input, whatever backend ran the op.
        bound: what `bind` makes.
    """

    def __init__(
        self,
        schema: str,
        *,
        check: Callable[..., None],
        outputs: Callable[..., Tensor | tuple[Tensor, ...]],
        reference: Callable[..., Any],
        sizes: Sizes,
        example: Callable[..., tuple],
        check_values: Callable[..., None] = _nothing,
        backends: dict[str, Backend] | None = None,
        preferences: tuple[Preference, ...] = (),
        save: Callable[..., None] | None = None,
        gradient: Callable[..., tuple] | None = None,
        bound: type[BoundOp] | None = None,
    ):
        name = schema.partition("(")[0]
        exact = Backend(without_autocast(reference), _supports_all)
        super().__init__(name, {**(backends or {}), "reference": exact}, preferences, sizes, example)
        self.check, self.check_values, self.outputs, self.reference = check, check_values, outputs, reference
        self.save, self.gradient, self.bound = save, gradient, bound or BoundOp
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, self._run, "CompositeExplicitAutograd")
        _library.impl(name, self._differentiable, "Autograd")
        torch.library.register_fake(f"ostrack_fast::{name}", self._fake, lib=_library)
        self.overload = getattr(torch.ops.ostrack_fast, name).default
        kinds = [argument.type for argument in self.overload._schema.arguments]
        self._required = frozenset(index for index, kind in enumerate(kinds) if isinstance(kind, torch.TensorType))
        OPS[name] = self

    def __call__(self, *arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.overload(*arguments)
        try:
            return self.overload(*arguments)
        except RuntimeError as error:
            # What PyTorch says of arguments that do not fit the schema, in which a dtype is an int.
            told = re.search(r"of type '(.+)' for argument '(.+)' but instead found type '(.+)'", str(error))
            if told is None:
                raise
            needed = "torch.dtype" if told[2] == "dtype" else told[1]
            raise TypeError(f"{self.name}: {told[2]} must be {needed}, is {told[3]}") from None

    def _checked(self, arguments: tuple) -> tuple:
        arguments = self.complete(arguments, {})  # PyTorch leaves trailing ones out that equal their defaults
        self.check_all(arguments)
        return arguments

    def check_all(self, arguments: tuple) -> None:
        """Raise TypeError for a missing tensor, ValueError for a sparse one, and what `check` raises."""
        for index, value in enumerate(arguments):
            # PyTorch lets None pass as the undefined tensor of C++.
            if value is None and index in self._required:
                raise TypeError(f"{self.name}: {list(self.parameters)[index]} must be a tensor, is None")
            if isinstance(value, Tensor) and value.layout != torch.strided:
                name = list(self.parameters)[index]
                raise ValueError(f"{self.name}: {name} is {value.layout}: give it as {name}.to_dense()")
        self.check(*arguments)

    def _run(self, *arguments: Any) -> Any:
        arguments = self._checked(arguments)
        if arguments[0].is_cpu:
            self.check_values(*arguments)
        return self.backends[self.choose(*arguments)].run(*arguments)

    def _fake(self, *arguments: Any) -> Any:
        return self.outputs(*self._checked(arguments))

    def _differentiable(self, *arguments: Any) -> Any:
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            # Plain PyTorch operations: every transform knows them.
            return self.backends["reference"].run(*self._checked(arguments))
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments):
            return _WithGradient.apply(self, *self.complete(arguments, {}))
        with torch._C._AutoDispatchBelowAutograd():
            return self.overload(*arguments)

    def bind(self, *arguments: Any) -> BoundOp:
        """The op on the backend that is the choice for arguments like these: chosen once, for many calls."""
        return self.bound(self, self.choose(*self._checked(arguments)))


class _WithGradient(torch.autograd.Function):
    """An op's forward on any backend, and its one gradient."""

    @staticmethod
    def forward(ctx: Any, op: Op, *arguments: Any) -> Any:
        ctx.op = op
        ctx.set_materialize_grads(False)
        with torch._C._AutoDispatchBelowAutograd():
            outputs = op.overload(*arguments)
        if op.save is not None:
            op.save(ctx, arguments, outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        if ctx.op.gradient is None:
            raise NotImplementedError(f"ostrack_fast::{ctx.op.name} has no derivative: detach() its inputs")
        return None, *ctx.op.gradient(ctx, *grads)


class BoundOp:
    """An op on one backend: checks as always, without the choice at each call. It carries no gradient."""

    def __init__(self, op: Op, backend: str):
        self.op, self.backend = op, backend
        self._run = self.launcher(op.backends[backend].run)

    def launcher(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """What a call launches after its checks; ops that keep something between calls make another."""
        return run

    def __call__(self, *arguments: Any) -> Any:
        self.op.check_all(arguments)
        if arguments[0].is_cpu:
            self.op.check_values(*arguments)
        return self._run(*arguments)

    def __reduce__(self) -> tuple:
        return _bound, (self.op.name, self.backend)


def _bound(name: str, backend: str) -> BoundOp:
    return OPS[name].bound(OPS[name], backend)


class LayerOp(_Declaration):
    """A layer that is built once and called often: `build(*arguments)` chooses a backend and builds it there.

    Args:
        check: raises ValueError for arguments of the constructor that are wrong.
        backends: all of them; `run` builds.
        sizes, example: as for an op; `example` gives arguments of the constructor.
        inputs: `inputs(*arguments, batch=2)`, what a layer built with these arguments may be called with.
        kernel: its name in the C ABI, if that is another.
    """

    def __init__(
        self,
        name: str,
        *,
        check: Callable[..., None],
        backends: dict[str, Backend],
        sizes: Sizes,
        example: Callable[..., tuple],
        inputs: Callable[..., tuple],
        preferences: tuple[Preference, ...] = (),
        kernel: str | None = None,
    ):
        super().__init__(name, backends, preferences, sizes, example)
        self.check, self.inputs, self.kernel = check, inputs, kernel or name
        LAYERS[name] = self

    def build(self, *arguments: Any, **named: Any) -> Any:
        """The layer, on the backend that is the choice for these arguments."""
        arguments = self.complete(arguments, named)
        self.check(*arguments)
        return self.backends[self.choose(*arguments)].run(*arguments)


def declared(name: str) -> Op | LayerOp:
    """The op or the layer of this name."""
    return OPS[name] if name in OPS else LAYERS[name]


def report() -> list[tuple[str, str, str, list[tuple[str, str]]]]:
    """What runs here: rows (op or layer, device, chosen backend, [(backend not chosen, why), ...])."""
    devices = ["cpu"] + ([f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else [])
    rows = [*OPS.values(), *LAYERS.values()]
    return [row.report_row(torch.device(device)) for device in devices for row in rows]


_library = torch.library.Library("ostrack_fast", "DEF")

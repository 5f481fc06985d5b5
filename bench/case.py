"""What is compared: a case is one piece of work, its implementations are ways to do it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ostrack_fast import ops
from ostrack_fast.config import ModelConfig

# Largest error allowed, as a share of the largest value: this tells a wrong result from a rounded one. The tests hold
# how exact a kernel is. int8 rounds both factors of each matmul to 8 bits.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2, torch.int8: 5e-2}


class WrongResult(RuntimeError):
    """An implementation's result is not the expected one: its time would mean nothing."""


@dataclass(frozen=True)
class Options:
    """What to run. None takes the suite's own choice.

    Args:
        names: ops (or whatever else a suite names its cases by).
        quick: the smallest shapes only.
        only: implementations by name; the others are not built where building takes long.
        peers: time the networks in other packages too, see `peers`.
    """

    device: torch.device
    names: Sequence[str] | None = None
    batches: Sequence[int] | None = None
    dtypes: Sequence[torch.dtype] | None = None
    quick: bool = False
    only: Sequence[str] | None = None
    peers: bool = False

    @property
    def chosen_batches(self) -> Sequence[int]:
        """On a CPU larger ones would take minutes and tell little."""
        return self.batches or ((1,) if self.quick or self.device.type == "cpu" else (1, 8, 64))

    def wants(self, implementation: str, dtype: torch.dtype | None = None) -> bool:
        """Whether an implementation, by its name and compute dtype, takes part; upstream does in any dtype."""
        in_dtype = implementation == "upstream" or None in (dtype, self.dtypes) or dtype in (self.dtypes or ())
        return in_dtype and (self.only is None or implementation in self.only)


@dataclass(frozen=True)
class Implementation:
    """One way to do the work.

    Args:
        run: does it once and returns the result.
        tolerance: the error that this way of computing explains, see `TOLERANCE`.
        compute_dtype: of its matmuls' factors, where it is not the case's dtype.
        peak_bytes: its peak memory, or what measures it; None where nobody can tell.
    """

    run: Callable[[], Any]
    tolerance: float
    compute_dtype: torch.dtype | None = None
    peak_bytes: int | Callable[[], int | None] | None = None


# Functions that build an implementation, by its name, each with its compute dtype.
Makers = Mapping[str, tuple[Callable[[], Callable[[], Any]], torch.dtype]]


@dataclass
class Comparison:
    """Implementations by name, which of them cannot run and why, and the result in float64.

    With `mean_error` the mean error counts instead of the largest: in a whole network one rounding can change which
    candidate is kept, and then one cell of a map is another number altogether. `pause`: see `timing.interleave`.
    """

    expected: tuple[Tensor, ...]
    implementations: dict[str, Implementation]
    skipped: dict[str, str] = field(default_factory=dict)
    mean_error: bool = False
    pause: float = 0.0

    def check(self, name: str) -> list[float]:
        """Run an implementation once; returns the error of each result, as a share of its size.

        Raises:
            WrongResult: its result differs from the expected one by more than its tolerance.
        """
        implementation = self.implementations[name]
        result = as_tuple(implementation.run())
        if len(result) != len(self.expected):
            raise WrongResult(f"{name} returns {len(result)} tensors, expected are {len(self.expected)}")
        errors = []
        for index, (got, expected) in enumerate(zip(result, self.expected, strict=True)):
            if got.shape != expected.shape:
                raise WrongResult(f"{name}, result {index}: shape {tuple(got.shape)}, not {tuple(expected.shape)}")
            if not got.numel():
                continue
            error, size = (
                float(each.mean() if self.mean_error else each.max())
                for each in ((got.double() - expected.double()).abs(), expected.double().abs())
            )
            bound = implementation.tolerance * size if expected.is_floating_point() else 0.0
            if not error <= bound:  # so written, NaN is an error
                raise WrongResult(f"{name}, result {index}: wrong by {error:.3g}, allowed is {bound:.3g}")
            errors.append(error / size if size else error)
        return errors


@dataclass(frozen=True)
class Case:
    """One comparison.

    Args:
        shape: the sizes in words.
        flops: floating-point operations of the matmuls in one run, two a multiply-add; 0 where there are none.
        bytes: what one run must read and write at least, each byte once.
        build: makes inputs and implementations.
    """

    op: str
    shape: str
    batch: int
    dtype: torch.dtype
    device: torch.device
    flops: float
    bytes: float
    build: Callable[[], Comparison]

    def __str__(self) -> str:
        return f"{self.op}, {self.shape}, batch {self.batch}, {short_name(self.dtype)}"


class Setting(NamedTuple):
    """A network and how it runs: an op's shapes follow from it."""

    cfg: ModelConfig
    batch: int
    dtype: torch.dtype
    device: torch.device

    def case(
        self, op: str, shape: str, flops: float, moved: float, build: Callable[..., Comparison], *how: Any
    ) -> Case:
        """A case whose comparison is `build(*how)`."""
        return Case(op, shape, self.batch, self.dtype, self.device, flops, moved, partial(build, *how))

    def example(self, name: str, *numbers: Any) -> tuple:
        """Arguments of an op or layer as its file makes them, with values that this dtype holds exactly."""
        found = ops.declared(name).example(self.dtype, self.device, *numbers)
        return tuple(
            each.to(self.dtype).to(each.dtype) if isinstance(each, Tensor) and name in ops.LAYERS else each
            for each in found
        )


def short_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def in_float64(value: Any) -> Any:
    """An argument, or a tuple of arguments, with all floats and all dtypes made float64."""
    if isinstance(value, tuple):
        return tuple(map(in_float64, value))
    if isinstance(value, torch.dtype):
        return torch.float64
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def compare(
    name: str,
    arguments: tuple,
    dtype: torch.dtype,
    baselines: Mapping[str, Any],
    inputs: tuple = (),
    select: Callable[[Any], Any] = lambda result: result,
    slack: float = 0.0,
) -> Comparison:
    """An op's or a layer's baselines beside every backend: ops with checks and dispatch, as users call them.

    A layer's "torch" is its reference in this dtype, if `baselines` has none.

    Args:
        arguments: of the op, or of the layer's constructor.
        baselines: "upstream", and "torch", PyTorch's best.
        inputs: what the layer is called with.
        select: makes of a result what is compared, where implementations give more or otherwise than the others.
        slack: tolerance of PyTorch's best, where it computes less exactly than its dtype explains.
    """

    def selected(run: Callable[[], Any]) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: as_tuple(select(run()))

    def prepared(backend: str, given: Sequence[Any], called_with: Sequence[Any]) -> Callable[[], tuple[Tensor, ...]]:
        with ops.use(backend):
            layer = ops.LAYERS[name].build(*given) if inputs else None

        def run() -> Any:
            if layer is not None:
                return layer(*called_with)
            with ops.use(backend):
                return ops.OPS[name](*given)

        return selected(run)

    comparison = Comparison(prepared("reference", in_float64(arguments), in_float64(inputs))(), {})
    if inputs and baselines and "torch" not in baselines:
        baselines = {**baselines, "torch": prepared("reference", arguments, inputs)}
    for baseline, run in baselines.items():
        tolerance = max(TOLERANCE[dtype], slack if baseline == "torch" else 0.0)
        comparison.implementations[baseline] = Implementation(selected(run), tolerance)
    variants = {"native": dtype, "triton": dtype}
    if dtype == torch.bfloat16 and inputs and inputs[0].is_cpu and name != "cross_attention":
        variants["native int8"] = torch.int8  # takes and gives bfloat16
    for variant, compute_dtype in variants.items():
        backend = variant.split()[0]
        given = tuple(compute_dtype if isinstance(each, torch.dtype) else each for each in arguments)
        reason = ops.declared(name).unsupported_reason(backend, *given)
        if reason is None:
            run = prepared(backend, given, inputs)
            comparison.implementations[variant] = Implementation(run, TOLERANCE[compute_dtype], compute_dtype)
        else:
            comparison.skipped[variant] = reason
    return comparison


def as_tuple(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)

"""What is compared: a case is one piece of work, its implementations are ways to do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ostrack_fast import ops
from ostrack_fast.config import ModelConfig
from ostrack_fast.ops import reference

# Largest error allowed, as a share of the largest value: this tells a wrong result from a rounded one. The tests hold
# how exact a kernel is. int8 rounds both factors of each matmul to 8 bits.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2, torch.int8: 5e-2}
IMPLEMENTATIONS = ("upstream", "torch", "matmul alone", "native", "native int8", "triton")

# On a CPU the batches nobody chose stop here: more would take minutes and tell nothing new.
_MAX_CPU_FLOPS = 4e9
_MAX_CPU_BYTES = 64e6


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
        return self.batches or ((1,) if self.quick else (1, 8, 64))

    def wants(self, implementation: str) -> bool:
        return self.only is None or implementation in self.only


@dataclass(frozen=True)
class Implementation:
    """One way to do the work.

    Args:
        run: does it once and returns the result.
        tolerance: the error that this way of computing explains, see `TOLERANCE`.
        compute_dtype: of its matmuls' factors, where it is not the case's dtype.
    """

    run: Callable[[], Any]
    tolerance: float
    compute_dtype: torch.dtype | None = None


@dataclass
class Comparison:
    """Implementations by name, which of them cannot run and why, and the result in float64.

    With `mean_error` the mean error counts instead of the largest: in a whole network one rounding can change which
    candidate is kept, and then one cell of a map is another number altogether.
    """

    expected: tuple[Tensor, ...]
    implementations: dict[str, Implementation]
    skipped: dict[str, str] = field(default_factory=dict)
    mean_error: bool = False

    def check(self, name: str) -> list[float]:
        """Run an implementation once; returns the error of each result, as a share of its size.

        Raises:
            WrongResult: its result differs from the expected one by more than its tolerance.
        """
        implementation = self.implementations[name]
        result = implementation.run()
        result = result if isinstance(result, tuple) else (result,)
        if len(result) != len(self.expected):
            raise WrongResult(f"{name} returns {len(result)} tensors, expected are {len(self.expected)}")
        errors = []
        for index, (got, expected) in enumerate(zip(result, self.expected, strict=True)):
            if got.shape != expected.shape:
                raise WrongResult(f"{name}, result {index}: shape {tuple(got.shape)}, not {tuple(expected.shape)}")
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
        memory: peak bytes of an implementation, or None where nobody can tell.
    """

    op: str
    shape: str
    batch: int
    dtype: torch.dtype
    device: torch.device
    flops: float
    bytes: float
    build: Callable[[], Comparison]
    memory: Callable[[str], int | None] | None = None

    @property
    def too_long(self) -> bool:
        """Whether to leave it out unless its batch was asked for."""
        large = self.flops > _MAX_CPU_FLOPS or self.bytes > _MAX_CPU_BYTES
        return self.device.type == "cpu" and self.batch > 1 and large and self.op != "training"

    def __str__(self) -> str:
        return f"{self.op}, {self.shape}, batch {self.batch}, {short_name(self.dtype)}"


class Setting(NamedTuple):
    """A network and how it runs: an op's shapes follow from it."""

    cfg: ModelConfig
    batch: int
    dtype: torch.dtype
    device: torch.device

    def normal(self, *shape: int) -> Tensor:
        """Random float32 numbers on the device."""
        return torch.randn(*shape, device=self.device)

    def case(self, op: str, shape: str, flops: float, moved: float, build: Callable[[], Comparison]) -> Case:
        return Case(op, shape, self.batch, self.dtype, self.device, flops, moved, build)


def short_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


Baselines = tuple[Callable[[], Any], Callable[[], Any]]  # upstream, and PyTorch's best


def compare_op(
    op: str, arguments: dict[str, Any], dtype: torch.dtype, baselines: Baselines, results: int = 9, slack: float = 0.0
) -> Comparison:
    """An op's baselines beside every backend through the public function, as users call it.

    Args:
        results: compare that many of the results, where not every implementation gives all.
        slack: tolerance of PyTorch's best, where it computes less exactly than its dtype explains.
    """
    exact = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in arguments.items()}
    exact |= {"dtype": torch.float64} if "dtype" in arguments else {}

    def asked(run: Callable[[], Any], backend: str = "auto") -> tuple[Any, ...]:
        with ops.use(backend):
            result = run()
        return result[:results] if isinstance(result, tuple) else (result,)

    upstream, best = (partial(asked, run) for run in baselines)
    expected = asked(partial(getattr(reference, op), **exact))
    comparison = _beside_baselines(expected, dtype, (upstream, best), slack)
    for backend in ("native", "triton"):
        reason = ops.OPS[op].unsupported_reason(backend, **arguments)
        if reason is None:
            run = partial(asked, partial(getattr(ops, op), **arguments), backend)
            comparison.implementations[backend] = Implementation(run, TOLERANCE[dtype])
        else:
            comparison.skipped[backend] = reason
    return comparison


def compare_layer(
    op: str,
    weight: Tensor,
    dtype: torch.dtype,
    expected: tuple[Tensor, ...],
    baselines: Baselines,
    build: Callable[[torch.dtype], Callable[[], Any]],
) -> Comparison:
    """A layer's baselines beside every backend. `build(compute_dtype)` makes it in the backend in use, with inputs."""
    comparison = _beside_baselines(expected, dtype, baselines)
    variants = {"native": dtype, "triton": dtype}
    if dtype == torch.bfloat16 and weight.device.type == "cpu":
        variants["native int8"] = torch.int8  # takes and gives bfloat16
    for name, compute_dtype in variants.items():
        backend = name.split()[0]
        reason = ops.LAYERS[op].unsupported_reason(backend, weight=weight, dtype=compute_dtype)
        if reason is not None:
            comparison.skipped[name] = reason
            continue
        with ops.use(backend):
            run = build(compute_dtype)
        comparison.implementations[name] = Implementation(run, TOLERANCE[compute_dtype], compute_dtype)
    return comparison


def _beside_baselines(
    expected: tuple[Tensor, ...], dtype: torch.dtype, baselines: Baselines, slack: float = 0.0
) -> Comparison:
    upstream, best = baselines
    tolerance = TOLERANCE[dtype]
    made = {"upstream": Implementation(upstream, tolerance), "torch": Implementation(best, max(tolerance, slack))}
    return Comparison(expected, made)


def run_under_pytest(check_then_time: Callable[[], None]) -> None:
    """The test of every `bench_X.py`, which pytest calls for each case and implementation: see conftest.py."""
    check_then_time()

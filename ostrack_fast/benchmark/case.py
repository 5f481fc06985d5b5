"""What is compared: a case is one piece of work, its contenders are ways to do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Largest error allowed, as a share of the largest value: this tells a wrong result from a rounded one. How exact a
# kernel is, the tests hold.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}

# On a CPU the batches nobody chose stop here: more would take minutes and tell nothing new.
_MAX_CPU_FLOPS = 4e9
_MAX_CPU_BYTES = 64e6


class WrongResult(RuntimeError):
    """A contender's result is not the expected one: its time would mean nothing."""


@dataclass(frozen=True)
class Options:
    """What to run. None takes the suite's own choice.

    Args:
        names: ops (or whatever else a suite names its cases by).
        quick: the smallest shapes only.
    """

    device: torch.device
    names: Sequence[str] | None = None
    batches: Sequence[int] | None = None
    dtypes: Sequence[torch.dtype] | None = None
    quick: bool = False

    @property
    def chosen_batches(self) -> Sequence[int]:
        return self.batches or ((1,) if self.quick else (1, 8, 64))

    @property
    def chosen_dtypes(self) -> Sequence[torch.dtype]:
        return self.dtypes or (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    Args:
        run: does it once and returns the result.
        tolerance: the error that this way of computing explains, see `TOLERANCE`.
        products: dtype of the factors in its matrix products, where it is not the case's.
    """

    run: Callable[[], Any]
    tolerance: float
    products: torch.dtype | None = None


@dataclass
class Contest:
    """The contenders by name, who cannot take part and why, and the result in float64.

    With `typical` the mean error counts instead of the largest: of a whole network one rounding can change which
    candidate is kept, and then one place of a map is another number altogether.
    """

    expected: tuple[Tensor, ...]
    contenders: dict[str, Contender]
    skipped: dict[str, str] = field(default_factory=dict)
    typical: bool = False

    def check(self, name: str) -> None:
        """Run a contender once.

        Raises:
            WrongResult: its result differs from the expected one by more than its tolerance.
        """
        contender = self.contenders[name]
        result = contender.run()
        result = result if isinstance(result, tuple) else (result,)
        if len(result) != len(self.expected):
            raise WrongResult(f"{name} returns {len(result)} tensors, expected are {len(self.expected)}")
        for index, (got, expected) in enumerate(zip(result, self.expected, strict=True)):
            if got.shape != expected.shape:
                raise WrongResult(f"{name}, result {index}: shape {tuple(got.shape)}, not {tuple(expected.shape)}")
            error, size = (
                float(each.mean() if self.typical else each.max())
                for each in ((got.double() - expected.double()).abs(), expected.double().abs())
            )
            bound = contender.tolerance * size if expected.is_floating_point() else 0.0
            if not error <= bound:  # so written, NaN is an error
                raise WrongResult(f"{name}, result {index}: wrong by {error:.3g}, allowed is {bound:.3g}")


@dataclass(frozen=True)
class Case:
    """One comparison.

    Args:
        shape: the sizes in words.
        flops: floating-point operations of the matrix products; 0 where there are none.
        bytes: what must at least be read and written once.
        build: makes inputs and contenders.
        memory: peak bytes of a contender, or None where nobody can tell.
    """

    op: str
    shape: str
    batch: int
    dtype: torch.dtype
    device: torch.device
    flops: float
    bytes: float
    build: Callable[[], Contest]
    memory: Callable[[str], int | None] | None = None

    @property
    def too_long(self) -> bool:
        """Whether to leave it out unless its batch was asked for."""
        large = self.flops > _MAX_CPU_FLOPS or self.bytes > _MAX_CPU_BYTES
        return self.device.type == "cpu" and self.batch > 1 and large

    def __str__(self) -> str:
        return f"{self.op}, {self.shape}, batch {self.batch}, {str(self.dtype).removeprefix('torch.')}"

"""pytest-benchmark over the cases of `ostrack-fast bench ops`: a test for every implementation of every case."""

from __future__ import annotations

import pytest
import torch

from .case import IMPLEMENTATIONS, Options
from .suite_ops import cases

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    op = metafunc.module.__name__.rpartition("bench_")[2]
    chosen = [(case, name) for case in cases(Options(DEVICE, names=[op])) for name in IMPLEMENTATIONS]
    metafunc.parametrize(("case", "implementation"), chosen, ids=str)

"""pytest-benchmark over the cases of `ostrack-fast bench ops`: a test for every implementation of every case."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from ostrack_fast.timing import clock

from .case import Case, Options
from .suite_ops import cases

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IMPLEMENTATIONS = ("upstream", "torch", "matmul alone", "native", "native int8", "triton")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    """Give every `bench_X.py` its test."""
    module: pytest.Module = pytest.Module.from_parent(parent, path=module_path)
    setattr(module.obj, module_path.stem.replace("bench_", "test_"), check_then_time)
    return module


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    op = metafunc.module.__name__.rpartition("bench_")[2]
    chosen = [(case, name) for case in cases(Options(DEVICE, names=[op])) for name in IMPLEMENTATIONS]
    metafunc.parametrize(("case", "implementation"), chosen, ids=str)


def check_then_time(benchmark: Any, case: Case, implementation: str) -> None:
    """Compare the implementation's result with the expected one, then time it; medians are what to read."""
    torch.manual_seed(0)
    with torch.inference_mode():
        comparison = case.build()
        if implementation not in comparison.implementations:
            pytest.skip(comparison.skipped.get(implementation, "does not take part in this case"))
        comparison.check(implementation)
        run, timer = comparison.implementations[implementation].run, clock(DEVICE)

        def timed() -> None:
            run()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()

        amount, _ = timer.prepare(run)
        # On a GPU the time of the wall is that of launching; this is the device's, its cache flushed.
        benchmark.extra_info["clock_seconds"] = median(timer.sample(run, amount) for _ in range(15))
        benchmark.group = str(case)
        benchmark.pedantic(timed, rounds=15, iterations=amount if DEVICE.type == "cpu" else 1, warmup_rounds=2)

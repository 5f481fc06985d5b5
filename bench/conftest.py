"""pytest-benchmark over the cases of `ostrack-fast bench ops`: a test for every implementation of every case."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import pytest
import torch

from .case import IMPLEMENTATIONS, Case, Options
from .suite_ops import cases
from .timing import clock

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_generate_tests(metafunc):
    op = metafunc.module.__name__.rpartition("bench_")[2]
    planned = [case for case in cases(Options(DEVICE, names=[op])) if not case.too_long]
    chosen = [(case, name) for case in planned for name in IMPLEMENTATIONS]
    metafunc.parametrize(("case", "implementation"), chosen, ids=str)


@pytest.fixture
def check_then_time(benchmark, case: Case, implementation: str) -> Callable[[], None]:
    """Compare the implementation's result with the expected one, then time it; medians are what to read."""

    def measure() -> None:
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

    return measure

"""pytest-benchmark over the cases of `ostrack-fast bench`: a test for every contender of every case of a file's op."""

from __future__ import annotations

from statistics import median

import pytest
import torch

from ostrack_fast.benchmark.case import Case, Options
from ostrack_fast.benchmark.measure import clock
from ostrack_fast.benchmark.ops import CONTENDERS, cases

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_generate_tests(metafunc):
    op = metafunc.module.__name__.removeprefix("bench_")
    planned = [case for case in cases(Options(DEVICE, names=[op])) if not case.too_long]
    metafunc.parametrize(("case", "contender"), [(case, name) for case in planned for name in CONTENDERS], ids=str)


@pytest.fixture
def check_then_time(benchmark):
    """Compare the contender's result with the expected one, then time it; medians are what to read."""
    timer = clock(DEVICE)

    def measure(case: Case, contender: str) -> None:
        torch.manual_seed(0)
        with torch.inference_mode():
            contest = case.build()
            if contender in contest.skipped:
                pytest.skip(contest.skipped[contender])
            if contender not in contest.contenders:
                pytest.skip("does not take part in this case")
            contest.check(contender)
            run = contest.contenders[contender].run

            def timed() -> None:
                run()
                if DEVICE.type == "cuda":
                    torch.cuda.synchronize()

            amount, _ = timer.prepare(run)
            samples = [timer.sample(run, amount) for _ in range(15)]
            # On a GPU the time of the wall is that of launching; this is the device's, its cache flushed.
            benchmark.extra_info["clock_seconds"] = median(samples)
            benchmark.group = str(case)
            benchmark.pedantic(timed, rounds=15, iterations=amount if DEVICE.type == "cpu" else 1, warmup_rounds=2)

    return measure

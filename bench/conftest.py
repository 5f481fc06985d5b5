"""Who competes: the published formulation, the plain PyTorch reference, and the compiled and Triton kernels."""

from __future__ import annotations

import importlib

import published
import pytest
import torch

from ostrack_fast import ops


def pytest_make_parametrize_id(val):
    return str(val).removeprefix("torch.") if isinstance(val, torch.dtype) else None


@pytest.fixture(params=["published", "reference", "native", "triton"])
def contender(request):
    """`contender(op)` is the function of that op, which waits for the device before it returns."""
    name = request.param
    if name == "triton" and not torch.cuda.is_available():
        pytest.skip("the Triton kernels need a CUDA device")

    def find(op):
        function = getattr(published, op) if name == "published" else getattr(ops, op)

        def run(*arguments):
            with torch.inference_mode():
                if name == "published":
                    return function(*arguments)
                with ops.use(name):
                    return function(*arguments)

        return run

    return find


@pytest.fixture
def check_then_time(benchmark, contender):
    """Compare the result with the reference's, then time the op; medians are what to read."""
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def measure(op, *arguments, tolerance=2e-2):
        arguments = [a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments]
        run = contender(op)
        with torch.inference_mode():
            expected = getattr(importlib.import_module("ostrack_fast.ops.reference"), op)(*arguments)
        torch.testing.assert_close(run(*arguments), expected, rtol=tolerance, atol=tolerance, check_dtype=False)

        def timed():
            run(*arguments)
            if device == "cuda":
                torch.cuda.synchronize()

        benchmark.group = f"{op} {' '.join(_describe(a) for a in arguments)} on {device}"
        benchmark.pedantic(timed, rounds=30, iterations=3, warmup_rounds=5)

    return measure


def _describe(value):
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return str(value)

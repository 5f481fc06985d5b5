"""Every CUDA kernel, emulated, with the examples of its op's own file, called by the op's own code."""

from __future__ import annotations

import pytest
import torch

from ostrack_fast.bench.case import in_float64
from ostrack_fast.ops import native
from tests.op_calls import calls_go_to, cuda_ops, examples


def tensors(result) -> tuple:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("dtype", native.FLOATS, ids=str)
@pytest.mark.parametrize("op", cuda_ops(), ids=lambda op: op.name)
def test_examples(kernels, op, dtype):
    """Indices exactly; values at most twice as wrong as the reference in the same dtype."""

    def emulate(kernel, *arguments):
        kernels.call(f"ostf_cuda_{kernel}", *arguments, None)

    found = []
    with calls_go_to(emulate, cuda=True):
        for arguments in examples(op, "edge", dtype):
            # Large ones take long and show no more.
            if arguments[0].numel() < 70_000:
                found.append((arguments, tensors(op.backends["native"].run(*arguments))))
    assert len(found) > 1
    for arguments, ours in found:
        plain, exact = (tensors(op.reference(*given)) for given in (arguments, in_float64(arguments)))
        for one, other, right in zip(ours, plain, exact, strict=True):
            assert one.shape == right.shape and one.dtype == other.dtype
            if not one.is_floating_point():
                assert torch.equal(one, right)
            elif right.numel():
                error, allowed = ((each.double() - right).abs().max() for each in (one, other))
                assert error <= 2 * allowed + torch.finfo(one.dtype).eps * right.abs().max(), arguments[1:]

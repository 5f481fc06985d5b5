"""The ops' own examples as calls of the C ABI: for the emulated CUDA kernels and for sanitizers."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from ostrack_fast import ops
from ostrack_fast.ops import native
from tests.emulation.c_abi import FOR_CPUS

CPU = torch.device("cpu")


def as_numpy(tensor):
    """The same memory; bfloat16 as uint16."""
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


@contextmanager
def calls_go_to(function, cuda=False):
    """`function(kernel, *arguments)` takes the calls of compiled kernels, with numpy arrays of the tensors' memory.

    With `cuda` the ops take tensors on the CPU for such of a GPU. Memory without a value holds NaN or large numbers.
    """

    def call(kernel, device, *arguments):
        function(kernel, *(as_numpy(each) if isinstance(each, torch.Tensor) else each for each in arguments))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "call", call)
        if cuda:
            patch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True), raising=False)
            patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
        before = torch.get_deterministic_debug_mode()
        torch.set_deterministic_debug_mode("error")  # which fills uninitialized memory
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(before)


def examples(op, size, dtype):
    """The op's examples that its compiled kernel can run, inside of `calls_go_to`."""
    for arguments in op.samples(size, dtype, CPU):
        if op.backends["native"].unless(*arguments) is None:
            yield arguments


def compiled_ops():
    return [op for op in ops.OPS.values() if "native" in op.backends]


def cuda_ops():
    """Those of them whose compiled kernels run on a GPU too."""
    return [op for op in compiled_ops() if op.name not in FOR_CPUS]


def save_calls(folder, cuda=False, most=1 << 62):
    """Write the CPU kernels' calls with all ops' edge examples to a folder, for saved_calls.py to read.

    With `cuda` those of the CUDA kernels; examples whose first tensor has more than `most` elements are left out.
    """
    arrays, saved = {}, []

    def keep(kernel, *arguments):
        converted = []
        for value in arguments:
            if isinstance(value, np.ndarray):
                key = str(len(arrays))
                # A file keeps the numbers, not the strides: channels that lie last are kept so.
                order = np.argsort([-stride for stride in value.strides], kind="stable")
                arrays[key] = np.ascontiguousarray(value.transpose(order))
                value = [key, np.argsort(order).tolist()]
            converted.append(value)
        saved.append((kernel, converted))

    with calls_go_to(keep, cuda):
        for op in cuda_ops() if cuda else compiled_ops():
            for dtype in native.FLOATS:
                for arguments in examples(op, "edge", dtype):
                    if arguments[0].numel() <= most:
                        op.backends["native"].run(*arguments)
    np.savez(folder / "arrays.npz", **arrays)
    (folder / "calls.json").write_text(json.dumps(saved))

"""What a frame launches on a GPU, recorded with no GPU: every Triton kernel, and every PyTorch operation that runs one.

Tensors are fake CUDA tensors, without values, so that the whole network of a published model takes seconds and the code
goes the way it goes on a GPU. Where the compiled CUDA kernels are installed they stand in for some Triton kernels, one
for one.
"""

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ostrack_fast import engine, kernels
from ostrack_fast.config import get_config
from ostrack_fast.engine import Engine
from ostrack_fast.kernels import dependent_launch, tiles
from ostrack_fast.model import OSTrack

# They make or describe memory and leave its contents alone.
_NO_LAUNCH = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view"}


class _Operations(TorchDispatchMode):
    """Appends the name of every PyTorch operation that computes, copies or fills."""

    def __init__(self, launched: list[str]):
        super().__init__()
        self.launched = launched

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        library, _, name = func.name().partition("::")
        name = name.partition(".")[0]
        is_view = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
        if library != "prim" and name not in _NO_LAUNCH and not is_view:
            self.launched.append(name)
        return func(*args, **(kwargs or {}))


def _forget_devices() -> None:
    for cached in (kernels.unsupported_reason, tiles._device_facts, dependent_launch._is_able):
        cached.cache_clear()


@contextlib.contextmanager
def absent_hopper(monkeypatch: pytest.MonkeyPatch, launched: list[str]) -> Iterator[None]:
    """Inside, fake CUDA tensors live on an H100 whose kernels are not run but appended to `launched` by name.

    " early" follows the name of a kernel that programmatic dependent launch lets begin before the one before it ends.
    """

    def subscript(self: Any, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            launched.append(self.fn.__name__ + (" early" if options.get("launch_pdl") else ""))

        return launch

    facts = types.SimpleNamespace(major=9, minor=0, multi_processor_count=132)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "device_of", contextlib.nullcontext)
        patch.setattr(torch.cuda, "device", contextlib.nullcontext)
        patch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
        patch.setattr(torch.cuda, "get_device_properties", lambda *_: facts)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        patch.setattr(triton.KernelInterface, "__getitem__", subscript)
        patch.setattr(engine, "resolve_device", torch.device)
        patch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, **_: tensor)  # it looks at values
        _forget_devices()
        with FakeTensorMode(), _Operations(launched):
            yield
    _forget_devices()


def of_a_frame(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """The kernels of one target's frame in float16, in order, as its CUDA graph holds them."""
    launched: list[str] = []
    with absent_hopper(monkeypatch, launched), torch.no_grad():
        tracker = Engine(OSTrack(get_config(name)), "cuda:0", torch.float16)
        frame = torch.empty(1080, 1920, 3, dtype=torch.uint8, device="cuda:0")
        targets = tracker._targets.rows(slice(1))
        tracker._locator(targets, frame)  # allocates what a graph finds there
        launched.clear()
        tracker._locator(targets, frame)
    return launched

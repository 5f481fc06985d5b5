"""A training step as a CUDA graph: the host enqueues a thousand kernels by one call."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Tensor]


class StepGraph:
    """Runs `step(batch)` on a GPU, which returns a tensor there and does not wait for it, as a CUDA graph.

    The first step of a key runs as it is: it compiles and loads kernels, which a capture must not. The second is
    captured, and from then on replayed with the batches' values copied to where the captured one lay. Weights, moments
    and gradients keep their addresses as long as that graph is in use. The first step runs in the capture's stream:
    autograd adds a weight's gradient in the stream that saw the weight first, and a capture can wait for no other.

    Args:
        step: what is captured; the same work for the same key, whatever the values.
    """

    def __init__(self, step: Callable[[Batch], Tensor], device: torch.device) -> None:
        self._step, self._device = step, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.forget()

    def forget(self) -> None:
        """Run the next step as it is: what the graph works on lies elsewhere now."""
        self._key: Hashable = None
        self._inputs: Batch = {}
        self._result: Tensor | None = None
        self._graph: Any = None

    def __call__(self, batch: Batch, key: Hashable) -> Tensor:
        """The step's result, which the next call overwrites; `key` tells steps of different sizes apart."""
        key = (key, *((name, tuple(value.shape), value.dtype) for name, value in batch.items()))
        if key != self._key:
            self.forget()
            self._key = key
            return self._run(batch)
        if self._result is None:
            self._inputs = {name: value.to(self._device, copy=True) for name, value in batch.items()}
            self._capture()
        else:
            for name, value in batch.items():
                self._inputs[name].copy_(value, non_blocking=True)
        self._replay()
        assert self._result is not None
        return self._result

    def _capture(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile: the loader's pins memory.
        graph = torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local")
        with torch.cuda.device(self._device), graph:
            self._result = self._step(self._inputs)

    def _run(self, batch: Batch) -> Tensor:
        if self._stream is None:
            return self._step(batch)
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = self._step(batch)
        current.wait_stream(self._stream)
        return result

    def _replay(self) -> None:
        with torch.cuda.device(self._device):
            self._graph.replay()


def set_rate(group: dict[str, Any], rate: float, device: torch.device) -> None:
    """Set the learning rate of an optimizer's group where a graph reads it: in one tensor on its device."""
    # Devices are compared by kind: "cuda" is not equal to the "cuda:0" of a tensor there, and a graph that was captured
    # would go on reading the memory of the tensor before.
    if not isinstance(group["lr"], Tensor) or group["lr"].device.type != device.type:
        group["lr"] = torch.zeros((), dtype=torch.float32, device=device)
    group["lr"].fill_(rate)
    group["capturable"] = device.type == "cuda"

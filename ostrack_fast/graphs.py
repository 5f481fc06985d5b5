"""A function of one tensor as a CUDA graph: replayed without the host's cost of its launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class GraphedFunction:
    """A function of one tensor as a CUDA graph. Its outputs are overwritten by the next call.

    Where the tensor lies on the host, a call may name the part that the function reads; the rest keeps older values.
    """

    def __init__(self, function: Callable[[Tensor], Any], like: Tensor, device: torch.device):
        self._device = device
        # Pageable memory would make the upload wait for the GPU and the GPU for the upload.
        self._pinned = (
            torch.zeros(like.numel(), dtype=like.dtype, device="cpu", pin_memory=True) if not like.is_cuda else None
        )
        self._input = torch.zeros(like.shape, dtype=like.dtype, device=device)
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                # The first calls compile kernels and allocate library workspaces, which a capture does not allow.
                for _ in range(2):
                    function(self._input)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            # A stream of this device: PyTorch's default capture stream lies on the device that captured first.
            # thread_local, because other threads may use the GPU during the capture.
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self._output = function(self._input)

    def __call__(self, value: Tensor, part: tuple[slice, ...] = ()) -> Any:
        with torch.cuda.device(self._device):
            if self._pinned is None:
                self._input.copy_(value, non_blocking=True)
            else:
                # The caller has read the last frame's result, so the upload from this memory is over.
                value = value[part]
                staged = self._pinned[: value.numel()].view(value.shape)
                staged.copy_(value)
                self._input[part].copy_(staged, non_blocking=True)
        return self.replay()

    def replay(self) -> Any:
        """The function once more of what the last call was given."""
        with torch.cuda.device(self._device):
            self._graph.replay()
        return self._output

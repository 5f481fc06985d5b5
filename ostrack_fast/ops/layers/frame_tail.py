"""The end of a frame as one kernel, where there is one: elsewhere the ops do it one after the other."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..decode import decode_op
from ..registry import forced_backend, triton_kernels


class FrameTail(Protocol):
    """See `frame_tail`."""

    def __call__(
        self,
        features: Tensor,
        box: Tensor,
        frame_size: tuple[int, int],
        factor: float,
        margin: float,
        smoothing: tuple[float, float, float] | None = None,
    ) -> Tensor: ...


def frame_tail(weight: Tensor, bias: Tensor, window: Tensor) -> FrameTail | None:
    """The head's last 1 x 1 convolutions, sigmoid, clamp, `ops.decode` and the move of the boxes, as one kernel.

    Args:
        weight: (5,C) float32: score, offset x and y, width, height, each over the C channels of its own tower.
        bias: (5,) float32. window: (F,F) float32.

    Returns:
        A function of features (B,F,F,3C), box (B,4) float64 xywh in pixels, (h,w) of the frame, factor of the crop,
        margin, and penalty, influence and keep of `Smoothing`, if any. It returns (B,5) float64: the new boxes and
        their scores. None where Triton's kernels cannot run, or another backend is asked for.
    """
    maps = [window.new_empty(1, planes, *window.shape) for planes in (1, 2, 2)]
    if forced_backend() not in (None, "triton") or decode_op.unsupported_reason("triton", *maps, window):
        return None
    return triton_kernels().FrameTail(weight, bias, window)

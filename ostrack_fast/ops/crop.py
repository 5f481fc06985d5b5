"""The square crop around a box, bit-exact with the upstream code."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt

import cv2
import numpy as np
import torch
from torch import Tensor

from ..boxes import crop_window
from . import native
from .registry import Backend, Op, triton_kernel, triton_kernels
from .tensors import Seeded, check_one_device, describe

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)

_LARGEST = 2.0**28  # pixels: kernels compute positions in 32-bit integers
_MAX_CROP = 16384
_MEAN = torch.tensor(IMAGE_MEAN, dtype=torch.float32, device="cpu")
_INVERSE_STD = torch.tensor([1 / value for value in IMAGE_STD], dtype=torch.float32, device="cpu")


def _check(frame: Tensor, box: Tensor, factor: float, size: int, dtype: torch.dtype) -> None:
    if frame.dim() != 3 or frame.shape[2] != 3 or frame.dtype != torch.uint8 or 0 in frame.shape:
        raise ValueError(f"frame must be uint8 (h,w,3) and not empty, got {describe(frame)}")
    if box.dim() != 2 or box.shape[1] != 4 or box.dtype != torch.float64:
        raise ValueError(f"box must be float64 (B,4), got {describe(box)}")
    if not 0 < factor < inf or not size > 0:
        raise ValueError(f"factor={factor} and size={size} must be positive")
    if not dtype.is_floating_point:
        raise ValueError(f"the dtype of normalized patches must be a float one, got {dtype}")
    check_one_device(frame=frame, box=box)


def _check_values(frame: Tensor, box: Tensor, factor: float, size: int, dtype: torch.dtype) -> None:
    for x, y, w, h in box.tolist():
        # Comparisons with NaN are false, so that it does not pass.
        inside = -_LARGEST <= x <= _LARGEST and -_LARGEST <= y <= _LARGEST
        if not (inside and 0 < w <= _LARGEST and 0 < h <= _LARGEST and 0 < sqrt(w * h) * factor <= _LARGEST):
            raise ValueError(
                f"each box must be finite, with positive width and height and a crop of at most 2**28 pixels "
                f"at factor={factor}, got {[x, y, w, h]}"
            )


def _outputs(frame: Tensor, box: Tensor, factor: float, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    batch = box.shape[0]
    return frame.new_empty(batch, 3, size, size, dtype=dtype), box.new_empty(batch)


def reference(
    frame: Tensor, box: Tensor, factor: float, size: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Square crops around boxes, resized and normalized; see `ostrack_fast.ops.crop`."""
    image = frame.cpu().numpy()
    windows = [crop_window(one, factor) for one in box.tolist()]
    pixels = np.empty((len(windows), size, size, 3), np.uint8)
    for target, window in zip(pixels, windows, strict=True):
        target[:] = crop_pixels(image, *window, size)
    patch = torch.from_numpy(pixels).to(frame.device).permute(0, 3, 1, 2).to(torch.float32).div(255)
    mean, std = (patch.new_tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    scale = torch.tensor([size / side for *_, side in windows], dtype=torch.float64, device=frame.device)
    return patch.sub(mean).div(std).to(dtype).contiguous(), scale


def crop_pixels(image: np.ndarray, left: int, top: int, side: int, size: int) -> np.ndarray:
    """The uint8 crop (size,size,3) before normalization: zero border, then OpenCV's bilinear resize.

    The frame's last column and row count as border, as in upstream's `sample_target`.
    """
    height, width = image.shape[:2]
    window = np.zeros((side, side, 3), np.uint8)
    x1, x2 = max(left, 0), min(left + side, width - 1)
    y1, y2 = max(top, 0), min(top + side, height - 1)
    if x1 < x2 and y1 < y2:
        window[y1 - top : y2 - top, x1 - left : x2 - left] = image[y1:y2, x1:x2]
    return cv2.resize(window, (size, size))


def _native(
    frame: Tensor, box: Tensor, factor: float, size: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    patch, scale = _outputs(frame, box, factor, size, dtype)
    inputs = map(native.dense, (frame, box))
    native.call("crop", frame.device, *inputs, _MEAN, _INVERSE_STD, patch, scale, factor)
    return patch, scale


def _native_unless(
    frame: Tensor, box: Tensor, factor: float, size: int, dtype: torch.dtype = torch.float32
) -> str | None:
    return native.float_reason(dtype) if size <= _MAX_CROP else f"crop side of at most {_MAX_CROP}, is {size}"


def _triton(
    frame: Tensor, box: Tensor, factor: float, size: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    return triton_kernel("crop")(frame, box, factor, size, dtype, IMAGE_MEAN, IMAGE_STD)


def _triton_unless(
    frame: Tensor, box: Tensor, factor: float, size: int, dtype: torch.dtype = torch.float32
) -> str | None:
    kernels = triton_kernels()
    return kernels.dtype_reason(dtype) or kernels.range_reason("batch", box.shape[0], kernels.MAX_BATCH)


# Inside a frame of 53 x 37 pixels, over each edge, far outside, larger than the frame, and smaller than a pixel.
_BOXES = (
    (50.0, 40.0, 30.0, 20.0), (-8.0, -6.0, 20.0, 20.0), (35.0, 30.0, 30.0, 30.0), (900.0, 900.0, 5.0, 5.0),
    (-400.0, -300.0, 900.0, 800.0), (8.3, 6.7, 0.4, 0.3),
)  # fmt: skip


def _example(
    dtype: torch.dtype,
    device: torch.device,
    frame_size: tuple[int, int],
    boxes: Sequence[Sequence[float]],
    factor: float,
    side: int,
) -> tuple:
    box = torch.tensor(boxes, dtype=torch.float64, device=device)
    return Seeded(0, device).bytes(*frame_size, 3), box, factor, side, dtype


crop_op = Op(
    "crop(Tensor frame, Tensor box, float factor, SymInt size, ScalarType dtype) -> (Tensor patch, Tensor scale)",
    check=_check,
    check_values=_check_values,
    outputs=_outputs,
    reference=reference,
    backends={"native": Backend(_native, _native_unless), "triton": Backend(_triton, _triton_unless)},
    sizes={
        "small": [((10, 12), _BOXES[1:2], 2.0, 6)],
        "typical": [((480, 640), _BOXES[:1], 4.0, 256)],
        "edge": [((37, 53), _BOXES, factor, side) for factor in (0.3, 2.0, 4.0) for side in (1, 16, 47)],
    },
    example=_example,
)


def crop(
    frame: Tensor, box: Tensor, factor: float, size: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Square crops of side ceil(sqrt(w*h)*factor) around boxes, resized and ImageNet-normalized.

    Bit-exact with upstream's crop: zero border, which includes the frame's last row and column, and OpenCV's
    bilinear resize on uint8.

    Args:
        frame: (h,w,3) uint8 RGB. box: (B,4) float64 xywh, pixels. size: Z. dtype: of the patches.

    Returns:
        patch (B,3,Z,Z), and scale (B,) float64: crop pixels per frame pixel. No gradient.

    Raises:
        ValueError: also for a box that is not finite, has no area or reaches beyond 2**28 pixels, on the CPU; on a
            GPU the patch of such a box is border.
    """
    return crop_op(frame, box, factor, size, dtype)

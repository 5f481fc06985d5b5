"""Boxes: conversions, overlap, and the way between image and crop coordinates.

Functions on tensors take (..., 4) and keep dtype and device. Those on plain floats are the published tracker's own,
whose results the op `update_box` is compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt

import torch
from torch import Tensor


def xywh_to_xyxy(box: Tensor) -> Tensor:
    """(left, top, width, height) -> (left, top, right, bottom)."""
    return torch.cat((box[..., :2], box[..., :2] + box[..., 2:]), dim=-1)


def cxcywh_to_xyxy(box: Tensor) -> Tensor:
    """(centre x, centre y, width, height) -> (left, top, right, bottom)."""
    return torch.cat((box[..., :2] - 0.5 * box[..., 2:], box[..., :2] + 0.5 * box[..., 2:]), dim=-1)


def paired_iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union, and generalized IoU, of boxes a[i] and b[i], both (..., 4) xyxy.

    Returns two (...,) tensors. Degenerate boxes give 0 rather than NaN. Source: GIoU, Rezatofighi et al. 2019.
    """
    inner = _area((torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0))
    union = _area(a[..., 2:] - a[..., :2]) + _area(b[..., 2:] - b[..., :2]) - inner
    hull = _area((torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0))
    tiny = torch.finfo(a.dtype).tiny
    iou = inner / union.clamp(min=tiny)
    return iou, iou - (hull - union) / hull.clamp(min=tiny)


def _area(extent: Tensor) -> Tensor:
    # Not prod: its gradient looks on the host for zeros, so a training step on a GPU would wait there.
    return extent[..., 0] * extent[..., 1]


def crop_window(box: Sequence[float], factor: float) -> tuple[int, int, int]:
    """Left, top and side, in pixels, of the square crop around an xywh box (published `sample_target`)."""
    x, y, w, h = box
    side = ceil(sqrt(w * h) * factor)
    return round(x + 0.5 * w - side * 0.5), round(y + 0.5 * h - side * 0.5), side


def image_to_crop(box: Tensor, around: Tensor, scale: Tensor, size: int) -> Tensor:
    """Image xywh boxes in a crop made around the boxes `around`, as xywh in units of the crop.

    Args:
        box, around: (..., 4) xywh in pixels of the image.
        scale: (...) crop pixels per image pixel.
        size: side of the crop, pixels.

    Source: published `transform_image_to_crop`, whose crop centre is (size - 1) / 2.
    """
    centre = (box[..., :2] + 0.5 * box[..., 2:]) - (around[..., :2] + 0.5 * around[..., 2:])
    centre = (size - 1) / 2 + centre * scale[..., None]
    extent = box[..., 2:] * scale[..., None]
    return torch.cat((centre - 0.5 * extent, extent), dim=-1) / size


def clip_xywh(box: Sequence[float], height: int, width: int, margin: float = 0) -> tuple[float, float, float, float]:
    """Keep at least `margin` pixels of the box inside the frame, and its sides at least `margin` long.

    Source: published `clip_box`.
    """
    x, y, w, h = box
    x1, x2 = min(max(0.0, x), width - margin), min(max(float(margin), x + w), float(width))
    y1, y2 = min(max(0.0, y), height - margin), min(max(float(margin), y + h), float(height))
    return x1, y1, max(float(margin), x2 - x1), max(float(margin), y2 - y1)

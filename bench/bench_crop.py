"""crop: square windows of two frames, the second of which hangs over the frame's edge."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import cv2
import torch
from torch import Tensor

from ostrack_fast.boxes import crop_window
from ostrack_fast.ops.reference import IMAGE_MEAN, IMAGE_STD

from .case import Case, Comparison, Setting, compare

# Frame size and target.
_TARGETS = (((480, 854), (400.0, 220.0, 80.0, 50.0)), ((1080, 1920), (5.0, 5.0, 300.0, 200.0)))
# PyTorch rounds otherwise than OpenCV: one gray level, as a share of the brightest value.
_GRAY_LEVEL = 0.01


def upstream(frame: Tensor, boxes: list[list[float]], factor: float, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Slice, border, resize, to a float tensor, normalize; one box after the other, then to the device of `like`."""
    image = frame.numpy()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    patches, scales = [], []
    for box in boxes:
        left, top, side = crop_window(box, factor)
        right, bottom = left + side, top + side
        above, below = max(0, -top), max(bottom - image.shape[0] + 1, 0)
        before, after = max(0, -left), max(right - image.shape[1] + 1, 0)
        inner = image[top + above : bottom - below, left + before : right - after]
        padded = cv2.copyMakeBorder(inner, above, below, before, after, cv2.BORDER_CONSTANT)
        resized = cv2.resize(padded, (size, size))
        patches.append(((torch.from_numpy(resized).float().permute(2, 0, 1).unsqueeze(0) / 255.0) - mean) / std)
        scales.append(size / side)
    return torch.cat(patches).to(like), torch.tensor(scales, dtype=torch.float64, device=like.device)


def torch_best(
    frame: Tensor, windows: list[tuple[int, int, int]], size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Slice or zero border, `interpolate` (on bytes where PyTorch can), normalize in place."""
    height, width = frame.shape[:2]
    patch = torch.empty(len(windows), 3, size, size, device=frame.device)
    for one, (left, top, side) in zip(patch, windows, strict=True):
        x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + side, width - 1), min(top + side, height - 1)
        inner = frame[y1:y2, x1:x2]
        if side > min(x2 - x1, y2 - y1):
            # Channels stay last, as `interpolate` likes them; `pad` would reorder them.
            inner = frame.new_zeros(side, side, 3)
            inner[y1 - top : y2 - top, x1 - left : x2 - left] = frame[y1:y2, x1:x2]
        inner = inner.permute(2, 0, 1).unsqueeze(0)
        inner = inner.float() if frame.is_cuda else inner
        one.copy_(torch.nn.functional.interpolate(inner, (size, size), mode="bilinear", align_corners=False)[0])
    mean, std = (patch.new_tensor(values).view(3, 1, 1) * 255 for values in (IMAGE_MEAN, IMAGE_STD))
    scale = torch.tensor([size / side for *_, side in windows], dtype=torch.float64, device=frame.device)
    return patch.sub_(mean).div_(std).to(dtype), scale


def cases(at: Setting) -> Iterator[Case]:
    size, factor = at.cfg.search_size, at.cfg.search_factor

    def build(frame_size: tuple[int, int], boxes: list[list[float]], windows: list[tuple[int, int, int]]) -> Comparison:
        arguments = at.example("crop", frame_size, boxes, factor, size)
        here, like = arguments[0], torch.empty(0, dtype=at.dtype, device=at.device)
        baselines = {
            "upstream": partial(upstream, here.cpu(), boxes, factor, size, like),
            "torch": partial(torch_best, here, windows, size, at.dtype),
        }
        return compare("crop", arguments, at.dtype, baselines, slack=_GRAY_LEVEL)

    for (height, width), (x, y, *extent) in _TARGETS:
        # A few pixels from one target to the next: a batch is many targets of one frame.
        boxes = [[x + 7 * i, y + 3 * i, *extent] for i in range(at.batch)]
        windows = [crop_window(box, factor) for box in boxes]
        # Each pixel of the window that lies in the frame is read once.
        inside = [
            max(0, min(left + side, width) - max(left, 0)) * max(0, min(top + side, height) - max(top, 0))
            for left, top, side in windows
        ]
        moved = 3.0 * sum(inside) + 3.0 * at.batch * size**2 * at.dtype.itemsize
        shape = f"{windows[0][2]} of {width} x {height} to {size} pixels"
        yield at.case("crop", shape, 0.0, moved, build, (height, width), boxes, windows)

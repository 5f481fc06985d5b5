"""What users give trackers, frames and boxes, checked."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Set
from itertools import islice
from math import inf, isfinite
from typing import Any

import numpy as np
import torch

Box = tuple[float, float, float, float]

# Pixels; crops around larger boxes have positions beyond 32-bit integers.
_LARGEST = 1e6


def check_flag(name: str, value: object) -> None:
    """Raise TypeError for what is neither True nor False: a text such as "no" would count as true."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {reprlib.repr(value)}")


def check_frame(frame: np.ndarray) -> None:
    """Raise TypeError or ValueError unless the frame is (h,w,3) uint8."""
    if not isinstance(frame, np.ndarray):
        raise TypeError(f"a frame must be a numpy array (h,w,3) uint8 RGB, got {type(frame).__name__}")
    if frame.dtype != np.uint8:
        raise TypeError(f"a frame must be uint8, 0 to 255, got {frame.dtype}: scale and convert it")
    if frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"a frame must be RGB of shape (h,w,3), got {frame.shape}: convert it, e.g. with cv2.cvtColor")
    if 0 in frame.shape:
        raise ValueError(f"the frame is empty: shape {frame.shape}")


def checked_box(box: object, height: int, width: int) -> Box:
    """The box, a sequence, array or tensor or `{"init_bbox": one}`, as four floats.

    Raises:
        TypeError: it is not four numbers. ValueError: it is no target inside a frame of this size.
    """
    x, y, w, h = values = _checked(box)
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        raise ValueError(f"the box {values} lies outside the frame of {width} x {height} pixels")
    if w > 10 * width or h > 10 * height:
        raise ValueError(f"the box {values} is more than ten times as large as the frame of {width} x {height} pixels")
    return values


def checked_numbers(box: object) -> Box:
    """As `checked_box`, wherever the frame ends."""
    values = _checked(box)
    if max(map(abs, values)) > _LARGEST:
        raise ValueError(f"the box {values} reaches beyond {_LARGEST:g} pixels, farther than any frame does")
    return values


def _checked(box: object) -> Box:
    values = _four_numbers(box.get("init_bbox") if isinstance(box, Mapping) else box)
    if values is None:
        raise TypeError(
            f"a box must be four numbers x, y, width, height, or {{'init_bbox': them}}, got {reprlib.repr(box)}"
        )
    if not all(map(isfinite, values)):
        raise ValueError(f"the box {values} is not finite")
    if min(values[2:]) <= 0 or values[2] * values[3] == 0:  # the product of tiny numbers
        raise ValueError(f"the box {values} is empty: width and height must be positive (x, y, width, height)")
    return values


def _four_numbers(box: Any) -> Box | None:
    """The four numbers that a box is, beyond all limits as infinity; None if it is something else."""
    try:
        items = box.tolist() if isinstance(box, (np.ndarray, torch.Tensor)) else box
        # Strings are sequences of digits, and sets have no order.
        if isinstance(items, (str, bytes, bytearray, Set, Mapping)):
            return None
        numbers = list(islice(items, 5))
        if any(isinstance(number, (str, bytes, bytearray)) or getattr(number, "ndim", 0) for number in numbers):
            return None
        x, y, w, h = map(float, numbers)
    except OverflowError:
        return inf, inf, inf, inf
    except (TypeError, ValueError, RuntimeError):  # the last of tensors without data
        return None
    return x, y, w, h

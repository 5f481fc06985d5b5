"""Boxes and captions on frames."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

import cv2
import numpy as np

from ..tracker import TrackResult

# RGB; orange and blue stay apart for colour-blind eyes, and on grass, skin and sky.
TARGET_COLOUR = (255, 140, 0)
LOST_COLOUR = (70, 130, 255)
_DARK = (20, 20, 20)


def draw_box(frame: np.ndarray, box: Sequence[float], colour: tuple[int, int, int] = TARGET_COLOUR) -> np.ndarray:
    """A copy of the frame (h,w,3) with an xywh box, outlined darkly so that it shows on any ground."""
    canvas = np.ascontiguousarray(frame).copy()
    width = _line_width(canvas)
    # Eight times subpixel resolution (shift 3): rounded corners would make a slow target's box jump.
    x1, y1, x2, y2 = (round(8 * value) for value in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    for tone, thickness in ((_DARK, width + 2), (colour, width)):
        cv2.rectangle(canvas, (x1, y1), (x2, y2), tone, thickness, cv2.LINE_AA, shift=3)
    return canvas


def annotate(frame: np.ndarray, result: TrackResult, caption: str = "") -> np.ndarray:
    """A copy of the frame with the result's box, its score beside it and a caption in the upper left corner.

    A score of NaN stands for a box that was given.
    """
    colour = LOST_COLOUR if result.lost else TARGET_COLOUR
    canvas = draw_box(frame, result.box, colour)
    label = "given" if isnan(result.score) else f"{'lost? ' if result.lost else ''}{result.score:.2f}"
    _label(canvas, label, result.box[0], result.box[1], colour, above=True)
    if caption:
        _label(canvas, caption, 0, 0, (235, 235, 235))
    return canvas


def fit(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The frame (h,w,3) scaled to fit into `size`, width and height, in the middle of black; itself if it has it."""
    height, width = frame.shape[:2]
    if (width, height) == size:
        return frame
    scale = min(size[0] / width, size[1] / height)
    inner_w, inner_h = max(1, round(scale * width)), max(1, round(scale * height))
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    left, top = (size[0] - inner_w) // 2, (size[1] - inner_h) // 2
    canvas[top : top + inner_h, left : left + inner_w] = cv2.resize(frame, (inner_w, inner_h))
    return canvas


def _line_width(frame: np.ndarray) -> int:
    return max(2, round(min(frame.shape[:2]) / 240))


def _label(
    canvas: np.ndarray, text: str, x: float, y: float, colour: tuple[int, int, int], above: bool = False
) -> None:
    """Dark text on a plate of the colour, moved where needed to lie inside the frame."""
    height, width = canvas.shape[:2]
    size = max(0.45, min(height, width) / 800)
    stroke = max(1, round(2 * size))
    (w, h), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, stroke)
    pad = round(5 * size) + 1
    plate_w, plate_h = w + 2 * pad, h + below + 2 * pad
    left = max(0, min(round(x) - 1, width - plate_w))
    top = max(0, min(round(y) - (plate_h if above else 0), height - plate_h))
    cv2.rectangle(canvas, (left, top), (left + plate_w - 1, top + plate_h - 1), colour, cv2.FILLED)
    place = (left + pad, top + pad + h)
    cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, _DARK, stroke, cv2.LINE_AA)

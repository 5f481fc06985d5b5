"""A window to draw the target in."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import KeyEvent
    from matplotlib.widgets import RectangleSelector


def draw_box(frame: np.ndarray) -> tuple[float, float, float, float]:
    """Let the user drag a box over the frame, (h,w,3) uint8 RGB; returns x, y, width, height in pixels.

    Raises:
        ValueError: no window can open here, or none was drawn.
    """
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise ValueError("there is no display to draw the box on: give it as --box x,y,w,h")
    from matplotlib import get_backend, pyplot

    figure, axes = pyplot.subplots(layout="constrained")
    if get_backend().lower() == "agg":
        raise ValueError(
            "matplotlib finds no toolkit to open a window with: give --box x,y,w,h, or install one (pip install PyQt6)"
        )
    axes.set_title("drag a box over the target, then press Enter")
    selector = box_selector(axes, frame)

    def close_on_enter(event: KeyEvent) -> None:
        if event.key == "enter":
            pyplot.close(figure)

    figure.canvas.mpl_connect("key_press_event", close_on_enter)
    pyplot.show(block=True)
    return selected_box(selector)


def box_selector(axes: Axes, frame: np.ndarray) -> RectangleSelector:
    """Show the frame in the axes, one data unit a pixel, with a box to drag."""
    from matplotlib.widgets import RectangleSelector

    height, width = frame.shape[:2]
    axes.imshow(frame, extent=(0, width, height, 0))
    axes.set_axis_off()
    # Nothing happens when a box is finished: Enter ends, so that it can still be corrected.
    return RectangleSelector(axes, lambda *_: None, interactive=True, props={"edgecolor": "darkorange", "fill": False})


def selected_box(selector: RectangleSelector) -> tuple[float, float, float, float]:
    """The selector's box as x, y, width, height. Raises ValueError when it is empty."""
    x1, x2, y1, y2 = (float(value) for value in selector.extents)
    if x2 <= x1 or y2 <= y1:
        raise ValueError("no box was drawn: drag with the mouse from corner to corner, or give --box x,y,w,h")
    return x1, y1, x2 - x1, y2 - y1

"""A window that shows the tracked video, and takes targets drawn with the mouse."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from ..inputs import Box
    from ..tracker import TrackResult

_COLOURS = ("#ff8c00", "#4682ff", "#2fb36d", "#d14fb8", "#e0c020", "#20b8c8")
_HELP = "drag: box   click, 1-9: choose   n: new target   d: drop   space: pause   q: end"
_CLICK = 4  # pixels; a shorter drag is a click


class Wish(NamedTuple):
    """What the user wants: a box for a target (None: a new one), or without a box the target dropped."""

    target: int | None
    box: Box | None


class Window:
    """Shows frames with their boxes and collects what the user draws.

    A drag draws a box for the chosen target, or for a new one where none is chosen; a click chooses the target under
    it. Keys: 1 to 9 choose, n chooses none, d drops the chosen target, space pauses, q ends.

    Args:
        figure: of matplotlib, with a canvas.
        paused: whether it begins with a pause.

    Attributes:
        paused: the video is to wait. closed: the window is gone, or the user pressed q. chosen: a target, or None.
    """

    def __init__(self, figure: Figure, paused: bool = False):
        self.paused, self.closed = paused, False
        self.chosen: int | None = None
        self._wishes: list[Wish] = []
        self._results: Mapping[int, TrackResult] = {}
        self._start: tuple[float, float] | None = None
        self._canvas: Any = figure.canvas
        self._axes = figure.add_axes((0, 0, 1, 0.95))
        self._axes.set_axis_off()
        self._image: Any = None
        self._drawn: list[Any] = []
        handlers: tuple[tuple[Any, Any], ...] = (
            ("button_press_event", self._press),
            ("motion_notify_event", self._move),
            ("button_release_event", self._release),
            ("key_press_event", self._key),
            ("close_event", self._close),
        )
        for name, handler in handlers:
            self._canvas.mpl_connect(name, handler)

    def show(self, frame: np.ndarray, results: Mapping[int, TrackResult]) -> None:
        """Show a frame, (h,w,3) uint8 RGB, with the boxes of its targets, and take in what the user does."""
        height, width = frame.shape[:2]
        if self._image is None or self._image.get_array().shape != frame.shape:
            self._axes.clear()
            self._axes.set_axis_off()
            self._image, self._drawn = self._axes.imshow(frame, extent=(0, width, height, 0)), []
        self._image.set_data(frame)
        self._results = results
        if self.chosen not in results:
            self.chosen = None
        self._redraw()
        self._canvas.flush_events()

    def wishes(self) -> list[Wish]:
        """What the user wanted since the last call."""
        wishes, self._wishes = self._wishes, []
        return wishes

    def wait(self, seconds: float) -> None:
        """Take in what the user does for so long."""
        self._canvas.start_event_loop(seconds)

    def _redraw(self, drag: Box | None = None) -> None:
        from matplotlib.patches import Rectangle

        for artist in self._drawn:
            artist.remove()
        self._drawn = []
        state = "paused   " if self.paused else ""
        chosen = "new target" if self.chosen is None else f"target {self.chosen + 1}"
        self._axes.set_title(f"{state}{chosen}   |   {_HELP}", fontsize=8)
        boxes: list[tuple[Box, str, str, float]] = [
            (result.box, _COLOURS[target % len(_COLOURS)], "--" if result.lost else "-", 1.5 + (target == self.chosen))
            for target, result in self._results.items()
        ]
        for (x, y, w, h), colour, style, line in [*boxes, *([(drag, "white", ":", 1.5)] if drag else [])]:
            patch = Rectangle((x, y), w, h, fill=False, edgecolor=colour, linestyle=style, linewidth=line)
            self._drawn.append(self._axes.add_patch(patch))
        for target, result in self._results.items():
            words = f"{target + 1}: {result.score:.2f}"
            self._drawn.append(self._axes.text(*result.box[:2], words, color="white", va="bottom", fontsize=8))
        self._canvas.draw_idle()

    def _press(self, event: Any) -> None:
        if event.inaxes is self._axes and event.button == 1:
            self._start = (event.xdata, event.ydata)

    def _move(self, event: Any) -> None:
        if self._start and event.inaxes is self._axes:
            self._redraw(_spanned(self._start, (event.xdata, event.ydata)))

    def _release(self, event: Any) -> None:
        start, self._start = self._start, None
        if start is None:
            return
        box = _spanned(start, (event.xdata, event.ydata)) if event.inaxes is self._axes else (*start, 0.0, 0.0)
        if min(box[2:]) < _CLICK:
            inside = (t for t, r in self._results.items() if _holds(r.box, start))
            self.chosen = next(inside, None)
        else:
            self._wishes.append(Wish(self.chosen, box))
        self._redraw()

    def _key(self, event: Any) -> None:
        if event.key == " ":
            self.paused = not self.paused
        elif event.key == "q":
            self._close(event)
        elif event.key == "n":
            self.chosen = None
        elif event.key == "d" and self.chosen is not None:
            self._wishes.append(Wish(self.chosen, None))
            self.chosen = None
        elif event.key and event.key in "123456789" and int(event.key) - 1 in self._results:
            self.chosen = int(event.key) - 1
        self._redraw()

    def _close(self, _: Any) -> None:
        self.closed, self.paused = True, False


def open_window(paused: bool) -> Window:
    """A window on this machine's display.

    Raises:
        ValueError: none can open here.
    """
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise ValueError("there is no display to draw the box on: give it as --box x,y,w,h")
    import matplotlib
    from matplotlib import get_backend, pyplot

    with matplotlib.rc_context({"toolbar": "None"}):
        figure = pyplot.figure(figsize=(9.6, 5.7), facecolor="#dddddd")
    if get_backend().lower() == "agg":
        raise ValueError(
            "matplotlib finds no toolkit to open a window with: give --box x,y,w,h, or install one (pip install PyQt6)"
        )
    manager: Any = figure.canvas.manager
    # Its own keys would save files and close windows.
    figure.canvas.mpl_disconnect(manager.key_press_handler_id)
    pyplot.show(block=False)
    return Window(figure, paused)


def _spanned(a: tuple[float, float], b: tuple[float, float]) -> Box:
    return min(a[0], b[0]), min(a[1], b[1]), abs(a[0] - b[0]), abs(a[1] - b[1])


def _holds(box: Box, place: tuple[float, float]) -> bool:
    return box[0] <= place[0] <= box[0] + box[2] and box[1] <= place[1] <= box[1] + box[3]

"""A run on one page: frames with their boxes, and the score over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..files import write_atomically
from ..tracker import TrackResult
from .draw import LOST_COLOUR, TARGET_COLOUR, draw_box

_COLUMNS = 4
_WIDTH = 480


class Thumbnails:
    """Evenly spaced frames of a run of unknown length, reduced: never more than `2 * count - 1` in memory."""

    def __init__(self, count: int = 2 * _COLUMNS):
        self.count = count
        self._every = 1
        self._kept: list[tuple[int, np.ndarray]] = []

    def add(self, index: int, frame: np.ndarray, result: TrackResult) -> None:
        """Take note of frame number `index`, counted from 0 without gaps."""
        if index % self._every:
            return
        reduce = min(1.0, _WIDTH / frame.shape[1])
        size = (round(frame.shape[1] * reduce), max(1, round(frame.shape[0] * reduce)))
        small = cv2.resize(np.ascontiguousarray(frame), size, interpolation=cv2.INTER_AREA)
        box = [value * reduce for value in result.box]
        self._kept.append((index, draw_box(small, box, LOST_COLOUR if result.lost else TARGET_COLOUR)))
        if len(self._kept) == 2 * self.count:
            self._every *= 2
            self._kept = self._kept[::2]

    def chosen(self) -> list[tuple[int, np.ndarray]]:
        """At most `count` (index, frame with box), evenly spread, the first among them."""
        places = np.linspace(0, len(self._kept) - 1, min(self.count, len(self._kept)))
        return [self._kept[round(place)] for place in places]


def plot_run(
    path: str | Path,
    thumbnails: Sequence[tuple[int, np.ndarray]],
    scores: Sequence[float],
    fps: float,
    title: str,
    lost_below: float | None = None,
) -> None:
    """Write a contact sheet over a plot of the score to an image file, its kind given by the suffix.

    Args:
        thumbnails: (frame number, frame with box), from `Thumbnails.chosen`.
        scores: one a frame; the first frame, whose box was given, may be NaN.
        fps: frames a second of the video, for the time axis.
        lost_below: the threshold to mark.

    Raises:
        ValueError: a suffix matplotlib cannot write.
    """
    check_image_path(path)
    rows = -(-len(thumbnails) // _COLUMNS)
    aspect = thumbnails[0][1].shape[0] / thumbnails[0][1].shape[1]
    cell = 3.2
    heights = [cell * aspect + 0.25] * rows + [1.9]
    figure = Figure(figsize=(_COLUMNS * cell + 0.4, sum(heights) + 1.0), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(rows + 1, _COLUMNS, height_ratios=heights)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    for place, (index, image) in enumerate(thumbnails):
        axes = figure.add_subplot(grid[divmod(place, _COLUMNS)])
        axes.imshow(image)
        axes.set_title(f"frame {index}  ({index / fps:.1f} s)", fontsize=9, loc="left", color="#444444")
        axes.axis("off")
    _plot_score(figure.add_subplot(grid[rows, :]), thumbnails, np.asarray(scores, float), fps, lost_below)
    write_atomically(path, lambda temporary: FigureCanvasAgg(figure).print_figure(temporary, dpi=110))


def _plot_score(
    axes: Axes,
    thumbnails: Sequence[tuple[int, np.ndarray]],
    scores: np.ndarray,
    fps: float,
    lost_below: float | None,
) -> None:
    colour, lost = (tuple(value / 255 for value in tone) for tone in (TARGET_COLOUR, LOST_COLOUR))
    seconds = np.arange(len(scores)) / fps
    axes.plot(seconds, scores, color=colour, linewidth=1.8)
    axes.fill_between(seconds, scores, color=colour, alpha=0.15, linewidth=0)
    marked = [index for index, _ in thumbnails if index < len(scores) and np.isfinite(scores[index])]
    axes.plot(seconds[marked], scores[marked], "o", color=colour, markersize=4)
    if lost_below is not None:
        axes.axhline(lost_below, color=lost, linewidth=1, linestyle="--")
        axes.annotate(
            "lost below", (1, lost_below), (-3, 3), ("axes fraction", "data"), "offset points",
            ha="right", fontsize=8, color=lost,
        )  # fmt: skip
    axes.set(xlim=(0, max(seconds[-1], 1 / fps)), ylim=(0, 1), xlabel="time (s)", ylabel="score")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def check_image_path(path: str | Path) -> None:
    """Raise ValueError unless `plot_run` can write a file of this name."""
    kinds = FigureCanvasAgg.get_supported_filetypes()
    if Path(path).suffix.lower().removeprefix(".") not in kinds:
        raise ValueError(f"{path}: a picture's name must end in one of {', '.join('.' + kind for kind in kinds)}")

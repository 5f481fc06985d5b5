"""A run on one page: frames with their boxes, and the score over time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from ..files import is_special, write_atomically
from .draw import LOST_COLOUR, TARGET_COLOUR
from .thumbnails import COLUMNS


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
    rows = -(-len(thumbnails) // COLUMNS)
    aspect = min(3.0, thumbnails[0][1].shape[0] / thumbnails[0][1].shape[1])
    cell = 3.2
    heights = [cell * aspect + 0.25] * rows + [1.9]
    figure = Figure(figsize=(COLUMNS * cell + 0.4, sum(heights) + 1.0), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(rows + 1, COLUMNS, height_ratios=heights)
    # A file's name, which may hold dollar signs and what is no text.
    title = "".join(letter if letter.isprintable() else "?" for letter in title)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    for place, (index, image) in enumerate(thumbnails):
        axes = figure.add_subplot(grid[divmod(place, COLUMNS)])
        axes.imshow(image)
        axes.set_title(f"frame {index}  ({index / fps:.1f} s)", fontsize=9, loc="left", color="#444444")
        axes.axis("off")
    _plot_score(figure.add_subplot(grid[rows, :]), thumbnails, np.asarray(scores, float), fps, lost_below)
    FigureCanvasAgg(figure)
    save_figure(figure, path, dpi=110)


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


def save_figure(figure: Figure, path: str | Path, dpi: float) -> None:
    """Write a figure atomically, of the kind that the suffix says. Raises as `check_image_path`, and OSError."""
    kind = check_image_path(path)
    without_formulas(figure)
    with warnings.catch_warnings():
        # The font draws a box for what it lacks, such as the letters of a video's Chinese name.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=dpi, format=kind))


def without_formulas(figure: Figure) -> None:
    """Show the texts of a figure as they are: names of files and trackers may hold dollars, which begin a formula."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)


def check_image_path(path: str | Path) -> str:
    """The kind of picture that a file of this name is: "png" for devices and pipes. Raises ValueError if it is none."""
    kinds = FigureCanvasAgg.get_supported_filetypes()
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in kinds:
        if is_special(path):
            return "png"
        raise ValueError(f"{path}: a picture's name must end in one of {', '.join('.' + kind for kind in kinds)}")
    return kind

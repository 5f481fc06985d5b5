"""The report's pictures of candidate elimination over time: which cells are left, and how many of the target's are not.

The network looks again at the frames, around the boxes of the result file: nothing is tracked.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from ..boxes import crop_window
from ..data.images import Image, read_image
from ..data.truth import Array, present, read_raw_boxes
from ..model import OSTrack
from ..visualization.inside import SIDE, Inside, dimmed
from .benchmarks import Sequence
from .report_figures import Picture, jpeg, new_axes, svg

_FRAMES = 12
"""Looked at in a sequence; every second one is shown."""


def elimination_pictures(about: dict[str, Any], sequences: Iterable[tuple[Sequence, Path]]) -> list[Picture]:
    """A strip of search regions for each sequence, the eliminated cells dark, and one chart over time.

    Args:
        about: the `tracker` of `benchmark_run.write_run`: what made the results.
        sequences: with the result file of each.

    Returns:
        None for a tracker that is not ours, or eliminates nothing, and of sequences whose images are missing.

    Raises:
        OSError, ValueError: the weights cannot be read.
    """
    if about.get("tracker") != "ostrack":
        return []
    model = OSTrack.from_pretrained(about["weights"], about.get("config"))
    if not model.cfg.ce_layers:
        return []
    pictures, shares = [], {}
    for sequence, file in sequences:
        try:
            regions, shares[sequence.name] = _look(model, sequence, read_raw_boxes(file) - _origin(sequence))
        except OSError:
            continue
        strip = np.concatenate([region for _, region in regions[::2]], axis=1)
        frames = ", ".join(str(index) for index, _ in regions[::2])
        pictures.append(Picture(jpeg(strip), f"Candidates left on {sequence.name}: frames {frames}"))
    return [*pictures, _chart(shares)] if pictures else []


def _origin(sequence: Sequence) -> Array:
    return np.array([sequence.origin, sequence.origin, 0, 0])


def _look(model: OSTrack, sequence: Sequence, boxes: Array) -> tuple[list[tuple[int, Image]], list[tuple[int, float]]]:
    """The search regions of some frames with their numbers; and what share of the target's cells is eliminated."""
    frames, truth = sequence.frames(), sequence.truth.boxes - _origin(sequence)
    inside = Inside(model, read_image(frames[0]), truth[0].tolist())
    regions, shares = [], []
    for index in np.unique(np.linspace(1, len(boxes) - 1, _FRAMES).round().astype(int)).tolist():
        around = boxes[index - 1]
        if not present(around[None])[0]:
            continue
        view = inside.look(read_image(frames[index]), around.tolist())
        left = view.alive[-1]
        regions.append((index, dimmed(cv2.resize(view.region, (SIDE, SIDE)), left)))
        if not present(truth[index][None])[0]:
            continue
        target = target_cells(truth[index], around, model.cfg.search_factor, len(left))
        if target.any():
            shares.append((index, float((target & ~left).sum() / target.sum())))
    return regions, shares


def target_cells(truth: Array, around: Array, factor: float, grid: int) -> NDArray[np.bool_]:
    """Which cells of the search region around a box have their centre within the true box, (grid,grid)."""
    left, top, side = crop_window(around.tolist(), factor)
    centres = (np.arange(grid) + 0.5) * side / grid
    x, y, w, h = truth
    columns, rows = (centres + left - x) / w, (centres + top - y) / h
    return np.asarray(((rows >= 0) & (rows <= 1))[:, None] & ((columns >= 0) & (columns <= 1))[None, :])


def _chart(shares: dict[str, list[tuple[int, float]]]) -> Picture:
    figure, axes = new_axes("frame", "target's cells that are eliminated")
    for name, points in shares.items():
        if points:
            axes.plot(*zip(*points, strict=True), "o-", label=name)
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    if axes.lines:
        axes.legend(handles=axes.lines, fontsize=8)
    return svg(figure, "Share of the target's cells that are eliminated, over time")

"""The report's pictures: curves, speed against accuracy, filmstrips."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import cv2
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from ..data.images import Image, read_image
from ..data.truth import Array, present
from ..visualization.draw import TARGET_COLOUR, draw_box
from ..visualization.sheet import without_formulas
from .benchmarks import Sequence
from .protocols.base import OVERLAPS, PIXELS, SHARES, Curves
from .scoring import Scored, TrackerScore

_TRUTH_COLOUR = (60, 220, 90)
_COLUMNS = 6
_WIDTH = 320


@dataclass(frozen=True)
class Picture:
    """A picture within the page: `source` is a data address, `text` says what it shows."""

    source: str
    text: str


def curve_pictures(scored: Scored) -> list[Picture]:
    """Success, precision and normalized precision over their thresholds, each tracker's figure in the legend."""
    if isinstance(next(iter(scored.trackers[0].scores.values())), Curves):
        panels = [
            ("success", "AUC", OVERLAPS, "overlap threshold", "success"),
            ("precision", "P", PIXELS, "centre error threshold (pixels)", "precision"),
            ("normalized", "P_norm", SHARES, "normalized centre error threshold", "normalized precision"),
        ]
        return [_curves(scored, *panel) for panel in panels]
    figure, axes = new_axes("overlap threshold", "share of frames")
    steps = np.linspace(0, 1, 101)
    for tracker in _ranked(scored.trackers, "AO"):
        overlaps = np.concatenate([one.frames for one in tracker.scores.values()])
        curve = [(overlaps > step).mean() for step in steps]
        axes.plot(steps, curve, label=f"{tracker.name} [{tracker.summary['AO']:.3f}]")
    axes.legend(handles=axes.lines, fontsize=8)
    return [svg(figure, "Success curves, AO in the legend")]


def _curves(scored: Scored, field: str, key: str, thresholds: Array, quantity: str, title: str) -> Picture:
    figure, axes = new_axes(quantity, f"{title}, % of frames")
    for tracker in _ranked(scored.trackers, key):
        curve = 100 * np.mean([getattr(one, field) for one in tracker.scores.values()], axis=0)
        # TrackingNet has 21 thresholds for every curve.
        steps = thresholds if len(curve) == len(thresholds) else np.linspace(0, thresholds[-1], len(curve))
        axes.plot(steps, curve, label=f"{tracker.name} [{tracker.summary[key]:.1f}]")
    axes.legend(handles=axes.lines, fontsize=8)
    return svg(figure, f"{title.capitalize()} curves, {key} in the legend")


def speed_picture(points: SequenceOf[tuple[str, float, float]], figure_name: str) -> Picture:
    """A tracker's frames a second in `track` against its figure: (name, frames a second, figure) each."""
    figure, axes = new_axes("frames a second in track()", figure_name)
    for name, fps, value in points:
        axes.plot(fps, value, "o", markersize=8)
        axes.annotate(name, (fps, value), (6, 4), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    # The usual labels of a logarithmic axis are formulas.
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    return svg(figure, "Speed against accuracy")


def latency_picture(curves: dict[str, list[tuple[float, float]]], figure_name: str) -> Picture:
    """Of each tracker its figure over the frames a second that videos arrive at."""
    figure, axes = new_axes("frames a second of the video", figure_name)
    for name, points in curves.items():
        axes.plot(*zip(*sorted(points), strict=True), "o-", label=name)
    axes.legend(handles=axes.lines, fontsize=8)
    return svg(figure, "Latency-aware figures over the frame rate")


def filmstrip(sequence: Sequence, tracker: TrackerScore, boxes: Array) -> Picture | None:
    """Six frames of a sequence with the truth (green) and the tracker's box (orange); None without its images."""
    try:
        frames = sequence.frames()
        picked = np.linspace(0, len(sequence.truth.boxes) - 1, _COLUMNS).round().astype(int)
        images = [_frame(sequence, read_image(frames[index]), boxes[index], index) for index in picked]
    except (OSError, ValueError):
        return None
    height = min(image.shape[0] for image in images)
    strip = np.concatenate([image[:height] for image in images], axis=1)
    return Picture(jpeg(strip), f"{tracker.name} on {sequence.name}: frames {', '.join(map(str, picked))}")


def _frame(sequence: Sequence, image: Image, box: Array, index: int) -> Image:
    shift = np.array([sequence.origin, sequence.origin, 0, 0])
    for each, colour in ((sequence.truth.boxes[index], _TRUTH_COLOUR), (box, TARGET_COLOUR)):
        if present(each[None])[0]:
            image = draw_box(image, (each - shift).tolist(), colour)
    return cv2.resize(image, (_WIDTH, max(1, round(image.shape[0] * _WIDTH / image.shape[1]))))


def _ranked(trackers: SequenceOf[TrackerScore], key: str) -> list[TrackerScore]:
    return sorted(trackers, key=lambda tracker: -tracker.summary[key])


def jpeg(image: Image) -> str:
    """A picture's data address."""
    data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 70])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"


def new_axes(x: str, y: str) -> tuple[Figure, Axes]:
    """An empty chart with these quantities at its axes."""
    figure = Figure(figsize=(5, 3.8), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def svg(figure: Figure, text: str) -> Picture:
    """A chart as a picture of the page."""
    out = io.BytesIO()
    without_formulas(figure)
    # The same data give the same file: no date, no random names.
    with rc_context({"svg.hashsalt": "report"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return Picture(f"data:image/svg+xml;base64,{base64.b64encode(out.getvalue()).decode()}", text)

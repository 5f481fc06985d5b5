"""Success and precision plots, as the OTB and LaSOT papers draw them."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from ..visualization.sheet import check_image_path, save_figure
from .metrics import NORMALIZED_THRESHOLDS, OVERLAP_THRESHOLDS, PIXEL_THRESHOLDS
from .runner import EvaluationResult


def plot_curves(result: EvaluationResult, label: str = "tracker") -> Figure:
    """Three panels, success, precision and normalized precision: each video thin, the mean thick."""
    # A Figure made directly needs no display and stays out of pyplot's global list.
    figure = Figure(figsize=(13, 4), layout="constrained")
    mean = result.mean
    panels = (
        ("success", OVERLAP_THRESHOLDS, "overlap threshold", f"AUC {mean.auc:.3f}"),
        ("precision", PIXEL_THRESHOLDS, "centre error threshold (pixels)", f"{mean.precision_20:.3f} at 20"),
        (
            "normalized_precision",
            NORMALIZED_THRESHOLDS,
            "normalized centre error threshold",
            f"{mean.normalized_precision_20:.3f} at 0.2",
        ),
    )
    for axes, (name, thresholds, quantity, score) in zip(figure.subplots(1, 3), panels, strict=True):
        for video in result.videos:
            axes.plot(thresholds, getattr(video.scores, name), color="0.75", linewidth=0.8)
        axes.plot(thresholds, getattr(mean, name), color="tab:red", linewidth=2.5, label=f"{label}: {score}")
        axes.set(
            title=f"{name.replace('_', ' ').capitalize()}, {len(result.videos)} videos",
            xlabel=quantity,
            ylabel="share of frames",
            xlim=(thresholds[0], thresholds[-1]),
            ylim=(0, 1.02),
        )
        axes.grid(alpha=0.3)
        axes.legend(handles=axes.lines[-1:], loc="best")
    return figure


def save_plot(result: EvaluationResult, path: str | Path, label: str = "tracker") -> None:
    """Write `plot_curves` as a picture, of the kind the suffix of `path` says. Raises as `save_figure`."""
    check_image_path(path)
    save_figure(plot_curves(result, label), path, dpi=150)

"""Pictures of what the tracker did: annotated frames, contact sheets, score over time."""

from .draw import annotate, draw_box
from .sheet import Thumbnails, plot_run

__all__ = ["Thumbnails", "annotate", "draw_box", "plot_run"]

"""Pictures of what the tracker did: annotated frames, contact sheets, score over time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .draw import annotate, draw_box, fit
from .thumbnails import Thumbnails

if TYPE_CHECKING:
    from .sheet import plot_run

__all__ = ["Thumbnails", "annotate", "draw_box", "fit", "plot_run"]


def __getattr__(name: str) -> Any:
    # Imported when first used: nothing but a picture needs matplotlib, whose import takes long and writes files.
    if name != "plot_run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .sheet import plot_run

    return plot_run

"""OpenCV's trackers, to run beside ours under the same protocol."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# Of the OpenCV zoo: the name of each model file begins with one of these words.
_FILES = {"nano": ("nanotrack_backbone", "nanotrack_head"), "vit": ("vittrack",)}
PEERS = ("mil", "nano", "vit", "kcf", "csrt")


class OpenCVTracker:
    """An OpenCV tracker as the evaluation calls one.

    Args:
        make: makes a `cv2.Tracker`, which can be started only once.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def initialize(self, frame: NDArray[np.uint8], box: tuple[float, float, float, float]) -> None:
        """Start on the target in an RGB frame (h,w,3); OpenCV takes whole pixels, which the box is rounded to."""
        self._tracker = self._make()
        self._tracker.init(np.ascontiguousarray(frame[..., ::-1]), tuple(map(round, box)))

    def track(self, frame: NDArray[np.uint8]) -> tuple[float, float, float, float] | None:
        """The target's box in the next frame; None where the tracker says that it lost it."""
        found, box = self._tracker.update(np.ascontiguousarray(frame[..., ::-1]))
        return box if found else None


def make_peer(name: str, models: str | Path | None = None) -> OpenCVTracker:
    """An OpenCV tracker by name.

    Args:
        name: "mil", "nano", "vit", or of a contrib build "kcf", "csrt".
        models: folder of the ONNX files of the OpenCV zoo, for "nano" and "vit".

    Raises:
        ValueError: an unknown name, or no folder of models where one is needed.
        FileNotFoundError: a model file is missing. ImportError: this build of OpenCV lacks the tracker.
    """
    if name not in PEERS:
        raise ValueError(f"there is no tracker {name!r}: choose ostrack or one of {', '.join(PEERS)}")
    title = f"Tracker{name.upper() if name in ('mil', 'kcf', 'csrt') else name.capitalize()}"
    make = getattr(cv2, f"{title}_create", None)
    if make is None:
        raise ImportError(
            f"this build of OpenCV has no {title}: pip install opencv-contrib-python-headless in its place"
        )
    if name not in _FILES:
        return OpenCVTracker(make)
    if models is None:
        raise ValueError(f"{title} needs its model files: give their folder with --peer-models")
    files = [_find(Path(models), start) for start in _FILES[name]]
    settings = getattr(cv2, f"{title}_Params")()
    for field, file in zip(("backbone", "neckhead") if name == "nano" else ("net",), files, strict=True):
        setattr(settings, field, str(file))
    return OpenCVTracker(lambda: make(settings))


def _find(folder: Path, start: str) -> Path:
    found = sorted(folder.glob(f"*{start}*.onnx"))
    if not found:
        raise FileNotFoundError(f"{folder} holds no {start}*.onnx")
    return found[0]

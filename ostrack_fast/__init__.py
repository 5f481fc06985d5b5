"""OSTrack (ECCV 2022) visual object tracking on fused kernels.

>>> tracker = Tracker("small")
>>> tracker.initialize(first_frame, (x, y, width, height))
>>> tracker.track(next_frame).box
"""

from __future__ import annotations

import os
import sys
import threading
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .drop_in import accelerate
    from .engine import Engine
    from .model import OSTrack, build_ostrack
    from .tracker import MultiTracker, Tracker, TrackResult

try:
    __version__ = version("ostrack_fast")
except PackageNotFoundError:
    # A source tree on the path, not installed.
    __version__ = "0+unknown"

__all__ = ["Engine", "MultiTracker", "OSTrack", "TrackResult", "Tracker", "__version__", "accelerate", "build_ostrack"]

# Imported when first used: the command line's help should not wait for torch.
_HOME = {
    "Engine": "engine",
    "MultiTracker": "tracker",
    "OSTrack": "model",
    "TrackResult": "tracker",
    "accelerate": "drop_in",
    "Tracker": "tracker",
    "build_ostrack": "model",
}


_has_native_threads = False  # whether threads other than Python's ran at the last fork


def _note_threads() -> None:
    global _has_native_threads
    tasks = "/proc/self/task"
    _has_native_threads = not os.path.isdir(tasks) or len(os.listdir(tasks)) > threading.active_count()


def _keep_to_one_thread() -> None:
    """In a forked child: PyTorch waits for ever for threads of GNU's OpenMP, which do not survive a fork."""
    torch = sys.modules.get("torch")
    if torch is not None and _has_native_threads:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_note_threads, after_in_child=_keep_to_one_thread)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""Frames read by a thread of their own, so that reading and tracking take place at the same time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from threading import Condition, Thread

import numpy as np

from .source import FrameSource

_AHEAD = 4
_SECONDS_TO_END = 2.0


class LiveFrames:
    """The frames of a source, read in the background. An iterator, and a context manager that ends the reading.

    Args:
        source: what to read.
        newest: True gives the newest frame there is and passes over older ones, for cameras and streams that do not
            wait; False gives every frame, read a few ahead.

    Attributes:
        passed_over: frames that were never given because a newer one was there.
    """

    def __init__(self, source: FrameSource, newest: bool):
        self.newest, self.passed_over = newest, 0
        self._ready: deque[np.ndarray] = deque()
        self._changed = Condition()
        self._ended = self._closed = False
        self._failure: Exception | None = None
        self._reader = Thread(target=self._read, args=(source,), daemon=True)

    def __enter__(self) -> LiveFrames:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        # A file's reader ends at once; a stream's may wait for a frame that never comes.
        self._reader.join(_SECONDS_TO_END)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def wait(self, seconds: float) -> bool:
        """Wait for the next frame or the end, but no longer than this; whether one of them is there."""
        with self._changed:
            return bool(self._changed.wait_for(lambda: self._ready or self._ended, seconds))

    def __next__(self) -> np.ndarray:
        """The next frame, (h,w,3) uint8 RGB. Raises what kept the source from being read, after its last frame."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._ended)
            if not self._ready:
                if self._failure is not None:
                    raise self._failure
                raise StopIteration
            frame = self._ready.popleft()
            self._changed.notify_all()
            return frame

    def _read(self, source: FrameSource) -> None:
        try:
            for frame in source:
                if not self._put(frame):
                    return
        except Exception as error:
            self._failure = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put(self, frame: np.ndarray) -> bool:
        """Hand a frame over; False once nobody wants any."""
        with self._changed:
            if self.newest:
                self.passed_over += len(self._ready)
                self._ready.clear()
            else:
                self._changed.wait_for(lambda: len(self._ready) < _AHEAD or self._closed)
            if self._closed:
                return False
            self._ready.append(frame)
            self._changed.notify_all()
            return True

"""OpenCV's VideoCapture, with what it does not tell: which frames could not be decoded, and where the end is.

A failed read of OpenCV's may be the end, or a frame that cannot be decoded with good ones behind it; some decoders drop
such a frame, or its neighbour, without a word. What a file holds is seen in its packets, one a frame, which can be
listed without decoding; which of them a decoded frame comes from is seen in its time.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic

import cv2
import numpy as np

from ..files import is_utf8
from .pipe import Pipe

# Cameras and streams: failed reads in a row that mean the end.
_MAX_FAILURES = 5
# Seconds without an answer or a frame after which a stream is taken to have ended.
SILENCE = 15
# Milliseconds; far less than a frame lasts, far more than the rounding of times.
_SLACK = 0.01


_PATIENCE: tuple = (
    cv2.CAP_FFMPEG,
    [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 1000 * SILENCE, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 1000 * SILENCE],
)


class Capture:
    """An opened video; `frames` reads it once.

    Args:
        target: what cv2.VideoCapture opens.
        resources: closed at the end of `frames`.
        seekable: a file, whose packets can be listed.
        stream: an address, which may fall silent.

    Attributes:
        length: number of frames, as the header claims; 0 or less where it says nothing.
        broken: numbers of the frames that could not be decoded, as far as `frames` has come.
    """

    def __init__(
        self, target: str | int, resources: ExitStack | None = None, seekable: bool = False, stream: bool = False
    ):
        self.broken: list[int] = []
        self._pipe: Pipe | None = None
        self._target = target if seekable else None
        self._resources = resources or ExitStack()
        self._stream = stream and cv2.CAP_FFMPEG in cv2.videoio_registry.getStreamBackends()
        self._capture = cv2.VideoCapture(target, *(_PATIENCE if self._stream else ()))
        self._resources.callback(self._capture.release)
        self.length = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self._step = 1000 / self.fps if self.fps > 0 else float("inf")
        self._count = 0  # number of the next frame
        self._first: float | None = None  # time of the first frame, if no failure preceded it
        self._last = 0.0  # time of the last frame
        self._times: list[float] | None = None  # of all frames; None is not yet listed, empty is of no use
        self._total = 0  # frames the file holds
        self._whole_avi = False

    @classmethod
    def of_file(cls, path: Path) -> Capture:
        """A regular file of any name."""
        name, resources = str(path.absolute()), ExitStack()
        if "%" in name or not is_utf8(name):
            # FFmpeg takes a percent sign for a pattern of image names, and OpenCV crashes on what is not UTF-8.
            descriptor = os.open(path, os.O_RDONLY)
            resources.callback(os.close, descriptor)
            name = f"/dev/fd/{descriptor}"
        capture = cls(name, resources, seekable=True)
        with open(path, "rb") as file:
            head = file.read(8)
            capture._whole_avi = head[:4] == b"RIFF" and int.from_bytes(head[4:], "little") + 8 <= path.stat().st_size
        return capture

    @classmethod
    def of_pipe(cls, pipe: Pipe) -> Capture:
        """What comes out of a pipe."""
        resources = ExitStack()
        resources.callback(pipe.close)
        capture = cls(pipe.name, resources, pipe.seekable)
        capture._pipe = pipe
        return capture

    @property
    def fps(self) -> float:
        """Frames a second, as the header claims."""
        return self._capture.get(cv2.CAP_PROP_FPS)

    def cut_off(self) -> bool:
        """Whether the last frame read is shown before the last one that the header claims.

        Where frames are not evenly spaced the number that it claims may be a guess from how long the video lasts.
        """
        lasts = self._last - max(self._first or 0.0, 0.0)
        return lasts < (self.length - 1.5) * self._step

    def frames(self) -> Iterator[np.ndarray]:
        """The frames that can be decoded, (h,w,3) uint8 RGB.

        Raises OSError behind them where a pipe broke off, or a stream fell silent.
        """
        with self._resources:
            reads = failures = 0
            while self._capture.isOpened():
                asked = monotonic()
                good, frame = self._capture.read()
                reads += 1
                if good:
                    self._place(failures)
                    failures = 0
                    yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                else:
                    failures += 1
                    if self._stream and monotonic() - asked > 0.9 * SILENCE:
                        raise OSError(f"the stream fell silent: after {self._count} frames none for {SILENCE} seconds")
                    if self._ended(reads, failures):
                        break
            if self._times and self._last < self._times[-1] - _SLACK:
                self.broken.extend(range(self._count, len(self._times)))
            if self._pipe is not None and self._pipe.problem is not None:
                raise OSError(f"the video breaks off after {self._count} frames: {self._pipe.problem}")

    def _place(self, failures: int) -> None:
        """Find the number of the frame just read; those left out before it are broken."""
        now = self._capture.get(cv2.CAP_PROP_POS_MSEC)
        if self._first is None:
            self._first = now if not failures else float("-inf")
        elif now > self._last + 1.5 * self._step:
            self._list_packets()
        number = bisect_left(self._times, now - _SLACK) if self._times else self._count + failures
        self.broken.extend(range(self._count, number))
        self._count = max(self._count, number) + 1
        self._last = now

    def _ended(self, reads: int, failures: int) -> bool:
        """Whether a failed read is the end, and not a broken frame."""
        if self._target is None:
            return failures >= _MAX_FAILURES
        if self._count == self.length:
            return True
        self._list_packets()
        return reads >= self._total

    def _list_packets(self) -> None:
        """List when all frames of the file are to be shown, as far as that agrees with those read until now."""
        if self._times is not None or self._target is None:
            return
        packets = cv2.VideoCapture(self._target, cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
        times = []
        while packets.grab():
            times.append(packets.get(cv2.CAP_PROP_POS_MSEC))
        packets.release()
        times.sort()
        if times and self._first is not None and self._first > float("-inf"):
            # Frames that are there for decoding alone precede the first; its own packet may tell another time.
            start = bisect_left(times, self._first - _SLACK)
            start -= start == len(times) or times[start] > self._first + _SLACK
            times[: start + 1] = [self._first]
        if self._whole_avi:
            times = _on_grid(times, self._step, self.length)
        # Else packets and frames do not correspond, as in interlaced video with a packet for each field.
        agree = self._first is None or bisect_left(times, self._last - _SLACK) == self._count - 1
        self._times = times if agree else []
        self._total = len(self._times) or self.length


def _on_grid(times: list[float], step: float, count: int) -> list[float]:
    """The times of the frames of an AVI file that was not cut off.

    It has a frame for each step, and `count` is right; FFmpeg joins a damaged packet to the next one.
    """
    regular = all(abs((time - times[0]) / step % 1 - 0.5) > 0.4 for time in times)
    return [times[0] + step * number for number in range(count)] if times and regular else times

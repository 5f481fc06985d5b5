"""Annotated video out: .mp4 files that appear only when they are known to play."""

from __future__ import annotations

from contextlib import suppress
from math import isfinite
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from ..files import AtomicFile, is_special, naming
from .h264 import H264Encoder, has_h264

# MPEG-4 Part 2 keeps the time base in 16 bits and the sides of a frame in 13.
_MAX_TIME_BASE = 65535
_MAX_SIDE = 8191
# OpenCV takes rates up to 0.001 for none at all.
_MIN_FPS = 0.002


class VideoWriter:
    """Writes RGB frames to an .mp4 file.

    A context manager. The file appears under its name, whole and playable, when the block is left, also by an exception
    or an interrupt: it then holds the frames written so far. With no frame written there is no file, and an
    existing one stays. The last row or column of frames of odd height or width is dropped.

    Args:
        path: ends in .mp4, or is a device or pipe. See `AtomicFile` for links, devices and pipes.
        fps: frames a second, rounded to what MPEG-4 can state: three decimals below 65.5, none from 6553.6 on.
        codec: "mp4v" is MPEG-4 Part 2, the one mp4 encoder every OpenCV wheel has, which browsers do not play; "h264",
            which they play, needs the extra `video`; "best" is h264 where that is installed, else mp4v.

    Attributes:
        codec: "h264" or "mp4v".

    Raises:
        ValueError: a name that does not end in .mp4; no rate; frames that change size.
        OSError: no video can be written there. On leaving the block: not all frames arrived on the disk, so that an
            existing file stays.
    """

    def __init__(self, path: str | Path, fps: float, codec: str = "mp4v"):
        self.path, self.fps = Path(path), representable_fps(fps)
        if codec not in ("best", "h264", "mp4v"):
            raise ValueError(f"codec {codec!r} is none of best, h264, mp4v")
        if codec == "h264" and not has_h264():
            raise ValueError("H.264 needs PyAV: pip install 'ostrack_fast[video]', or choose the codec mp4v")
        self.codec = ("h264" if has_h264() else "mp4v") if codec == "best" else codec
        check_video_path(self.path)
        self.count = 0
        self.size: tuple[int, int] | None = None  # width and height of the frames
        self._writer: cv2.VideoWriter | None = None
        self._encoder: H264Encoder | None = None

    def __enter__(self) -> VideoWriter:
        with naming(self.path):
            self._file = AtomicFile(self.path, ".mp4")
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append a frame, (h,w,3) uint8 RGB."""
        size = (frame.shape[1], frame.shape[0])
        if self.size is None:
            if max(size) > _MAX_SIDE:
                raise OSError(f"{self.path}: MPEG-4 video holds sides up to {_MAX_SIDE}, but the frames are {size}")
            self._begin(size)
        if size != self.size:
            # OpenCV itself would drop such frames without a word.
            raise ValueError(f"frames change from {self.size} to {size}, but a video has one size: resize them")
        if self._encoder is not None:
            with naming(self.path):
                self._encoder.write(frame)
        elif self._writer is not None:
            self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self.count += 1

    def _begin(self, size: tuple[int, int]) -> None:
        """Choose the encoder: H.264 has no frames of a single row or column."""
        self.size = size
        if self.codec == "h264" and min(size) >= 2:
            self._encoder = H264Encoder(self._file.name, self.fps, size)
        else:
            self.codec = "mp4v"
            self._writer = cv2.VideoWriter(self._file.name, cv2.VideoWriter.fourcc(*"mp4v"), self.fps, size)
            if not self._writer.isOpened():
                raise OSError(f"OpenCV {cv2.__version__} cannot write a video of frames {size} to {self.path}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if self._writer is not None:
                self._writer.release()
            if self._encoder is not None:
                # What did not arrive on the disk is seen below.
                with suppress(OSError):
                    self._encoder.close()
            if self.count:
                self._check()
                with naming(self.path):
                    self._file.publish()

    def _check(self) -> None:
        """Open the finished file and count its frames: OpenCV reports no failed write."""
        video = cv2.VideoCapture(self._file.name, cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])  # packets, not decoded
        found = 0
        while video.grab():
            found += 1
        video.release()
        plays = cv2.VideoCapture(self._file.name)
        if found != self.count or not plays.read()[0]:
            raise OSError(
                f"{self.path} cannot be written: of {self.count} frames {found} arrived on the disk. Is it full, or "
                "the size of files limited? An earlier file of that name is still there"
            )


def check_video_path(path: Path) -> None:
    """Raise ValueError unless the name is one `VideoWriter` can write."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a video to write")
    if path.suffix.lower() != ".mp4" and not is_special(path):
        raise ValueError(f"the video must be an .mp4 file, got {path}")


def representable_fps(fps: float) -> float:
    """The nearest rate that MPEG-4's time base, 16 bits, and OpenCV's search for it, in powers of ten, can state."""
    if not (isfinite(fps) and fps > 0):
        raise ValueError(f"{fps} frames a second is no rate")
    fps = min(max(fps, _MIN_FPS), _MAX_TIME_BASE)
    base = next(base for base in (1000, 100, 10, 1) if round(fps * base) <= _MAX_TIME_BASE)
    return round(fps * base) / base

"""Frames in from a video file, a folder of images or a camera; annotated video out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from math import isfinite
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from .data.images import IMAGE_SUFFIXES, find_images, read_image
from .files import publish, temporary_beside

# For sources that state no rate: image folders, some cameras and damaged headers.
DEFAULT_FPS = 25.0


@dataclass
class FrameSource:
    """Frames (h,w,3) uint8 RGB, to be iterated once.

    Args:
        name: what is being read, for messages.
        fps: frames a second; `DEFAULT_FPS` where the source does not say.
        size: width and height of the first frame, pixels.
        length: number of frames: exact for folders, what the header claims for files, None for cameras and where
            the header claims nothing.
    """

    name: str
    fps: float
    size: tuple[int, int]
    length: int | None
    frames: Iterator[np.ndarray]

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.frames


def open_source(source: str | Path | int) -> FrameSource:
    """Open a video file, a folder of images (in natural order: 2 before 10), or a camera by its number.

    Raises:
        FileNotFoundError: there is no such file, folder or camera.
        ValueError: no frame can be read from it. While iterating: an image of the folder cannot be read.
    """
    path = Path(str(source))
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return _open_capture(str(path), f"{path}", _file_problem)
    if str(source).isdecimal():
        return _open_capture(int(str(source)), f"camera {source}", _camera_problem)
    raise FileNotFoundError(f"{source} does not exist: give a video file, a folder of images or the number of a camera")


def _open_folder(folder: Path) -> FrameSource:
    paths = find_images(folder)
    if not paths:
        raise ValueError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    first = read_image(paths[0])
    frames = chain([first], map(read_image, paths[1:]))
    return FrameSource(str(folder), DEFAULT_FPS, (first.shape[1], first.shape[0]), len(paths), frames)


def _open_capture(target: str | int, name: str, problem: Callable[[str], Exception]) -> FrameSource:
    capture = cv2.VideoCapture(target)
    # The size of a real frame: the header's ignores rotation, and a file that opens may still hold nothing.
    first = capture.read()[1] if capture.isOpened() else None
    if first is None:
        capture.release()
        raise problem(name)
    fps, length = capture.get(cv2.CAP_PROP_FPS), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    return FrameSource(
        name=name,
        fps=fps if isfinite(fps) and 0 < fps <= 1000 else DEFAULT_FPS,
        size=(first.shape[1], first.shape[0]),
        length=length if isinstance(target, str) and length > 0 else None,
        frames=_captured(capture, first),
    )


def _file_problem(name: str) -> Exception:
    return ValueError(f"{name} cannot be read as a video: it is damaged, empty, or of a kind OpenCV cannot decode")


def _camera_problem(name: str) -> Exception:
    return FileNotFoundError(f"{name} cannot be opened: is it connected, and not in use by another program?")


def _captured(capture: cv2.VideoCapture, frame: np.ndarray | None) -> Iterator[np.ndarray]:
    try:
        while frame is not None:
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            frame = capture.read()[1]
    finally:
        capture.release()


class VideoWriter:
    """Writes RGB frames to an .mp4 file (MPEG-4 Part 2, the one mp4 encoder every OpenCV wheel has).

    A context manager. The file appears under its name, whole and playable, when the block is left, also by an exception
    or an interrupt: it then holds the frames written so far. With no frame written there is no file, and an
    existing one stays. OpenCV drops the last row or column of frames of odd height or width.

    Raises:
        ValueError: a name that does not end in .mp4; frames that change size. OSError: no video can be written there.
    """

    def __init__(self, path: str | Path, fps: float):
        self.path, self.fps = Path(path), fps
        check_video_path(self.path)
        self.count = 0
        self._writer: cv2.VideoWriter | None = None
        self._size: tuple[int, ...] = ()

    def __enter__(self) -> VideoWriter:
        self._temporary = temporary_beside(self.path)
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append a frame, (h,w,3) uint8 RGB."""
        if self._writer is None:
            self._size = frame.shape
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._temporary), code, self.fps, (frame.shape[1], frame.shape[0]))
            if not self._writer.isOpened():
                raise OSError(f"OpenCV {cv2.__version__} cannot write a video of frames {frame.shape} to {self.path}")
        if frame.shape != self._size:
            # OpenCV itself would drop such frames without a word.
            raise ValueError(f"frames change from {self._size} to {frame.shape}, but a video has one size: resize them")
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self.count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()
        if self.count:
            publish(self._temporary, self.path)
        else:
            self._temporary.unlink(missing_ok=True)


def check_video_path(path: Path) -> None:
    """Raise ValueError unless the name is one `VideoWriter` can write."""
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"the video must be an .mp4 file, got {path}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a video to write")

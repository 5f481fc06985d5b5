"""Where frames come from, by the name the user gives: a folder, a file, a camera, a stream, a pipe."""

from __future__ import annotations

import os
import re
import stat
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from time import monotonic
from urllib.parse import unquote_to_bytes
from urllib.request import Request, urlopen

import numpy as np

from ..data.images import IMAGE_SUFFIXES, find_images, read_image
from ..files import exists
from .capture import SILENCE, Capture
from .pipe import Pipe

# For sources that state no rate: image folders, some cameras and damaged headers.
DEFAULT_FPS = 25.0
# Rates beyond are a time base taken for a rate; MPEG-4 holds none beyond.
_MAX_FPS = 65535
# Addresses of what is as a rule a file, and waits.
_FILES = ("http://", "https://", "file://", "ftp://")


@dataclass
class FrameSource:
    """Frames (h,w,3) uint8 RGB, to be iterated once.

    Args:
        name: what is being read, for messages.
        fps: frames a second; `DEFAULT_FPS` where the source does not say.
        size: width and height of the first frame, pixels.
        length: number of frames: exact for folders, what the header claims for files, None for cameras and where
            the header claims nothing.
        frames: those that can be decoded.
        broken: numbers, counted from 0, of the frames that could not be decoded and are left out of `frames`. It grows
            while `frames` is iterated, always before the frame that follows.
        live: a camera or a stream, which does not wait for whoever reads it.
        cut_off: tells, once all frames are read, whether the header claims later ones.
    """

    name: str
    fps: float
    size: tuple[int, int]
    length: int | None
    frames: Iterator[np.ndarray]
    broken: list[int] = field(default_factory=list)
    live: bool = False
    cut_off: Callable[[], bool] = lambda: False

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.frames


def open_source(source: str | Path | int) -> FrameSource:
    """Open what frames come from. A frame that cannot be decoded is skipped and listed in `FrameSource.broken`.

    Args:
        source: a video file; a folder of images (in natural order: 2 before 10); a camera by its number or device; a
            stream by its address (rtsp://, http://, ...); a named pipe, or "-" for standard input.

    Raises:
        FileNotFoundError: there is no such file, folder or camera. OSError: it cannot be read.
        ValueError: no frame can be read from it.
    """
    text = os.fspath(source) if isinstance(source, Path) else str(source)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        return _open_stream(text)
    path = Path("/dev/stdin" if text == "-" else text)
    if text and path.is_dir():
        return _open_folder(path)
    kind = path.stat().st_mode if text and exists(path) else 0
    if stat.S_ISREG(kind):
        with open(path, "rb"):
            pass  # or say why not: OpenCV does not
        problem = f"{path} cannot be read as a video: it is damaged, empty, or of a kind OpenCV cannot decode"
        return _from_capture(Capture.of_file(path), str(path), ValueError(problem))
    if stat.S_ISFIFO(kind):
        name = "standard input" if text == "-" else text
        problem = f"what comes from {name} cannot be read as a video: it is damaged, empty, or of no known kind"
        return _from_capture(Capture.of_pipe(Pipe(open(path, "rb", buffering=0))), name, ValueError(problem))
    if text.isdecimal() or (stat.S_ISCHR(kind) and re.fullmatch(r"/dev/video\d+", text)):
        return _open_camera(text)
    if kind:
        raise ValueError(f"{source} is no video: it is a device or a socket")
    raise FileNotFoundError(
        f"{text or 'a source without a name'} does not exist: give a video file, a folder of images, the number of a "
        "camera, or an address such as rtsp://..."
    )


def _open_camera(camera: str) -> FrameSource:
    name = f"camera {camera}"
    problem = FileNotFoundError(f"{name} cannot be opened: is it connected, and not in use by another program?")
    if camera.isdecimal() and int(camera) >= 2**31:
        raise problem
    return _from_capture(Capture(int(camera) if camera.isdecimal() else camera), name, problem, live=True)


def _open_folder(folder: Path) -> FrameSource:
    paths = find_images(folder)
    if not paths:
        raise ValueError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    broken: list[int] = []
    problems: list[Exception] = []
    frames = _readable(paths, broken, problems)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"no image of {folder} can be read: {problems[0]}")
    return FrameSource(
        str(folder), DEFAULT_FPS, (first.shape[1], first.shape[0]), len(paths), _with_first(first, frames), broken
    )


def _readable(paths: list[Path], broken: list[int], problems: list[Exception]) -> Iterator[np.ndarray]:
    for number, path in enumerate(paths):
        try:
            frame = read_image(path)
        except (OSError, ValueError) as error:
            broken.append(number)
            problems.append(error)
        else:
            yield frame


def _with_first(first: np.ndarray, others: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    # No itertools.chain: whoever stops in the middle can close a generator.
    yield first
    yield from others


def _open_stream(address: str) -> FrameSource:
    secret = re.search(r"//([^/@]*)@", address)
    name = address.replace(secret[1] + "@", "", 1) if secret else address
    problem = OSError(f"{name} cannot be read as a video: is it reachable, and a stream that OpenCV can decode?")
    begin = monotonic()
    try:
        return _from_capture(Capture(address, stream=True), name, problem, live=not address.startswith(_FILES))
    except OSError:
        # A server that does not answer will not do so when asked in another way.
        if not address.startswith(("http://", "https://")) or monotonic() - begin > 0.9 * SILENCE:
            raise
    # A server that sends files only from the beginning: FFmpeg cannot look for the index at the end.
    try:
        request = Request(name)
        if secret:
            request.add_header("Authorization", "Basic " + b64encode(unquote_to_bytes(secret[1])).decode())
        pipe = Pipe(urlopen(request, timeout=SILENCE))
    except (OSError, ValueError, HTTPException) as error:
        raise OSError(f"{name} cannot be read: {error}") from None
    return _from_capture(Capture.of_pipe(pipe), name, problem)


def _from_capture(capture: Capture, name: str, problem: Exception, live: bool = False) -> FrameSource:
    frames = capture.frames()
    # The size of a real frame: the header's ignores rotation, and a file that opens may still hold nothing.
    first = next(frames, None)
    if first is None:
        raise problem
    return FrameSource(
        name=name,
        fps=capture.fps if 0 < capture.fps <= _MAX_FPS else DEFAULT_FPS,
        size=(first.shape[1], first.shape[0]),
        length=capture.length if not live and capture.length > 0 else None,
        frames=_with_first(first, frames),
        broken=capture.broken,
        live=live,
        cut_off=capture.cut_off,
    )

"""What one user of the server has open: a video or a webcam, its targets, and what was tracked."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan
from threading import Lock, RLock
from typing import BinaryIO, cast

import cv2
import numpy as np

from ..inputs import Box, checked_box
from ..tracker import MultiTracker, SearchRegion, TrackResult
from ..video.h264 import H264Encoder
from ..visualization import annotate, fit
from .stored import StoredVideo

_WEBCAM_FPS = 15
_MAX_SIDE = 4096


@dataclass(frozen=True)
class Limits:
    """What the server grants.

    Args:
        upload_bytes: size of one video.
        frames: length of one video, or of what is recorded from a webcam.
        targets: of one user at a time.
        sessions: users at a time.
        idle_seconds: a session that nobody used for so long is closed.
        seconds: a session is closed after this time whatever happens.
    """

    upload_bytes: int = 512 << 20
    frames: int = 20_000
    targets: int = 8
    sessions: int = 4
    idle_seconds: float = 300
    seconds: float = 3600


def unnamed_file() -> BinaryIO:
    """A new temporary file without a name: nothing is left of it, however this process ends."""
    return cast(BinaryIO, tempfile.TemporaryFile())


@dataclass
class Target:
    """One target of a session.

    Args:
        given: the boxes that the user drew, by frame.
        results: of every frame that was tracked or given.
        followed: its number in the tracker; -1 before it has a template.
        template: the frame that its template is of.
    """

    given: dict[int, Box] = field(default_factory=dict)
    results: dict[int, TrackResult] = field(default_factory=dict)
    followed: int = -1
    template: int = -1


class Session(ABC):
    """Targets on numbered frames; any box may be drawn anew at any frame. Methods may be called from any thread.

    Args:
        tracker: of this session alone.
        limits: see `Limits`.

    Attributes:
        size: width and height of the frames; None before the first.
        regions: where the last tracked frame was searched, by target.
    """

    def __init__(self, tracker: MultiTracker, limits: Limits):
        self.tracker, self.limits = tracker, limits
        self.size: tuple[int, int] | None = None
        self.targets: dict[int, Target] = {}
        self.regions: dict[int, SearchRegion] = {}
        self.lock = RLock()
        self._count = 0

    @abstractmethod
    def frame(self, number: int) -> np.ndarray:
        """A frame of this session, (h,w,3) uint8 RGB. Raises IndexError where it is not here any more, or not yet."""

    def give(self, number: int, target: int | None, box: object) -> int:
        """Take a box for a target in a frame, or for a new target: None. What was tracked after it is forgotten.

        Returns the target's number. Raises IndexError, KeyError, TypeError, ValueError for what there is none of.
        """
        with self.lock:
            frame = self.frame(number)
            place = checked_box(box, *frame.shape[:2])
            if target is None:
                if len(self.targets) >= self.limits.targets:
                    raise ValueError(f"{self.limits.targets} targets are followed already: drop one first")
                target, self._count = self._count, self._count + 1
                self.targets[target] = Target()
            one = self._target(target)
            one.given[number] = place
            following = min((other for other in one.given if other > number), default=None)
            one.results = {
                other: result
                for other, result in one.results.items()
                if other < number or (following is not None and other >= following)
            }
            one.results[number] = TrackResult(place, nan, False)
            self._start(one, frame, number)
            return target

    def drop(self, target: int) -> None:
        """Forget a target and all its boxes. Raises KeyError for one there is not."""
        with self.lock:
            one = self._target(target)
            self.tracker.drop(one.followed)
            del self.targets[target]
            self.regions.pop(target, None)

    def advance(self, number: int, frame: np.ndarray) -> bool:
        """Track every target that has a box in the frame before into this one; False where nothing was left to do."""
        with self.lock:
            self.regions = {}
            waiting = {
                name: one
                for name, one in self.targets.items()
                if number not in one.results and number - 1 in one.results
            }
            if not waiting:
                return False
            for one in waiting.values():
                # The user may have gone back to before a box that was drawn later.
                source = max(given for given in one.given if given < number)
                if one.template != source:
                    self._start(one, self.frame(source), source)
            self.tracker.place({one.followed: one.results[number - 1].box for one in waiting.values()})
            found = self.tracker.track(frame)
            for name, one in waiting.items():
                one.results[number] = found[one.followed]
                self.regions[name] = self.tracker.search_region(one.followed)
            return True

    def at(self, number: int) -> dict[int, TrackResult]:
        """The boxes of a frame, by target."""
        with self.lock:
            return {name: one.results[number] for name, one in self.targets.items() if number in one.results}

    def table(self) -> str:
        """All boxes as CSV: frame and target (from 0), left, top, width and height in pixels, score, lost."""
        lines = ["frame,target,x,y,width,height,score,lost\n"]
        with self.lock:
            rows = sorted((number, name) for name, one in self.targets.items() for number in one.results)
            for number, name in rows:
                result = self.targets[name].results[number]
                numbers = ",".join(f"{value:.3f}" for value in (*result.box, result.score))
                lines.append(f"{number},{name},{numbers},{int(result.lost)}\n")
        return "".join(lines)

    @abstractmethod
    def film(self) -> BinaryIO:
        """The annotated video as MP4, in an unnamed file open at its start. Raises ValueError where there is none."""

    @abstractmethod
    def close(self) -> None:
        """Free what the session holds."""

    def _target(self, target: int) -> Target:
        if target not in self.targets:
            raise KeyError(f"there is no target {target}")
        return self.targets[target]

    def _start(self, one: Target, frame: np.ndarray, number: int) -> None:
        """Take the target's template from a frame in which its box was given."""
        added = self.tracker.add(frame, one.given[number])
        if one.followed >= 0:
            self.tracker.drop(one.followed)
        one.followed, one.template = added, number


class VideoSession(Session):
    """A session on a video that the user sent."""

    def __init__(self, tracker: MultiTracker, limits: Limits, file: BinaryIO):
        super().__init__(tracker, limits)
        self.video = StoredVideo(file, limits.frames)
        self.size = self.video.size
        # Not `lock`, which tracking holds: frames are read meanwhile.
        self._reading = Lock()

    def frame(self, number: int) -> np.ndarray:
        with self._reading:
            return self.video.frame(number)

    def film(self) -> BinaryIO:
        tracked = sorted({number for one in self.targets.values() for number in one.results})
        if not tracked:
            raise ValueError("nothing is tracked yet: draw a box and play")
        file = unnamed_file()
        encoder = H264Encoder(file, self.video.fps, self.video.size)
        for number in range(tracked[0], tracked[-1] + 1):
            encoder.write(_drawn(self.frame(number), self.at(number), self.video.size))
        encoder.close()
        file.seek(0)
        return file

    def close(self) -> None:
        with self.lock, self._reading:
            self.video.close()


class WebcamSession(Session):
    """A session on pictures that come one by one; what is drawn on them is recorded as they come."""

    def __init__(self, tracker: MultiTracker, limits: Limits):
        super().__init__(tracker, limits)
        self.count = 0
        self._last: np.ndarray | None = None
        self._file = unnamed_file()
        self._encoder: H264Encoder | None = None

    def frame(self, number: int) -> np.ndarray:
        if self._last is None or number != self.count - 1:
            raise IndexError("of a webcam, boxes can be drawn on the picture that came last")
        return self._last

    def take(self, jpeg: bytes) -> int:
        """Track into the next picture, a JPEG file. Returns its number.

        Raises ValueError: it is no picture, too large, or the recording is as long as it may be.
        """
        if self.count >= self.limits.frames:
            raise ValueError(f"a webcam is followed for {self.limits.frames} pictures: download them and start anew")
        frame = _decoded(jpeg)
        with self.lock:
            if self._last is not None:
                self._record()
            number, self.count = self.count, self.count + 1
            self._last = frame
            self.size = (frame.shape[1], frame.shape[0])
            self.advance(number, frame)
        return number

    def film(self) -> BinaryIO:
        with self.lock:
            if self._encoder is None:
                raise ValueError("nothing is recorded yet")
            self._encoder.close()
            self._encoder, done = None, self._file
            # What comes after is a new recording.
            self._file = unnamed_file()
        done.seek(0)
        return done

    def close(self) -> None:
        with self.lock:
            if self._encoder is not None:
                self._encoder.close()
                self._encoder = None
            self._file.close()

    def _record(self) -> None:
        """The picture before goes to the recording when the next one comes: until then its boxes may be drawn anew."""
        last = cast(np.ndarray, self._last)
        if self._encoder is None:
            self._film_size = (last.shape[1], last.shape[0])
            self._encoder = H264Encoder(self._file, _WEBCAM_FPS, self._film_size)
        self._encoder.write(_drawn(last, self.at(self.count - 1), self._film_size))


def _decoded(jpeg: bytes) -> np.ndarray:
    """A JPEG file's picture, (h,w,3) uint8 RGB. Raises ValueError."""
    if jpeg[:3] != b"\xff\xd8\xff":
        raise ValueError("a webcam's pictures must come as JPEG")
    # A few bytes may claim a picture of gigabytes: what it claims is read first.
    small = 0 < max(_claimed_size(jpeg)) <= _MAX_SIDE
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) if small else None
    if picture is None or max(picture.shape) > _MAX_SIDE or min(picture.shape[:2]) < 16:
        raise ValueError(f"the webcam's picture is damaged, or has sides beyond 16 to {_MAX_SIDE} pixels")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _claimed_size(jpeg: bytes) -> tuple[int, int]:
    """Height and width in a JPEG file's header (ITU-T T.81, B.2.2); zeros where it has none."""
    at = 2
    while at + 9 <= len(jpeg):
        if jpeg[at] != 0xFF:
            break
        marker = jpeg[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(jpeg[at + 5 : at + 7], "big"), int.from_bytes(jpeg[at + 7 : at + 9], "big")
        # A marker may be preceded by bytes that fill; all that come before a frame have a length.
        at += 1 if marker == 0xFF else 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return 0, 0


def _drawn(frame: np.ndarray, results: Mapping[int, TrackResult], size: tuple[int, int]) -> np.ndarray:
    for result in results.values():
        frame = annotate(frame, result)
    return fit(frame, size)

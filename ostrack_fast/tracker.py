"""Tracking in video: a box in the first frame, boxes in all that follow; one target or many."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from math import isnan
from numbers import Real
from pathlib import Path
from threading import RLock
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import numpy as np
import torch

from .box_prior import BoxPrior, Shape
from .boxes import crop_window
from .engine import Engine
from .inputs import Box, check_frame, checked_box, checked_numbers
from .model import OSTrack
from .redetection import Presence, Redetection
from .smoothing import Smoothing

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T", bound="_OnEngine")


@dataclass(frozen=True)
class TrackResult(Mapping):
    """Where the target is in one frame.

    Also a mapping with the published keys: `result["target_bbox"]` is `box` as a list, `result["score"]` the score.

    Args:
        box: left, top, width, height in pixels; may reach outside the frame's edge by less than its size.
        score: the network's confidence at the chosen cell, 0 to 1, before the window that favours small motion.
        lost: the score is below the tracker's `lost_below`, and the tracker goes on searching all the same. With
            `redetect`: the target counts as lost, and `box` is where it was last seen (see `Redetection`).
    """

    box: Box
    score: float
    lost: bool

    def __getitem__(self, key: str) -> Any:
        return {"target_bbox": list(self.box), "score": self.score}[key]

    def __iter__(self) -> Iterator[str]:
        return iter(("target_bbox", "score"))

    def __len__(self) -> int:
        return 2


@dataclass(frozen=True)
class SearchRegion:
    """The square part of a frame in which a target was looked for.

    Args:
        left, top, side: in pixels of the frame; it may reach beyond the frame.
        grid: cells along each side.
        candidates: cells, numbered row by row, that elimination left.
    """

    left: int
    top: int
    side: int
    grid: int
    candidates: tuple[int, ...]


class _Lock:
    """A reentrant lock; pickled and copied as a new one."""

    def __init__(self) -> None:
        self._lock = RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[_Lock], tuple[()]]:
        return _Lock, ()


def _alone(method: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[T, P], R]:
    """A method of a tracker that other threads' calls wait for."""

    @wraps(method)
    def run(self: T, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._lock:
            return method(self, *args, **kwargs)

    return run


def _settings(name: str, given: bool | S | None, kind: type[S]) -> S | None:
    """What an option of a tracker asks for: True is the default settings, False none."""
    if given is None or isinstance(given, (bool, np.bool_)):
        return kind() if given else None
    if not isinstance(given, kind):
        raise TypeError(f"{name} must be True, False or a {kind.__name__}, got {reprlib.repr(given)}")
    return given


def _threshold(score: float) -> float:
    if not isinstance(score, Real):
        raise TypeError(f"lost_below must be a number, a score, got {reprlib.repr(score)}")
    if isnan(score):
        raise ValueError("lost_below is NaN: it must be a score")
    return score


class _OnEngine:
    """What trackers have in common: an engine, and when a result counts as lost."""

    _lock: _Lock

    def __init__(
        self,
        model_or_name: OSTrack | str | Path = "small",
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        lost_below: float = 0.4,
        candidate_elimination: bool = True,
        redetect: bool | Redetection = False,
        box_prior: bool | BoxPrior = False,
        smoothing: bool | Smoothing = False,
    ):
        self._lock = _Lock()
        given = isinstance(model_or_name, OSTrack)
        model = model_or_name if isinstance(model_or_name, OSTrack) else OSTrack.from_pretrained(model_or_name)
        smoothed = _settings("smoothing", smoothing, Smoothing)
        self.lost_below = _threshold(lost_below)
        self._redetection = _settings("redetect", redetect, Redetection)
        self._presences: list[Presence] = []  # of each of the engine's rows; none without re-detection
        self._box_prior = _settings("box_prior", box_prior, BoxPrior)
        self._shapes: list[Shape] = []  # of each of the engine's rows; none without a prior
        self.engine = Engine(model, device, dtype, candidate_elimination, not given, smoothed)
        self.cfg = model.cfg

    @property
    def device(self) -> torch.device:
        return self.engine.device

    @property
    def dtype(self) -> torch.dtype:
        return self.engine.dtype

    def _add(self, frame: np.ndarray, place: Box) -> None:
        """Follow one more target, in the engine's last row."""
        row = self.engine.add(frame, place)
        if self._box_prior:
            try:
                self._shapes.append(Shape.calibrated(self.engine, self._box_prior, frame, row, place))
            except BaseException:
                self.engine.drop(row)
                raise
        if self._redetection:
            self._presences.append(Presence.begin(self.engine, self._redetection, frame, place))

    def _drop(self, row: int) -> None:
        """Forget the target of a row. As in the engine, the last one takes the free row."""
        self.engine.drop(row)
        each: tuple[list[Any], ...] = (self._shapes, self._presences)
        for of_rows in filter(None, each):
            of_rows[row] = of_rows[-1]
            of_rows.pop()

    def _result(self, row: list[float]) -> TrackResult:
        x, y, w, h, score = row
        return TrackResult((x, y, w, h), score, score < self.lost_below)

    def _reported(self, rows: list[list[float]], frames: Sequence[np.ndarray]) -> list[list[float]]:
        """What the engine found in each row's frame as it is reported."""
        if not self._shapes:
            return rows
        return [shape.corrected(row, frame) for shape, row, frame in zip(self._shapes, rows, frames, strict=True)]

    def _results(self, frame: np.ndarray) -> list[TrackResult]:
        """The results of all rows in the next frame."""
        rows, frames = self.engine.step(frame), [frame] * self.engine.count
        if not self._presences:
            return [self._result(row) for row in self._reported(rows, frames)]
        rows = [list(each.judge(frame, row, rows[row])) for row, each in enumerate(self._presences)]
        self.engine.place([row[:4] for row in rows])
        shown = [[*each.known, row[4]] if each.lost else row for each, row in zip(self._presences, rows, strict=True)]
        return [
            TrackResult(cast(Box, tuple(row[:4])), row[4], each.lost)
            for each, row in zip(self._presences, self._reported(shown, frames), strict=True)
        ]


class Tracker(_OnEngine):
    """OSTrack's inference on frames of any size: of the published models, exactly as published.

    It follows one target in one video: calls of several threads run one after the other, in the order they come. Give
    each video a tracker of its own; they may share a model and run at the same time.

    Args:
        model_or_name: an `OSTrack`, which is read and not changed, or a name or path for `OSTrack.from_pretrained`.
        device: "auto" (a CUDA GPU if there is one), "cpu", "cuda", "cuda:1" or a torch.device.
        dtype: of the matmuls: "auto" (see `devices.resolve_dtype`), "float32", "float16", "bfloat16", "int8" or one of
            these as torch.dtype. float32 is exact.
        lost_below: scores below this mark a result as lost; what the default finds with the shipped weights is in their
            model card.
        candidate_elimination: False keeps all candidates, as if the model's configuration eliminated none.
        redetect: True, or settings, to keep a lost target's box where it was last seen, search the whole frame for it,
            and go on once it is verified; see `Redetection`. False is the published behaviour.
        box_prior: True, or settings, to draw the shape of the boxes reported towards that of the first one, see
            `BoxPrior`; the search is the same. False is the published behaviour.
        smoothing: True, or settings, to prefer a box of nearly the size and shape of the one before, see `Smoothing`.
            False is the published behaviour.

    Raises:
        TypeError: what is no model, no flag, no settings or no number.
        ValueError: an unknown or unavailable device or dtype, or weights that do not fit.
        FileNotFoundError: no such weights.
    """

    @classmethod
    def from_onnx(
        cls,
        path: str | Path,
        lost_below: float = 0.4,
        providers: Sequence[str] | None = None,
        box_prior: bool | BoxPrior = False,
        smoothing: bool | Smoothing = False,
    ) -> Tracker:
        """A tracker whose network is an ONNX file of `ostrack-fast export`, run by onnxruntime.

        Args:
            path: the file, exported with a batch of 1 or of any size.
            providers: onnxruntime's execution providers, best first; by default the CPU's alone.
            box_prior, smoothing: as `Tracker`.

        Raises:
            FileNotFoundError: no such file. ValueError: not such a file, or no such provider here.
            ImportError: a package of the extra `export` is missing.
        """
        from .export.engine import OnnxEngine

        tracker = cls.__new__(cls)
        tracker._lock = _Lock()
        tracker.lost_below = _threshold(lost_below)
        tracker._redetection, tracker._presences = None, []
        tracker._box_prior, tracker._shapes = _settings("box_prior", box_prior, BoxPrior), []
        tracker.engine = OnnxEngine(path, providers, _settings("smoothing", smoothing, Smoothing))
        tracker.cfg = tracker.engine.cfg
        return tracker

    @_alone
    def initialize(self, frame: np.ndarray, box: Sequence[float] | Mapping[str, Sequence[float]]) -> None:
        """Take the target from the first frame.

        Args:
            frame: (h,w,3) uint8 RGB.
            box: left, top, width, height of the target in pixels, or the published `{"init_bbox": [x, y, w, h]}`.

        Raises:
            TypeError, ValueError: a frame or box that is none, saying why. The target there was before stays.
        """
        check_frame(frame)
        before, place = self.engine.count, checked_box(box, *frame.shape[:2])
        self._add(frame, place)
        for _ in range(before):
            self._drop(0)

    @_alone
    def track(self, frame: np.ndarray) -> TrackResult:
        """Find the target in the next frame, (h,w,3) uint8 RGB; its size may differ from earlier frames'.

        Raises:
            RuntimeError: called before `initialize`.
            TypeError, ValueError: the frame is no RGB image, saying why.
            FloatingPointError: the network's output is not finite.
        """
        if not self.engine.count:
            raise RuntimeError("no target yet: call initialize(frame, box) before track(frame)")
        check_frame(frame)
        return self._results(frame)[0]


class MultiTracker(_OnEngine):
    """Many targets in one video, followed as one batch; targets come and go at any frame.

    Arguments as `Tracker`, and calls of several threads take turns as well. Each target's results are those a `Tracker`
    of its own would give.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._targets: list[int] = []  # target of each of the engine's rows
        self._next = 0
        self._searched: dict[int, Sequence[float]] = {}  # the box before the last frame, by target

    @property
    def targets(self) -> list[int]:
        """The targets now followed, in the order they came."""
        return sorted(self._targets)

    @_alone
    def add(self, frame: np.ndarray, box: Sequence[float] | Mapping[str, Sequence[float]]) -> int:
        """Follow a target from this frame on; arguments and errors as `Tracker.initialize`. Returns its number."""
        check_frame(frame)
        place = checked_box(box, *frame.shape[:2])
        self._add(frame, place)
        self._targets.append(self._next)
        self._next += 1
        return self._targets[-1]

    @_alone
    def drop(self, target: int) -> None:
        """Follow a target no longer. Raises KeyError if it is not followed."""
        row = self._row(target)
        self._drop(row)
        self._searched.pop(target, None)
        self._targets[row] = self._targets[-1]
        self._targets.pop()

    def _row(self, target: int) -> int:
        if target not in self._targets:
            raise KeyError(f"target {target} is not followed: there are {self.targets}")
        return self._targets.index(target)

    @_alone
    def place(self, boxes: Mapping[int, Sequence[float]]) -> None:
        """Set where targets were last seen, xywh in pixels by target: the next frame is searched around these boxes.

        Raises:
            KeyError: a target that is not followed. TypeError, ValueError: a box that is none, as `initialize`.
        """
        if not isinstance(boxes, Mapping):
            raise TypeError(f"boxes must be given by target, {{target: box}}, got {type(boxes).__name__}")
        for target in boxes:
            self._row(target)
        boxes = {target: checked_numbers(box) for target, box in boxes.items()}
        rows = [boxes.get(target, now) for target, now in zip(self._targets, self.engine.boxes, strict=True)]
        self.engine.place(rows)
        for target, box in boxes.items():
            if self._presences:
                self._presences[self._row(target)].move(box)

    @_alone
    def search_region(self, target: int) -> SearchRegion:
        """Where the last `track` searched for a target, and what elimination left. Raises KeyError, RuntimeError."""
        row = self._row(target)
        around = self._searched.get(target)
        if around is None:
            raise RuntimeError(f"target {target} was not searched for yet: call track(frame) first")
        left, top, side = crop_window(around, self.cfg.search_factor)
        return SearchRegion(left, top, side, self.cfg.search_grid, tuple(self.engine.candidates(row)))

    @_alone
    def track(self, frame: np.ndarray) -> dict[int, TrackResult]:
        """Find all targets in the next frame; errors as `Tracker.track`. Without targets there are no results."""
        check_frame(frame)
        if not self._targets:
            return {}
        searched = dict(zip(self._targets, self.engine.boxes, strict=True))
        found = zip(self._targets, self._results(frame), strict=True)
        self._searched = searched
        return dict(sorted(found, key=lambda each: each[0]))

    @_alone
    def track_each(self, frames: Mapping[int, np.ndarray]) -> dict[int, TrackResult]:
        """Find targets that are in different videos, as one batch.

        Args:
            frames: of every target the next frame of its own video, (h,w,3) uint8 RGB; sizes may differ.

        Raises:
            TypeError: no mapping.
            ValueError: not one frame for every target, or a tracker that finds lost targets again, which takes one
                video. Other errors as `Tracker.track`.
        """
        if self._redetection:
            raise ValueError("targets in different videos are tracked without redetect")
        if not isinstance(frames, Mapping):
            raise TypeError(f"frames must be given by target, {{target: frame}}, got {type(frames).__name__}")
        if sorted(frames) != self.targets:
            raise ValueError(f"frames for the targets {sorted(frames)}, but those followed are {self.targets}")
        for frame in frames.values():
            check_frame(frame)
        if not self._targets:
            return {}
        searched = dict(zip(self._targets, self.engine.boxes, strict=True))
        theirs = [frames[target] for target in self._targets]
        rows = self._reported(self.engine.step_each(theirs), theirs)
        self._searched = searched
        found = zip(self._targets, rows, strict=True)
        return {target: self._result(row) for target, row in sorted(found)}

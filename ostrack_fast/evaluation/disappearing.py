"""Made videos whose target goes away and comes back: the set that loss and re-detection are measured on.

Each scene is drawn from its seed alone, so that every machine has the same videos. The target is a textured shape with
soft edges that moves, turns and changes its size over a moving background, with camera noise. It is absent once:

* leaves: it moves out of the frame, and comes in again over any edge;
* covered: something larger moves in front of it, under which it moves on, out of sight;
* elsewhere: it fades away, and is back at another place of the frame from one frame to the next;
* distractors: it leaves while other shapes, one of them of its own form, stay in the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from math import cos, pi, sin

import cv2
import numpy as np
from numpy.typing import NDArray

from ..data.images import Image
from ..video import open_source

KINDS = ("leaves", "covered", "elsewhere", "distractors")
WIDTH, HEIGHT, FRAMES = 480, 270, 120
# Shares of the target's pixels that are seen: below the first it counts as absent, from the second on as returned.
ABSENT_BELOW, RETURNED_FROM = 0.1, 0.5

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Sprite:
    """A shape: `colour` (S,S,3) and `alpha` (S,S), float32 from 0 to 1."""

    colour: NDArray[np.float32]
    alpha: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Scene:
    """A made video.

    Args:
        name: kind and number.
        frames: all (HEIGHT,WIDTH,3) uint8 RGB.
        boxes: (FRAMES,4) xywh in pixels of the target inside the frame; NaN where less than `ABSENT_BELOW` is seen.
        seen: (FRAMES,) share of the target that is seen.
    """

    name: str
    frames: list[Image]
    boxes: Float
    seen: Float

    @property
    def returned(self) -> int:
        """Number of the first frame after the absence that shows enough of the target."""
        gone = int(np.argmax(self.seen < ABSENT_BELOW))
        return gone + int(np.argmax(self.seen[gone:] >= RETURNED_FROM))


def scenes(count: int, seed: int = 0) -> Iterator[Scene]:
    """`count` scenes, the kinds in turn."""
    for index in range(count):
        yield make_scene(KINDS[index % len(KINDS)], 1000 * seed + index)


def make_scene(kind: str, seed: int) -> Scene:
    """One scene of this kind."""
    random = np.random.default_rng([seed, KINDS.index(kind)])
    target = _sprite(random)
    backdrop, pan = _backdrop(random), random.uniform(0, 1, (2, 2))
    path, size, angle, strength = _motion(random, kind)
    gone, back = _absence(random)
    path = _with_absence(random, kind, path, size, gone, back)
    others = [_other(random, kind, target) for _ in range(3 if kind == "distractors" else 1)]
    cover = _sprite(random, corners=True)
    frames, boxes, seen = [], np.full((FRAMES, 4), np.nan), np.zeros(FRAMES)
    for index in range(FRAMES):
        share = index / (FRAMES - 1)
        canvas = _window(backdrop, (1 - share) * pan[0] + share * pan[1])
        for sprite, where, side in others:
            _paste(canvas, sprite, where[index], side, 0, 1)
        opacity = strength[index]
        if kind == "elsewhere" and gone <= index < back:
            opacity = 0.0
        shown = _paste(canvas, target, path[index], size[index], angle[index], opacity)
        full = float(shown.sum())
        shown = shown[_PAD : _PAD + HEIGHT, _PAD : _PAD + WIDTH].copy()
        if kind == "covered":
            over = _paste(canvas, cover, _cover_path(path, index, gone, back), 2.6 * size[index], 0, 1)
            shown *= 1 - over[_PAD : _PAD + HEIGHT, _PAD : _PAD + WIDTH]
        seen[index] = shown.sum() / full if full > 0 else 0
        if seen[index] >= ABSENT_BELOW:
            boxes[index] = _bounds(shown)
        view = canvas[_PAD : _PAD + HEIGHT, _PAD : _PAD + WIDTH]
        noise = random.standard_normal(view.shape, np.float32)
        frames.append((255 * view + 3 * noise + 0.5).clip(0, 255).astype(np.uint8))
    return Scene(f"{kind}-{seed}", frames, boxes, seen)


# Around the frame, so that what lies partly outside is drawn whole and measured.
_PAD = 140


def _absence(random: np.random.Generator) -> tuple[int, int]:
    gone = int(random.integers(30, 45))
    return gone, gone + int(random.integers(15, 40))


def _motion(random: np.random.Generator, kind: str) -> tuple[Float, Float, Float, Float]:
    """Centre (FRAMES,2), size, angle and opacity of the target while nothing makes it absent."""
    time = np.arange(FRAMES)
    size = random.uniform(40, 70) * (1 + 0.15 * np.sin(2 * pi * time / random.uniform(80, 160)))
    angle = random.uniform(5, 20) * np.sin(2 * pi * time / random.uniform(50, 120))
    reach = np.array([WIDTH, HEIGHT]) / 2 - 50
    turns, phase = random.uniform(120, 260, 2), random.uniform(0, 2 * pi, 2)
    path = np.array([WIDTH, HEIGHT]) / 2 + reach * np.sin(2 * pi * time[:, None] / turns + phase)
    return path, size, angle, np.ones(FRAMES)


def _with_absence(random: np.random.Generator, kind: str, path: Float, size: Float, gone: int, back: int) -> Float:
    """The path with the way out of the frame and in again, or with the jump to another place."""
    path = path.copy()
    if kind in ("leaves", "distractors"):
        out, into = _outside(random, path[gone]), _outside(random, path[back])
        steps = 10
        for step in range(steps + 1):
            path[gone - steps + step] += step / steps * (out - path[gone - steps + step])
            path[back - 1 + step] += (1 - step / steps) * (into - path[back - 1 + step])
        path[gone : back - 1] = out
    elif kind == "elsewhere":
        jump = _far_from(random, path[gone], size[gone])
        path[gone:] = np.clip(path[gone:] + jump - path[back], 45, [WIDTH - 45, HEIGHT - 45])
    return path


def _outside(random: np.random.Generator, near: Float) -> Float:
    """A place beyond an edge of the frame, chosen at random."""
    x, y = random.uniform(50, WIDTH - 50), random.uniform(50, HEIGHT - 50)
    return np.array([(-60.0, y), (WIDTH + 60.0, y), (x, -60.0), (x, HEIGHT + 60.0)][int(random.integers(4))])


def _far_from(random: np.random.Generator, place: Float, size: float) -> Float:
    """A place inside the frame, as far from the other as a search region reaches, if one of 50 tries is."""
    tries = random.uniform([50, 50], [WIDTH - 50, HEIGHT - 50], (50, 2))
    distance = np.abs(tries - place).max(1)
    far = tries[distance > 2.5 * size]
    return far[0] if len(far) else tries[distance.argmax()]


def _cover_path(path: Float, index: int, gone: int, back: int) -> Float:
    """The cover comes from above over the target, stays over it, and leaves to the left."""
    before, after = max(0, gone - index), max(0, index - back)
    return path[index] + np.array([-14.0 * after, -14.0 * before])


def _other(random: np.random.Generator, kind: str, target: Sprite) -> tuple[Sprite, Float, float]:
    """Something else in the picture: its look, path and size. The first distractor has the target's own form."""
    path = _motion(random, kind)[0]
    sprite = _sprite(random)
    if kind == "distractors" and random.random() < 0.5:
        sprite = Sprite(sprite.colour, target.alpha)
    return sprite, path, float(random.uniform(40, 70))


def _sprite(random: np.random.Generator, corners: bool = False, side: int = 128) -> Sprite:
    """A shape of random outline, colours and marks; `corners` makes it a rounded square."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    turn = np.arctan2(y, x)
    if corners:
        outline = np.minimum(1 / np.maximum(np.abs(np.cos(turn)), np.abs(np.sin(turn))), 1.25) * 0.75
    else:
        outline = 0.72 + sum(
            random.uniform(-0.11, 0.11) * np.cos(wave * turn + random.uniform(0, 2 * pi)) for wave in (2, 3, 4, 5)
        )
        squeeze = random.uniform(0.65, 1.0)
        outline = outline * np.sqrt((np.cos(turn) * squeeze) ** 2 + np.sin(turn) ** 2)
    inside = (np.hypot(x, y) < outline).astype(np.float32)
    colour = np.empty((side, side, 3), np.float32)
    colour[:] = random.uniform(0.1, 0.95, 3)
    for _ in range(int(random.integers(4, 9))):
        tone = tuple(float(value) for value in random.uniform(0.05, 1, 3))
        centre = tuple(int(value) for value in random.integers(20, side - 20, 2))
        if random.random() < 0.5:
            cv2.circle(colour, centre, int(random.integers(6, 24)), tone, -1, cv2.LINE_AA)
        else:
            end = tuple(int(value) for value in random.integers(0, side, 2))
            cv2.line(colour, centre, end, tone, int(random.integers(4, 14)), cv2.LINE_AA)
    light = random.uniform(0, 2 * pi)
    shading = 1 + 0.25 * (x * cos(light) + y * sin(light))
    colour = np.clip(colour * shading[..., None], 0, 1).astype(np.float32)
    return Sprite(colour, cv2.GaussianBlur(inside, (5, 5), 0))


def _paste(
    canvas: NDArray[np.float32], sprite: Sprite, centre: Float, size: float, angle: float, opacity: float
) -> NDArray[np.float32]:
    """Draw a sprite onto the padded canvas; returns its alpha there, as if it were opaque where `opacity` is not 0."""
    side, height, width = sprite.alpha.shape[0], *canvas.shape[:2]
    seen = np.zeros((height, width), np.float32)
    # Only the square that the turned sprite may reach is computed.
    reach = round(0.75 * size) + 2
    left, top = (int(value) for value in np.asarray(centre) + _PAD - reach)
    window = tuple(slice(max(low, 0), max(min(low + 2 * reach, end), 0)) for low, end in ((top, height), (left, width)))
    if not opacity or canvas[window].size == 0:
        return seen
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), angle, size / side)
    turn[:, 2] += np.asarray(centre) + _PAD - side / 2 - (window[1].start, window[0].start)
    shape = (canvas[window].shape[1], canvas[window].shape[0])
    alpha = cv2.warpAffine(sprite.alpha, turn, shape, flags=cv2.INTER_AREA)
    colour = cv2.warpAffine(sprite.colour, turn, shape, flags=cv2.INTER_AREA)
    canvas[window] += (opacity * alpha)[..., None] * (colour - canvas[window])
    seen[window] = alpha
    return seen


def _bounds(alpha: NDArray[np.float32]) -> tuple[float, float, float, float]:
    rows, columns = np.nonzero((alpha > 0.5).any(1))[0], np.nonzero((alpha > 0.5).any(0))[0]
    if not len(rows):
        return np.nan, np.nan, np.nan, np.nan
    return columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]


@cache
def _demo_frames() -> list[Image]:
    with resources.as_file(resources.files("ostrack_fast") / "assets" / "demo.mp4") as path:
        return list(open_source(path))[::12]


def _backdrop(random: np.random.Generator) -> NDArray[np.float32]:
    """A picture larger than the frame: of the demo video, or of soft noise and shapes."""
    size = (WIDTH + 2 * _PAD + 80, HEIGHT + 2 * _PAD + 60)
    if random.random() < 0.6:
        frames = _demo_frames()
        picture = frames[int(random.integers(len(frames)))]
        if random.random() < 0.5:
            picture = picture[:, ::-1]
        return cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR).astype(np.float32) / 255
    coarse = random.uniform(0.1, 0.9, (9, 14, 3)).astype(np.float32)
    picture = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    for _ in range(60):
        tone = tuple(float(value) for value in random.uniform(0.1, 0.9, 3))
        start = (int(random.integers(size[0])), int(random.integers(size[1])))
        end = (start[0] + int(random.integers(-60, 60)), start[1] + int(random.integers(-60, 60)))
        cv2.line(picture, start, end, tone, int(random.integers(2, 16)), cv2.LINE_AA)
    return cv2.GaussianBlur(picture, (5, 5), 0).clip(0, 1)


def _window(backdrop: NDArray[np.float32], at: Float) -> NDArray[np.float32]:
    """The part of the backdrop that the camera sees, with the padding around it; `at` runs from 0 to 1 on both axes."""
    left, top = at * np.array([80, 60])
    move = np.array([[1, 0, -left], [0, 1, -top]])
    return cv2.warpAffine(backdrop, move, (WIDTH + 2 * _PAD, HEIGHT + 2 * _PAD), flags=cv2.INTER_LINEAR)

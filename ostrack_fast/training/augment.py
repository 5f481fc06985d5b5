"""Augmentation of a template and search pair: what the published code does, and what a small training set needs more.

It has two halves. Where a pair is made, `Augment` draws everything, mirrors the uint8 crops and degrades them, before
their final resize: a degraded small crop that is then enlarged looks like a real small target, and costs less. Where
the network is, `normalized` changes the colours of a whole batch as they were drawn, on its device.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import cos, exp, pi, sin
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from ..data.images import Image
from ..ops.reference import IMAGE_MEAN, IMAGE_STD
from ..settings import check_ranges

_LEVELS = np.arange(256, dtype=np.float32)
_LUMA = (0.299, 0.587, 0.114)
# Drawing Gaussian noise costs more than the rest of a pair, so one fixed field is read at random offsets.
_NOISE_SIDE = 512
_NOISE = np.random.default_rng(0).standard_normal((_NOISE_SIDE, _NOISE_SIDE, 3)).astype(np.float32)


@dataclass(frozen=True)
class AugmentConfig:
    """Strengths and probabilities. The defaults are those of the published code; `robust()` suits small sets.

    Args:
        gray, flip: probability that both images become gray, are mirrored.
        flip_each: probability that one image alone is mirrored, drawn for each (0.5 in the published code).
        brightness: each image is multiplied by U(1 - brightness, 1 + brightness).
        gamma: standard deviation of the log exponent of each image's gray levels; black stays black.
        tint: standard deviation of the log gain of each colour channel, shared by both images.
        saturation: probability that the colours of both images are weakened or strengthened.
        low_resolution: probability that both images lose up to two thirds of their resolution.
        blur, motion_blur: probability, for each image, of a defocus or of a straight motion.
        noise, jpeg: probability that both images get Gaussian noise, compression artefacts.
        apart: probability that resolution, noise and compression are drawn for each image by itself: the first frame of
            a video may be clean and a later one not.

    Raises:
        ValueError: when a value lies outside [0, 1].
    """

    gray: float = 0.05
    flip: float = 0.5
    flip_each: float = 0.0
    brightness: float = 0.2
    gamma: float = 0.0
    tint: float = 0.0
    saturation: float = 0.0
    low_resolution: float = 0.0
    blur: float = 0.0
    motion_blur: float = 0.0
    noise: float = 0.0
    jpeg: float = 0.0
    apart: float = 0.0

    def __post_init__(self) -> None:
        check_ranges(self, **{field.name: (0, 1) for field in fields(self)})

    @classmethod
    def robust(cls) -> AugmentConfig:
        """Settings for few images: gray, blurred, noisy, compressed and low-resolution video is common in use."""
        return cls(
            gray=0.15,
            brightness=0.25,
            gamma=0.2,
            tint=0.06,
            saturation=0.25,
            low_resolution=0.12,
            blur=0.08,
            motion_blur=0.1,
            noise=0.2,
            jpeg=0.15,
        )


AUGMENTS: dict[str, AugmentConfig] = {"published": AugmentConfig(), "robust": AugmentConfig.robust()}
"""By the names that a training file's `augment` may give."""


class Augmented(NamedTuple):
    """An augmented image of a pair.

    Args:
        image: (n, n, 3) uint8 RGB, mirrored and degraded.
        flipped: whether it is mirrored; its box follows with `flip_box`.
        colours: (5,) float32, what `normalized` does to its colours: saturation (0 is gray), exponent of the levels,
            gain of each channel.
    """

    image: Image
    flipped: bool
    colours: NDArray[np.float32]


class Augment:
    """Draws one augmentation for a pair and applies it, but for the colours."""

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config

    def __call__(self, images: tuple[Image, Image], rng: Generator) -> tuple[Augmented, Augmented]:
        """The augmented (template, search).

        Args:
            images: two (n, n, 3) uint8 RGB crops, sizes may differ.
            rng: source of every random choice.
        """
        c = self.config
        draw = rng.random(8)  # the first six are used: what a seed draws stays the same from version to version
        saturation = 0.0 if draw[0] < c.gray else 1.6 * rng.random() if draw[1] < c.saturation else 1.0
        tint = np.exp(rng.standard_normal(3) * c.tint)
        shared = self._degradation(draw[2:5], rng)
        apart = bool(c.apart) and rng.random() < c.apart
        both = draw[5] < c.flip
        out = []
        for image in images:
            quality, sigma, detail = self._degradation(rng.random(3), rng) if apart else shared
            own = rng.random(4)
            if own[0] < c.blur:
                image = cv2.GaussianBlur(image, (0, 0), 0.5 + 1.2 * rng.random() * image.shape[0] / 128)
            if own[1] < c.motion_blur:
                image = motion_blur(image, rng.uniform(0.01, 0.06) * image.shape[0], rng.uniform(0, pi))
            if detail is not None:
                image = reduce_resolution(image, detail)
            gain = 1 + c.brightness * (2 * own[2] - 1)
            gamma = exp(c.gamma * rng.standard_normal())
            if sigma is not None:
                image = add_noise(image, sigma, rng)
            if quality is not None:
                image = compress(image, quality)
            flipped = bool(both) ^ bool(own[3] < c.flip_each)
            # Gray images stay gray.
            gains = gain * (tint if saturation else np.ones(3))
            colours = np.array([saturation, gamma, *gains], dtype=np.float32)
            out.append(Augmented(cv2.flip(image, 1) if flipped else image, flipped, colours))
        return out[0], out[1]

    def _degradation(self, draw: NDArray, rng: Generator) -> tuple[int | None, float | None, float | None]:
        """JPEG quality, deviation of the noise in gray levels, share of the resolution that is left; None for none."""
        c = self.config
        quality = int(rng.integers(20, 85)) if draw[0] < c.jpeg else None
        sigma = rng.uniform(2, 12) if draw[1] < c.noise else None
        detail = rng.uniform(0.33, 0.9) if draw[2] < c.low_resolution else None
        return quality, sigma, detail


class Normalizer:
    """Makes what the network takes of a batch of images, on their device.

    For levels v in [0, 1] each pixel becomes saturation * v + (1 - saturation) * luma, then v ** exponent * gain of
    the channel, clipped to [0, 1] after each, and is normalized with ImageNet's mean and deviation. The published code
    computes its brightness in floats, too.
    """

    def __init__(self, device: torch.device) -> None:
        self._luma, self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32, device=device) for values in (_LUMA, IMAGE_MEAN, IMAGE_STD)
        )

    def __call__(self, images: Tensor, colours: Tensor | None = None) -> Tensor:
        """Images (B,Z,Z,3) uint8 RGB -> (B,3,Z,Z) float32; their colours (B,5) are as `Augmented` says, or stay."""
        levels = images.float().div_(255)
        if colours is not None:
            saturation, exponent, gain = colours[:, None, None].split((1, 1, 3), dim=-1)
            luma = (levels * self._luma).sum(-1, keepdim=True)
            levels = torch.lerp(luma, levels, saturation).clamp_(0, 1).pow_(exponent).mul_(gain).clamp_(0, 1)
        return levels.sub_(self._mean).div_(self._std).permute(0, 3, 1, 2)


def flip_box(box: NDArray[np.float32]) -> NDArray[np.float32]:
    """The xywh box, in [0, 1] units of the crop, in the mirrored crop."""
    return np.array([1 - box[0] - box[2], box[1], box[2], box[3]], dtype=box.dtype)


def adjust(image: Image, brightness: float, gamma: float = 1.0, tint: NDArray | None = None) -> Image:
    """255 (v / 255) ** gamma * brightness * tint of the channel, rounded and clipped: black stays black."""
    level = (_LEVELS if gamma == 1 else 255 * (_LEVELS / 255) ** gamma) * brightness
    if tint is None or np.all(tint == 1):
        return cv2.LUT(image, np.clip(level + 0.5, 0, 255).astype(np.uint8))
    table = level[:, None] * np.asarray(tint, dtype=np.float32)
    return cv2.LUT(image, np.clip(table + 0.5, 0, 255).astype(np.uint8)[None])


def motion_blur(image: Image, length: float, angle: float) -> Image:
    """Mean along a straight line of `length` pixels at `angle` radians."""
    radius = int(np.ceil(length / 2))
    if radius < 1:
        return image
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1), dtype=np.float32)
    for t in np.linspace(-length / 2, length / 2, 2 * radius + 1):
        kernel[round(radius + t * sin(angle)), round(radius + t * cos(angle))] += 1
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)


def reduce_resolution(image: Image, share: float) -> Image:
    """Keep `share` of the rows and columns: scaled down and up again."""
    height, width = image.shape[:2]
    small = cv2.resize(image, (max(4, round(width * share)), max(4, round(height * share))))
    return cv2.resize(small, (width, height))


def add_noise(image: Image, sigma: float, rng: Generator) -> Image:
    """Add Gaussian noise of standard deviation `sigma` gray levels; images up to 512 pixels wide and high."""
    height, width = image.shape[:2]
    y, x = rng.integers(0, (_NOISE_SIDE - height + 1, _NOISE_SIDE - width + 1))
    return cv2.addWeighted(image, 1, _NOISE[y : y + height, x : x + width], sigma, 0, dtype=cv2.CV_8U)


def compress(image: Image, quality: int) -> Image:
    """JPEG there and back. RGB is passed as if it were BGR: the artefacts look alike."""
    done, data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, quality))
    if not done:
        raise RuntimeError(f"OpenCV could not encode an image of shape {image.shape} as JPEG")
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))

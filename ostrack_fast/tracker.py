"""Single-object tracking: a box in the first frame, boxes in all that follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import isfinite, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import ops
from .boxes import clip_xywh, crop_to_image, crop_window, image_to_crop
from .model import OSTrack, template_mask

Box = tuple[float, float, float, float]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# At least so many pixels of the box stay inside the frame (published `clip_box` call).
CLIP_MARGIN = 10


@dataclass(frozen=True)
class TrackResult(Mapping):
    """Where the target is in one frame.

    Also a mapping with the published keys: `result["target_bbox"]` is `box` as a list, `result["score"]` the score.

    Args:
        box: left, top, width, height in pixels; may reach outside the frame's edge by less than its size.
        score: the network's confidence at the chosen place, 0 to 1, before the window that favours small motion.
        lost: the score is below the tracker's `lost_below`. The tracker goes on searching all the same.
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


class Tracker:
    """OSTrack's inference, exactly as published, on frames of any size.

    Args:
        model_or_name: an `OSTrack`, or a name or path for `OSTrack.from_pretrained`. A model in training mode, of
            another dtype or on another device is copied, never changed.
        device: "auto" (a CUDA GPU if there is one), "cpu", "cuda", "cuda:1" or a torch.device.
        dtype: "auto" (see `resolve_dtype`), "float32", "float16", "bfloat16" or one of these as torch.dtype.
        lost_below: scores below this mark a result as lost.

    Raises:
        ValueError: an unknown or unavailable device or dtype, or weights that do not fit.
        FileNotFoundError: no such weights.
    """

    def __init__(
        self,
        model_or_name: OSTrack | str | Path = "small",
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        lost_below: float = 0.2,
    ):
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        if isinstance(model_or_name, OSTrack):
            own = model_or_name.backbone.norm.weight
            fits = (own.device, own.dtype, model_or_name.training) == (self.device, self.dtype, False)
            model = model_or_name if fits else deepcopy(model_or_name)
        else:
            model = OSTrack.from_pretrained(model_or_name)
        self.model = model.to(self.device, self.dtype).eval()
        self.cfg = model.cfg
        self.lost_below = lost_below
        self.window = hann_window(self.cfg.search_grid).to(self.device)
        self._box: Box | None = None
        self._template: Tensor | None = None
        self._template_mask: Tensor | None = None

    @torch.inference_mode()
    def initialize(self, frame: np.ndarray, box: Sequence[float] | Mapping[str, Sequence[float]]) -> None:
        """Take the target from the first frame.

        Args:
            frame: (h,w,3) uint8 RGB.
            box: left, top, width, height of the target in pixels, or the published `{"init_bbox": [x, y, w, h]}`.

        Raises:
            TypeError, ValueError: a frame or box that is none, saying why.
        """
        image, cfg = self._image(frame), self.cfg
        height, width = frame.shape[:2]
        start = checked_box(box.get("init_bbox") if isinstance(box, Mapping) else box, height, width)
        template, scale = self._crop(image, start, cfg.template_factor, cfg.template_size)
        mask = None
        if cfg.ce_layers:
            place = torch.tensor([start], dtype=torch.float32)
            place = image_to_crop(place, place, torch.tensor([scale]), cfg.template_size)
            mask = template_mask(cfg, place, self.device)
        self._template, self._template_mask = self.model.backbone.embed_template(template), mask
        self._box = start

    @torch.inference_mode()
    def track(self, frame: np.ndarray) -> TrackResult:
        """Find the target in the next frame, (h,w,3) uint8 RGB; its size may differ from earlier frames'.

        Raises:
            RuntimeError: called before `initialize`.
            TypeError, ValueError: the frame is no RGB image, saying why.
            FloatingPointError: the network's output is not finite.
        """
        if self._box is None or self._template is None:
            raise RuntimeError("no target yet: call initialize(frame, box) before track(frame)")
        image, before, cfg = self._image(frame), self._box, self.cfg
        search, scale = self._crop(image, before, cfg.search_factor, cfg.search_size)
        _, _, maps = self.model.forward_tokens(self._template, search, self._template_mask)
        found, confidence = ops.decode(*maps, self.window)
        # One transfer for everything: each would wait for the GPU.
        *place, score = torch.cat((found[0], confidence)).tolist()
        if not all(map(isfinite, (*place, score))):
            raise FloatingPointError(
                f"the network's output is not finite in {self.dtype}: try dtype='float32', and if it stays, the "
                "weights are damaged"
            )
        height, width = frame.shape[:2]
        self._box = clip_xywh(crop_to_image(place, before, scale, cfg.search_size), height, width, CLIP_MARGIN)
        return TrackResult(self._box, score, score < self.lost_below)

    def _image(self, frame: np.ndarray) -> Tensor:
        check_frame(frame)
        # torch takes neither negative strides (a BGR frame flipped by [..., ::-1]) nor read-only memory.
        return torch.from_numpy(np.require(frame, requirements=["C", "W"])).to(self.device)

    def _crop(self, image: Tensor, box: Box, factor: float, size: int) -> tuple[Tensor, float]:
        around = torch.tensor([box], dtype=torch.float64, device=self.device)
        patch, _ = ops.crop(image, around, factor, size, self.dtype)
        # The scale again from the box, because reading the op's own would wait for the GPU.
        return patch, size / crop_window(box, factor)[2]


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device a name stands for, with its index; "auto" is the first CUDA GPU if there is one, else the CPU.

    Raises:
        ValueError: not a device, or not one that is here.
    """
    available = torch.cuda.is_available()
    if device == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if available else torch.device("cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        resolved = None
    if resolved is None or resolved.type not in ("cpu", "cuda"):
        raise ValueError(f"device {str(device)!r} is not supported: choose auto, cpu, cuda or cuda:N")
    if resolved.type == "cpu":
        return torch.device("cpu")
    if not available:
        raise ValueError(f"device {str(device)!r} is not here: PyTorch {torch.__version__} finds no CUDA GPU")
    index = torch.cuda.current_device() if resolved.index is None else resolved.index
    if index >= torch.cuda.device_count():
        raise ValueError(f"device {str(device)!r} is not here: PyTorch finds {torch.cuda.device_count()} CUDA GPUs")
    return torch.device("cuda", index)


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype a name stands for. "auto" is float16 on a GPU and float32 on a CPU, where halves are slow or coarse.

    Raises:
        ValueError: none of `DTYPES`.
    """
    if dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    resolved = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if resolved is None or resolved not in DTYPES.values():
        raise ValueError(f"dtype {str(dtype)!r} is not supported: choose auto, {', '.join(DTYPES)}")
    return resolved


def hann_window(grid: int) -> Tensor:
    """The weight (F,F) of every place of the score map: 0.5 (1 - cos(2 pi i / (F+1))), i = 1..F, along both sides.

    Source: published `hann2d` with `centered=True`; falls off towards the border, never to zero.
    """
    side = 0.5 * (1 - torch.cos(2 * pi / (grid + 1) * torch.arange(1, grid + 1).float()))
    return side[:, None] * side[None, :]


def check_frame(frame: np.ndarray) -> None:
    """Raise TypeError or ValueError unless the frame is (h,w,3) uint8."""
    if not isinstance(frame, np.ndarray):
        raise TypeError(f"a frame must be a numpy array (h,w,3) uint8 RGB, got {type(frame).__name__}")
    if frame.dtype != np.uint8:
        raise TypeError(f"a frame must be uint8, 0 to 255, got {frame.dtype}: scale and convert it")
    if frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"a frame must be RGB of shape (h,w,3), got {frame.shape}: convert it, e.g. with cv2.cvtColor")
    if 0 in frame.shape:
        raise ValueError(f"the frame is empty: shape {frame.shape}")


def checked_box(box: Sequence[float] | None, height: int, width: int) -> Box:
    """The box as four floats. Raises TypeError or ValueError unless it is a target inside a frame of this size."""
    try:
        x, y, w, h = map(float, box)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"a box must be four numbers x, y, width, height, or {{'init_bbox': them}}, got {box!r}"
        ) from error
    values = (x, y, w, h)
    if not all(map(isfinite, values)):
        raise ValueError(f"the box {values} is not finite")
    if w <= 0 or h <= 0:
        raise ValueError(f"the box {values} is empty: width and height must be positive (x, y, width, height)")
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        raise ValueError(f"the box {values} lies outside the frame of {width} x {height} pixels")
    if w > 10 * width or h > 10 * height:
        raise ValueError(f"the box {values} is more than ten times as large as the frame of {width} x {height} pixels")
    return values

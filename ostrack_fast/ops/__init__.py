"""The ops: everything the kernels do. Each checks its arguments, picks an implementation and calls it.

Letters: B batch, H heads, D head dimension, C = H*D, T template tokens, S search tokens, N = T+S, K kept,
F side of the search token grid, Z side of a crop in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import reference
from .dispatch import BACKENDS, OPS, forced_backend, problem, select, use

__all__ = ["attention", "crop", "decode", "eliminate", "reference", "report", "restore", "use"]


def attention(qkv: Tensor, template_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """softmax(Q K' / sqrt D) V, and how much the template attends to each search token.

    Args:
        qkv: (B,N,3,H,D) float, the output of the qkv projection as it lies in memory.
        template_mask: (T,) or (B,T) bool, the template rows that score the candidates; None for no score.

    Returns:
        out (B,N,C) in the dtype of `qkv`; score (B,S), float32 (float64 for float64 input): the probability of each
        search key averaged over heads and the chosen rows (equation 6 of the paper), or None.
    """
    if qkv.dim() != 5 or qkv.shape[2] != 3 or not qkv.is_floating_point():
        raise ValueError(f"qkv must be a float tensor (B,N,3,H,D), got {_describe(qkv)}")
    if template_mask is not None:
        rows = template_mask.shape[-1] if template_mask.dim() else 0
        shapes = ((rows,), (qkv.shape[0], rows))
        if (
            template_mask.dtype != torch.bool
            or tuple(template_mask.shape) not in shapes
            or not 0 < rows <= qkv.shape[1]
        ):
            raise ValueError(
                f"template_mask must be bool (T,) or (B,T) with T at most N for qkv {tuple(qkv.shape)}, "
                f"got {_describe(template_mask)}"
            )
        _same_device(qkv=qkv, template_mask=template_mask)
        if template_mask.device.type == "cpu" and not template_mask.any(-1).all():
            raise ValueError("template_mask chooses no row for some sample: no template token would score candidates")
    return select("attention", {"qkv": qkv, "template_mask": template_mask})(qkv, template_mask)


def eliminate(tokens: Tensor, score: Tensor, ids: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the `keep` search tokens of highest score, in order of falling score (section 3.3 of the paper).

    Equal scores keep their order, and -0.0 equals 0.0. The ranking carries no gradient; the gathered tokens do.

    Args:
        tokens: (B,T+S,C) float, template tokens first. score: (B,S) float. ids: (B,S) int64, places on the grid.

    Returns:
        tokens (B,T+keep,C), ids (B,keep), removed (B,S-keep).

    Raises:
        ValueError: also for a NaN score on the CPU; on a GPU, where asking would wait for it, NaN ranks last.
    """
    if tokens.dim() != 3 or score.dim() != 2 or score.shape[0] != tokens.shape[0] or score.shape[1] > tokens.shape[1]:
        raise ValueError(f"tokens (B,T+S,C) and score (B,S) needed, got {_describe(tokens)} and {_describe(score)}")
    if ids.shape != score.shape or ids.dtype != torch.int64:
        raise ValueError(f"ids must be int64 of the shape of score {tuple(score.shape)}, got {_describe(ids)}")
    if not 1 <= keep <= score.shape[1]:
        raise ValueError(f"keep={keep} must lie in [1, {score.shape[1]}]")
    _same_device(tokens=tokens, score=score, ids=ids)
    if score.device.type == "cpu" and score.isnan().any():
        raise ValueError("score holds NaN: candidates cannot be ranked; look for NaN in the weights or the images")
    arguments = {"tokens": tokens, "score": score, "ids": ids, "keep": keep}
    return select("eliminate", arguments)(tokens, score, ids, keep)


def restore(tokens: Tensor, ids: Tensor, grid: int) -> Tensor:
    """Put search tokens (B,K,C) at their places `ids` (B,K) of a (B,C,F,F) map, zeros elsewhere (section 3.3)."""
    if tokens.dim() != 3 or ids.shape != tokens.shape[:2] or ids.dtype != torch.int64:
        raise ValueError(f"tokens (B,K,C) and int64 ids (B,K) needed, got {_describe(tokens)} and {_describe(ids)}")
    if tokens.shape[1] > grid * grid:
        raise ValueError(f"{tokens.shape[1]} tokens do not fit a grid of {grid} x {grid}")
    _same_device(tokens=tokens, ids=ids)
    return select("restore", {"tokens": tokens, "ids": ids, "grid": grid})(tokens, ids, grid)


def crop(
    frame: Tensor, box: Tensor, factor: float, size: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Square crops of side ceil(sqrt(w*h)*factor) around boxes, resized and ImageNet-normalized.

    Bit-exact with the published crop: zero border, which includes the frame's last row and column, and OpenCV's
    bilinear resize on uint8.

    Args:
        frame: (h,w,3) uint8 RGB. box: (B,4) float64 xywh, pixels. size: Z. dtype: of the patches.

    Returns:
        patch (B,3,Z,Z), and scale (B,) float64: crop pixels per frame pixel.
    """
    if frame.dim() != 3 or frame.shape[2] != 3 or frame.dtype != torch.uint8 or 0 in frame.shape:
        raise ValueError(f"frame must be uint8 (h,w,3) and not empty, got {_describe(frame)}")
    if box.dim() != 2 or box.shape[1] != 4 or box.dtype != torch.float64:
        raise ValueError(f"box must be float64 (B,4), got {_describe(box)}")
    if factor <= 0 or size <= 0:
        raise ValueError(f"factor={factor} and size={size} must be positive")
    _same_device(frame=frame, box=box)
    if box.device.type == "cpu" and not (box.isfinite().all() and (box[:, 2:] > 0).all()):
        raise ValueError(f"boxes must be finite with positive width and height, got {box.tolist()}")
    arguments = {"frame": frame, "box": box, "factor": factor, "size": size, "dtype": dtype}
    return select("crop", arguments)(frame, box, factor, size, dtype)


def decode(
    score_map: Tensor, size_map: Tensor, offset_map: Tensor, window: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The box at the arg-max of window * score, the first one among equals.

    Args:
        score_map: (B,1,F,F). size_map: (B,2,F,F), width and height in units of the crop.
        offset_map: (B,2,F,F), cells. window: (F,F), or None for no window.

    Returns:
        box (B,4) cxcywh in units of the crop; score (B,), the score map's own value at that place.
    """
    shape = (score_map.shape[0], 2, *score_map.shape[-2:])
    square = score_map.dim() == 4 and score_map.shape[1] == 1 and score_map.shape[2] == score_map.shape[3]
    if not square or tuple(size_map.shape) != shape or tuple(offset_map.shape) != shape:
        raise ValueError(
            "maps (B,1,F,F), (B,2,F,F), (B,2,F,F) needed, got "
            f"{_describe(score_map)}, {_describe(size_map)}, {_describe(offset_map)}"
        )
    if window is not None and window.shape != score_map.shape[2:]:
        raise ValueError(f"window must be {tuple(score_map.shape[2:])}, got {_describe(window)}")
    _same_device(score_map=score_map, size_map=size_map, offset_map=offset_map, window=window)
    arguments = {"score_map": score_map, "size_map": size_map, "offset_map": offset_map, "window": window}
    return select("decode", arguments)(score_map, size_map, offset_map, window)


def report() -> list[tuple[str, str, str, list[tuple[str, str]]]]:
    """What runs here: rows (op, device, chosen backend, [(backend not chosen, why), ...])."""
    devices = ["cpu"] + ([f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else [])
    return [_report_row(op, device) for device in devices for op in OPS]


def _report_row(op: str, device: str) -> tuple[str, str, str, list[tuple[str, str]]]:
    arguments = _example(op, device)
    reasons = {backend: problem(backend, op, arguments) for backend in BACKENDS}
    chosen = select(op, arguments).__module__.removeprefix("ostrack_fast.").removeprefix("ops.").split(".")[0]
    chosen = "triton" if chosen == "kernels" else chosen
    forced = forced_backend()
    other = f"{forced} is asked for" if forced else f"{chosen} comes first"
    return op, device, chosen, [(name, reason or other) for name, reason in reasons.items() if name != chosen]


def _example(op: str, device: str) -> dict[str, Any]:
    """Arguments as OSTrack-256's first eliminating block has them."""

    def floats(*shape: int) -> Tensor:
        return torch.zeros(shape, device=device)

    ids = torch.arange(256, device=device)[None]
    examples: dict[str, Callable[[], dict[str, Any]]] = {
        "crop": lambda: {
            "frame": torch.zeros(8, 8, 3, dtype=torch.uint8, device=device),
            "box": torch.ones(1, 4, dtype=torch.float64, device=device),
            "factor": 4.0,
            "size": 256,
            "dtype": torch.float32,
        },
        "attention": lambda: {
            "qkv": floats(1, 320, 3, 12, 64),
            "template_mask": torch.ones(64, dtype=torch.bool, device=device),
        },
        "eliminate": lambda: {"tokens": floats(1, 320, 768), "score": floats(1, 256), "ids": ids, "keep": 180},
        "restore": lambda: {"tokens": floats(1, 256, 768), "ids": ids, "grid": 16},
        "decode": lambda: {
            "score_map": floats(1, 1, 16, 16),
            "size_map": floats(1, 2, 16, 16),
            "offset_map": floats(1, 2, 16, 16),
            "window": floats(16, 16),
        },
    }
    return examples[op]()


def _describe(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def _same_device(**tensors: Tensor | None) -> None:
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        where: Sequence[str] = [f"{name} on {device}" for name, device in devices.items()]
        raise ValueError(f"all tensors must be on one device, got {', '.join(where)}")

"""The ops: everything the kernels do. Each checks its arguments, picks an implementation and calls it.

Letters: B batch, H heads, D head dimension, C = H*D, T template tokens, S search tokens, N = T+S, K kept,
F side of the search token grid, Z side of a crop in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, sqrt
from typing import Any

import torch
from torch import Tensor

from . import library, reference
from .dispatch import BACKENDS, LAYERS, OPS, checked_function, choose, forced_backend, problem, use

__all__ = ["advance", "attention", "crop", "decode", "eliminate", "reference", "report", "restore", "use"]

_LONGEST = 2.0**28  # pixels: kernels compute places in 32-bit integers


def _traced(tensor: Tensor) -> bool:
    """Whether there is a program to trace, or shapes to find, instead of numbers to compute."""
    return torch.compiler.is_compiling() or tensor.is_meta


def attention(qkv: Tensor, template_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """softmax(Q K' / sqrt D) V, and how much the template attends to each search token.

    Args:
        qkv: (B,N,3,H,D) float, the output of the qkv projection as it lies in memory.
        template_mask: (T,) or (B,T) bool, the template rows that score the candidates; None for no score.

    Returns:
        out (B,N,C) in the dtype of `qkv`; score (B,S), float32 (float64 for float64 input): the probability of each
        search key averaged over heads and the chosen rows (equation 6 of the paper), or None. The score is there to
        rank: like the published code's it is a constant to autograd where Triton runs eagerly.

    Raises:
        ValueError: also for a mask that chooses no row, on the CPU; on a GPU such a score is 0.
    """
    if _traced(qkv):
        _check_attention(qkv, template_mask)
        return library.attention(qkv, template_mask)
    run = checked_function("attention", _check_attention, qkv, template_mask)
    if template_mask is not None and template_mask.is_cpu:
        chosen = template_mask.any() if template_mask.dim() == 1 else template_mask.any(-1).all()
        if not chosen.item():
            raise ValueError("template_mask chooses no row for some sample: no template token would score candidates")
    return run(qkv, template_mask)


def _check_attention(qkv: Tensor, template_mask: Tensor | None) -> dict[str, Any]:
    if qkv.dim() != 5 or qkv.shape[2] != 3 or 0 in qkv.shape[1:] or not qkv.is_floating_point():
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
    return _on_one_device(qkv=qkv, template_mask=template_mask)


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
    if _traced(tokens):
        _check_eliminate(tokens, score, ids, keep)
        return library.eliminate(tokens, score, ids, keep)
    run = checked_function("eliminate", _check_eliminate, tokens, score, ids, keep)
    if score.is_cpu and score.numel() and (largest := score.max().item()) != largest:  # max() hands NaN on
        raise ValueError("score holds NaN: candidates cannot be ranked; look for NaN in the weights or the images")
    return run(tokens, score, ids, keep)


def _check_eliminate(tokens: Tensor, score: Tensor, ids: Tensor, keep: int) -> dict[str, Any]:
    if tokens.dim() != 3 or score.dim() != 2 or score.shape[0] != tokens.shape[0] or score.shape[1] > tokens.shape[1]:
        raise ValueError(f"tokens (B,T+S,C) and score (B,S) needed, got {_describe(tokens)} and {_describe(score)}")
    if not tokens.is_floating_point() or not score.is_floating_point() or tokens.shape[2] == 0:
        raise ValueError(f"tokens and score must be float, got {_describe(tokens)} and {_describe(score)}")
    if ids.shape != score.shape or ids.dtype != torch.int64:
        raise ValueError(f"ids must be int64 of the shape of score {tuple(score.shape)}, got {_describe(ids)}")
    if not 1 <= keep <= score.shape[1]:
        raise ValueError(f"keep={keep} must lie in [1, {score.shape[1]}]")
    return _on_one_device(tokens=tokens, score=score, ids=ids) | {"keep": keep}


def restore(
    tokens: Tensor,
    ids: Tensor,
    grid: int,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-6,
    channels_last: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Put search tokens at their places on the grid, exact zeros elsewhere (section 3.3 of the paper).

    Args:
        tokens: (B,K,C) float. ids: (B,K) int64, different places in [0, F*F). grid: F.
        norm_weight, norm_bias: (C,) float, a LayerNorm of the tokens first, in at least float32; both or neither.
        eps: of that LayerNorm.
        channels_last: lay the channels of a place side by side in memory.
        dtype: of the map; that of the tokens when None.

    Returns:
        map (B,C,F,F), contiguous, or in channels-last memory.

    Raises:
        ValueError: also for a place off the grid, on the CPU; on a GPU asking would wait for it.
    """
    values = (tokens, ids, grid, norm_weight, norm_bias, eps, channels_last, dtype)
    if _traced(tokens):
        _check_restore(*values)
        return library.restore(*values)
    run = checked_function("restore", _check_restore, *values)
    if ids.is_cpu and ids.numel():
        low, high = (end.item() for end in ids.aminmax())
        if low < 0 or high >= grid * grid:
            raise ValueError(f"ids must lie in [0, {grid * grid}) on a grid of {grid} x {grid}, reach {low} to {high}")
    return run(*values)


def _check_restore(
    tokens: Tensor,
    ids: Tensor,
    grid: int,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    channels_last: bool,
    dtype: torch.dtype | None,
) -> dict[str, Any]:
    if tokens.dim() != 3 or ids.shape != tokens.shape[:2] or ids.dtype != torch.int64 or tokens.shape[2] == 0:
        raise ValueError(f"tokens (B,K,C) and int64 ids (B,K) needed, got {_describe(tokens)} and {_describe(ids)}")
    if not tokens.is_floating_point() or not (dtype is None or dtype.is_floating_point):
        raise ValueError(f"tokens and map must be float, got {_describe(tokens)} and dtype={dtype}")
    if grid < 1 or tokens.shape[1] > grid * grid:
        raise ValueError(f"{tokens.shape[1]} tokens do not fit a grid of {grid} x {grid}")
    norm = {"norm_weight": norm_weight, "norm_bias": norm_bias}
    for name, value in norm.items():
        if (value is None) != (norm_weight is None):
            raise ValueError("LayerNorm needs norm_weight and norm_bias, or neither: got one of them")
        if value is not None and (value.shape != tokens.shape[2:] or not value.is_floating_point()):
            raise ValueError(f"{name} must be float ({tokens.shape[2]},), got {_describe(value)}")
    if not eps >= 0:
        raise ValueError(f"eps={eps} must not be negative")
    named = _on_one_device(tokens=tokens, ids=ids, **norm)
    return named | {"grid": grid, "eps": eps, "channels_last": channels_last, "dtype": dtype}


def crop(
    frame: Tensor, box: Tensor, factor: float, size: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Square crops of side ceil(sqrt(w*h)*factor) around boxes, resized and ImageNet-normalized.

    Bit-exact with the published crop: zero border, which includes the frame's last row and column, and OpenCV's
    bilinear resize on uint8.

    Args:
        frame: (h,w,3) uint8 RGB. box: (B,4) float64 xywh, pixels. size: Z. dtype: of the patches.

    Returns:
        patch (B,3,Z,Z), and scale (B,) float64: crop pixels per frame pixel. No gradient.

    Raises:
        ValueError: also for a box that is not finite, has no area or reaches beyond 2**28 pixels, on the CPU; on a
            GPU the patch of such a box is border.
    """
    if _traced(frame):
        _check_crop(frame, box, factor, size, dtype)
        return library.crop(frame, box, factor, size, dtype)
    run = checked_function("crop", _check_crop, frame, box, factor, size, dtype)
    if box.is_cpu:
        for x, y, w, h in box.tolist():
            # Comparisons with NaN are false, so that it does not pass.
            placed = -_LONGEST <= x <= _LONGEST and -_LONGEST <= y <= _LONGEST
            if not (placed and 0 < w <= _LONGEST and 0 < h <= _LONGEST and 0 < sqrt(w * h) * factor <= _LONGEST):
                raise ValueError(
                    f"each box must be finite, with positive width and height and a crop of at most 2**28 pixels "
                    f"at factor={factor}, got {[x, y, w, h]}"
                )
    return run(frame, box, factor, size, dtype)


def _check_crop(frame: Tensor, box: Tensor, factor: float, size: int, dtype: torch.dtype) -> dict[str, Any]:
    if frame.dim() != 3 or frame.shape[2] != 3 or frame.dtype != torch.uint8 or 0 in frame.shape:
        raise ValueError(f"frame must be uint8 (h,w,3) and not empty, got {_describe(frame)}")
    if box.dim() != 2 or box.shape[1] != 4 or box.dtype != torch.float64:
        raise ValueError(f"box must be float64 (B,4), got {_describe(box)}")
    if not 0 < factor < inf or not size > 0:
        raise ValueError(f"factor={factor} and size={size} must be positive")
    if not dtype.is_floating_point:
        raise ValueError(f"the dtype of normalized patches must be a float one, got {dtype}")
    return _on_one_device(frame=frame, box=box) | {"factor": factor, "size": size, "dtype": dtype}


def decode(
    score_map: Tensor, size_map: Tensor, offset_map: Tensor, window: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The box at the arg-max of window * score, the first one among equals.

    Args:
        score_map: (B,1,F,F) float; NaN counts as less than anything. size_map: (B,2,F,F), width and height in units
            of the crop. offset_map: (B,2,F,F), cells. window: (F,F), or None for no window.

    Returns:
        box (B,4) cxcywh in units of the crop; score (B,), the score map's own value at that place. Both float32
        (float64 if a map is): half precision would resolve a place to no better than a pixel of the crop.
    """
    if _traced(score_map):
        _check_decode(score_map, size_map, offset_map, window)
        return library.decode(score_map, size_map, offset_map, window)
    return checked_function("decode", _check_decode, score_map, size_map, offset_map, window)(
        score_map, size_map, offset_map, window
    )


def _check_decode(score_map: Tensor, size_map: Tensor, offset_map: Tensor, window: Tensor | None) -> dict[str, Any]:
    maps = {"score_map": score_map, "size_map": size_map, "offset_map": offset_map}
    square = score_map.dim() == 4 and score_map.shape[1] == 1 and score_map.shape[2] == score_map.shape[3] > 0
    shape = (score_map.shape[0], 2, *score_map.shape[-2:]) if square else ()
    floats = all(value.is_floating_point() for value in maps.values())
    if not square or not floats or tuple(size_map.shape) != shape or tuple(offset_map.shape) != shape:
        described = ", ".join(map(_describe, maps.values()))
        raise ValueError(f"float maps (B,1,F,F), (B,2,F,F), (B,2,F,F) needed, got {described}")
    if window is not None and window.shape != score_map.shape[2:]:
        raise ValueError(f"window must be {tuple(score_map.shape[2:])}, got {_describe(window)}")
    return _on_one_device(**maps, window=window)


def advance(found: Tensor, box: Tensor, frame_size: tuple[int, int], factor: float, margin: float) -> Tensor:
    """From what `decode` found in the crops around `box` to the targets' boxes in the frame.

    Args:
        found: (B,4) float32 cxcywh in units of the crop. box: (B,4) float64 xywh, pixels. frame_size: (h,w).
        factor: of `crop`. margin: at least so many pixels of a box stay inside the frame (published `clip_box`).

    Returns:
        (B,4) float64 xywh, pixels; NaN where `found` is.
    """
    if _traced(found):
        _check_advance(found, box, frame_size, factor, margin)
        return reference.advance(found, box, frame_size, factor, margin)  # a compiler fuses it itself
    return checked_function("advance", _check_advance, found, box, frame_size, factor, margin)(
        found, box, frame_size, factor, margin
    )


def _check_advance(
    found: Tensor, box: Tensor, frame_size: tuple[int, int], factor: float, margin: float
) -> dict[str, Any]:
    if found.dim() != 2 or found.shape[1] != 4 or found.shape != box.shape or box.dtype != torch.float64:
        raise ValueError(f"found (B,4) and float64 box (B,4) needed, got {_describe(found)} and {_describe(box)}")
    if len(frame_size) != 2 or min(frame_size) <= 0 or not 0 < factor < inf or not 0 <= margin < inf:
        raise ValueError(f"frame_size={frame_size} and factor={factor} must be positive, margin={margin} not negative")
    arguments = {"frame_size": frame_size, "factor": factor, "margin": margin}
    return _on_one_device(found=found, box=box) | arguments


def report() -> list[tuple[str, str, str, list[tuple[str, str]]]]:
    """What runs here: rows (op, device, chosen backend, [(backend not chosen, why), ...])."""
    devices = ["cpu"] + ([f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else [])
    return [_report_row(op, device) for device in devices for op in (*OPS, *LAYERS)]


def _report_row(op: str, device: str) -> tuple[str, str, str, list[tuple[str, str]]]:
    arguments = _example(op, device)
    reasons = {backend: problem(backend, op, arguments) for backend in BACKENDS}
    chosen = choose(op, arguments)
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
        "advance": lambda: {
            "found": floats(1, 4),
            "box": torch.ones(1, 4, dtype=torch.float64, device=device),
            "frame_size": (8, 8),
            "factor": 4.0,
            "margin": 10.0,
        },
        "linear": lambda: {"weight": floats(768, 768), "bias": floats(768), "dtype": torch.float32},
        "conv3x3": lambda: {"weight": floats(96, 768, 3, 3), "bias": floats(96), "dtype": torch.float32},
    }
    return examples[op]()


def _describe(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def _on_one_device(**tensors: Tensor | None) -> dict[str, Any]:
    """The tensors by name, if they are on one device."""
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        where: Sequence[str] = [f"{name} on {device}" for name, device in devices.items()]
        raise ValueError(f"all tensors must be on one device, got {', '.join(where)}")
    return tensors

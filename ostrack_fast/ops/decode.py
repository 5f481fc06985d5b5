"""From the head's maps to boxes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import native
from .registry import Backend, Op, triton_kernel, triton_kernels
from .tensors import Seeded, accumulate_dtype, check_one_device, describe


def _check(score_map: Tensor, size_map: Tensor, offset_map: Tensor, window: Tensor | None) -> None:
    maps = {"score_map": score_map, "size_map": size_map, "offset_map": offset_map}
    square = score_map.dim() == 4 and score_map.shape[1] == 1 and score_map.shape[2] == score_map.shape[3] > 0
    shape = (score_map.shape[0], 2, *score_map.shape[-2:]) if square else ()
    floats = all(value.is_floating_point() for value in maps.values())
    if not square or not floats or tuple(size_map.shape) != shape or tuple(offset_map.shape) != shape:
        described = ", ".join(map(describe, maps.values()))
        raise ValueError(f"float maps (B,1,F,F), (B,2,F,F), (B,2,F,F) needed, got {described}")
    if window is not None and (window.shape != score_map.shape[2:] or not window.is_floating_point()):
        raise ValueError(f"window must be float {tuple(score_map.shape[2:])}, got {describe(window)}")
    check_one_device(**maps, window=window)


def _outputs(
    score_map: Tensor, size_map: Tensor, offset_map: Tensor, window: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    batch, dtype = score_map.shape[0], accumulate_dtype(score_map, size_map, offset_map)
    return score_map.new_empty(batch, 4, dtype=dtype), score_map.new_empty(batch, dtype=dtype)


def best_cell(score_map: Tensor, window: Tensor | None = None) -> Tensor:
    """The cell iy*F+ix, (B,1) int64, of the largest window * score, the first among equals.

    NaN is below everything; where there is nothing else, the first cell.
    """
    response = (score_map if window is None else score_map * window.to(score_map.dtype)).flatten(1)
    largest = response.masked_fill(response.isnan(), -torch.inf).amax(1, keepdim=True)
    return (response == largest).int().argmax(1, keepdim=True)


def reference(
    score_map: Tensor, size_map: Tensor, offset_map: Tensor, window: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The box at the best cell of the score map; see `ostrack_fast.ops.decode`."""
    maps = (score_map, size_map, offset_map)
    dtype = accumulate_dtype(*maps)
    score, size, offset = (m.to(dtype).flatten(2) for m in maps)
    grid = score_map.shape[-1]
    best = best_cell(score_map.to(dtype), window)
    size, offset = (m.gather(2, best[:, None].expand(-1, 2, -1)).squeeze(2) for m in (size, offset))
    cell = torch.cat((best % grid, best.div(grid, rounding_mode="floor")), dim=1).to(dtype)
    return torch.cat(((cell + offset) / grid, size), dim=1), score.squeeze(1).gather(1, best).squeeze(1)


def _save(ctx: Any, inputs: tuple, outputs: tuple) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, grad_box: Tensor | None, grad_score: Tensor | None) -> tuple:
    *maps, window = ctx.saved_tensors
    score_map = maps[0]
    batch, grid = score_map.shape[0], score_map.shape[-1]
    cell = best_cell(score_map.to(accumulate_dtype(*maps)), window)

    def at_cell(like: Tensor, grad: Tensor | None) -> Tensor | None:
        if grad is None:
            return None
        flat = like.new_zeros(batch, like.shape[1], grid * grid)
        index = cell[:, None].expand(-1, like.shape[1], -1)
        return flat.scatter(2, index, grad[..., None].to(like.dtype)).view_as(like)

    of_score = None if grad_score is None else grad_score[:, None]
    of_offset, of_size = (None, None) if grad_box is None else (grad_box[:, :2] / grid, grad_box[:, 2:])
    return *map(at_cell, maps, (of_score, of_size, of_offset)), None


def _native(
    score_map: Tensor, size_map: Tensor, offset_map: Tensor, window: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    maps = map(native.dense, (score_map, size_map, offset_map))
    window = None if window is None else native.dense(window.to(torch.float32))
    outputs = _outputs(score_map, size_map, offset_map)
    native.call("decode", score_map.device, *maps, window, *outputs)
    return outputs


def _native_unless(score_map: Tensor, size_map: Tensor, offset_map: Tensor, window: Tensor | None = None) -> str | None:
    if not score_map.dtype == size_map.dtype == offset_map.dtype:
        return f"the maps must have one dtype, have {score_map.dtype}, {size_map.dtype} and {offset_map.dtype}"
    grid, most = score_map.shape[-1], native.MAX_GRID
    return native.float_reason(score_map.dtype) if grid <= most else f"map side of at most {most}, is {grid}"


def _triton(
    score_map: Tensor, size_map: Tensor, offset_map: Tensor, window: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return triton_kernel("decode")(score_map, size_map, offset_map, window)


def _triton_unless(score_map: Tensor, size_map: Tensor, offset_map: Tensor, window: Tensor | None = None) -> str | None:
    kernels = triton_kernels()
    return (
        kernels.dtype_reason(score_map.dtype, size_map.dtype, offset_map.dtype)
        or kernels.range_reason("map side", score_map.shape[-1], kernels.MAX_GRID)
        or kernels.range_reason("batch", score_map.shape[0], kernels.MAX_BATCH)
    )


def _example(dtype: torch.dtype, device: torch.device, batch: int, grid: int, windowed: bool = True) -> tuple:
    random = Seeded(grid, device)
    maps = [random.normal(batch, channels, grid, grid, dtype=dtype) for channels in (1, 2, 2)]
    return *maps, random.uniform(grid, grid) + 0.1 if windowed else None


def _both(*sizes: tuple[int, int]) -> list[tuple]:
    """Batch and grid: each with a window and without."""
    return [(*each, windowed) for each in sizes for windowed in (True, False)]


decode_op = Op(
    "decode(Tensor score_map, Tensor size_map, Tensor offset_map, Tensor? window) -> (Tensor box, Tensor score)",
    check=_check,
    outputs=_outputs,
    reference=reference,
    save=_save,
    gradient=_gradient,
    backends={"native": Backend(_native, _native_unless), "triton": Backend(_triton, _triton_unless)},
    sizes={"small": _both((2, 4)), "typical": _both((1, 16)), "edge": _both((1, 1), (4, 5), (2, 17), (8, 24))},
    example=_example,
)


def decode(
    score_map: Tensor, size_map: Tensor, offset_map: Tensor, window: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The box at the arg-max of window * score, the first one among equals.

    Args:
        score_map: (B,1,F,F) float; NaN counts as less than anything. size_map: (B,2,F,F), width and height in units
            of the crop. offset_map: (B,2,F,F), cells. window: (F,F), or None for no window.

    Returns:
        box (B,4) cxcywh in units of the crop; score (B,), the score map's own value in that cell. Both float32
        (float64 if a map is): half precision would resolve a position to no better than a pixel of the crop.
    """
    return decode_op(score_map, size_map, offset_map, window)

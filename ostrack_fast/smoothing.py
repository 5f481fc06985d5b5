"""A target's size and shape change little from one frame to the next: SiamRPN's post-processing of the head's maps.

Off, everything is as OSTrack publishes it: the window multiplies the score, and the next frame is searched around the
box found.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .ops.decode import best_cell
from .settings import check_ranges


@dataclass(frozen=True)
class Smoothing:
    """How much is smoothed. The defaults are the constants that NanoTrack publishes (its configv3).

    Args:
        penalty: of a change of size and shape, in the exponent.
        influence: weight of the window, which is added to the score instead of multiplying it.
        keep: share of its width and height that a box keeps from one frame to the next.
    """

    penalty: float = 0.138
    influence: float = 0.455
    keep: float = 0.65

    def __post_init__(self) -> None:
        check_ranges(self, penalty=(0, 100), influence=(0, 1), keep=(0, 1))


def smoothed_decode(
    score_map: Tensor,
    size_map: Tensor,
    offset_map: Tensor,
    window: Tensor,
    box: Tensor,
    factor: float,
    settings: Smoothing,
) -> tuple[Tensor, Tensor]:
    """As `ops.decode`, of the cell whose box is likely after the one before, with its size between the two.

    Per cell, s is the ratio of the sizes now and before, r that of width over height, both turned to be at least 1; the
    size of a box w, h is sqrt((w + p)(h + p)) with p = (w + h) / 2. The cell of the largest
    (1 - influence) score exp(-penalty (s r - 1)) + influence window is taken. Source: SiamRPN (Li et al. 2018, section
    4.4) in the form of PySOT's tracker, but for the share of the size that is kept, which is fixed here.

    Args:
        score_map, size_map, offset_map, window: as of `ops.decode`.
        box: (B,4) float64 xywh in pixels, which the crops were taken around. factor: of `ops.crop`.

    Returns:
        as `ops.decode`: box (B,4) cxcywh in units of the crop, score (B,) as the map has it. On the tensors' device,
        without waiting for it.
    """
    grid = score_map.shape[-1]
    side = (box[:, 2:].prod(1, keepdim=True).sqrt() * factor).ceil()
    before = (box[:, 2:] / side).to(size_map.dtype)[..., None, None]
    size_change = _at_least_one(_padded(size_map) / _padded(before))
    shape_change = _at_least_one(_aspect(size_map) / _aspect(before))
    likely = torch.exp(-settings.penalty * (size_change * shape_change - 1))
    response = torch.lerp(score_map * likely[:, None], window.to(score_map), settings.influence)
    best = best_cell(response)
    score, size, offset = (
        each.flatten(2).gather(2, best[:, None].expand(-1, each.shape[1], -1))[..., 0]
        for each in (score_map, size_map, offset_map)
    )
    cell = torch.cat((best % grid, best.div(grid, rounding_mode="floor")), dim=1)
    size = torch.lerp(size, before[..., 0, 0], settings.keep)
    return torch.cat(((cell + offset) / grid, size), dim=1).float(), score[:, 0].float()


def _padded(size: Tensor) -> Tensor:
    """The size (B,F,F) of boxes whose width and height are (B,2,F,F)."""
    pad = size.mean(1, keepdim=True)
    return (size + pad).prod(1).sqrt()


def _aspect(size: Tensor) -> Tensor:
    return size[:, 0] / size[:, 1]


def _at_least_one(ratio: Tensor) -> Tensor:
    return torch.maximum(ratio, 1 / ratio)

"""The score map's target: a Gaussian peak at the target's centre."""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian_radius(width: Tensor, height: Tensor, overlap: float = 0.7) -> Tensor:
    """Radius of the peak for a box, in the unit of its sides.

    CornerNet's original formula, as published: its author later found that every root should not be halved alike.
    """
    total, area = width + height, width * height
    root1 = (total**2 - 4 * area * (1 - overlap) / (1 + overlap)).sqrt()
    root2 = ((2 * total) ** 2 - 16 * (1 - overlap) * area).sqrt()
    root3 = ((2 * overlap * total) ** 2 - 16 * overlap * (overlap - 1) * area).sqrt()
    r1, r2, r3 = (total + root1) / 2, (2 * total + root2) / 2, (-2 * overlap * total + root3) / 2
    return torch.minimum(torch.minimum(r1, r2), r3)


def gaussian_heatmap(box: Tensor, grid: int) -> Tensor:
    """Target score maps (B,F,F) in [0,1] for boxes (B,4) xywh in units of the search crop.

    The peak is 1 at the cell nearest to the centre; a centre outside the map leaves the tail, or nothing.
    """
    extent, centre = box[:, 2:] * grid, ((box[:, :2] + box[:, 2:] / 2) * grid).round()
    radius = gaussian_radius(extent[:, 0], extent[:, 1]).clamp(min=0).int()[:, None, None]
    sigma = (2 * radius + 1) / 6
    cells = torch.arange(grid, device=box.device, dtype=box.dtype)
    dx = cells[None, None, :] - centre[:, 0, None, None]
    dy = cells[None, :, None] - centre[:, 1, None, None]
    peak = torch.exp(-(dx**2 + dy**2) / (2 * sigma**2))
    inside = (dx.abs() <= radius) & (dy.abs() <= radius) & (peak >= torch.finfo(peak.dtype).eps)
    return torch.where(inside, peak, torch.zeros_like(peak))

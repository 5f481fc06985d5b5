"""The published formulation of each op, written from its description: what the kernels are measured against."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from ostrack_fast.boxes import crop_window
from ostrack_fast.ops.reference import IMAGE_MEAN, IMAGE_STD


def attention(qkv: Tensor, template_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Dense attention, kept; the score by boolean-mask indexing."""
    batch, tokens, _, heads, width = qkv.shape
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    probability = ((query @ key.transpose(-2, -1)) * width**-0.5).softmax(dim=-1)
    out = (probability @ value).transpose(1, 2).reshape(batch, tokens, heads * width)
    if template_mask is None:
        return out, None
    template = template_mask.shape[-1]
    rows = probability[:, :, :template, template:]
    chosen = template_mask.expand(batch, -1)[:, None, :, None].expand(-1, heads, -1, rows.shape[3])
    return out, rows[chosen].view(batch, heads, -1, rows.shape[3]).mean(dim=2).mean(dim=1)


def eliminate(tokens: Tensor, score: Tensor, ids: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort, gather, concatenate."""
    template = tokens.shape[1] - score.shape[1]
    _, order = torch.sort(score, dim=1, descending=True)
    kept, removed = order[:, :keep], order[:, keep:]
    search = tokens[:, template:].gather(1, kept.unsqueeze(-1).expand(tokens.shape[0], -1, tokens.shape[2]))
    return torch.cat([tokens[:, :template], search], dim=1), ids.gather(1, kept), ids.gather(1, removed)


def restore(tokens: Tensor, ids: Tensor, grid: int) -> Tensor:
    """Append zeros, scatter, permute."""
    batch, kept, channels = tokens.shape
    missing = grid * grid - kept
    padded = torch.cat([tokens, torch.zeros(batch, missing, channels, dtype=tokens.dtype, device=tokens.device)], dim=1)
    present = torch.zeros(batch, grid * grid, dtype=torch.bool, device=tokens.device).scatter_(1, ids, True)
    absent = (~present).nonzero()[:, 1].view(batch, missing)
    places = torch.cat([ids, absent], dim=1).unsqueeze(-1).expand(batch, -1, channels)
    full = torch.zeros_like(padded).scatter_(1, places, padded)
    return full.unsqueeze(-1).permute(0, 3, 2, 1).contiguous().view(batch, channels, grid, grid)


def crop(frame: Tensor, box: Tensor, factor: float, size: int) -> tuple[Tensor, Tensor]:
    """Slice, border, resize, to float, normalize; one box."""
    image = frame.numpy()
    left, top, side = crop_window(box[0].tolist(), factor)
    right, bottom = left + side, top + side
    pad = [max(0, -top), max(bottom - image.shape[0] + 1, 0), max(0, -left), max(right - image.shape[1] + 1, 0)]
    inner = image[top + pad[0] : bottom - pad[1], left + pad[2] : right - pad[3]]
    resized = cv2.resize(cv2.copyMakeBorder(inner, *pad, cv2.BORDER_CONSTANT), (size, size))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    patch = ((torch.from_numpy(resized).float().permute(2, 0, 1).unsqueeze(0) / 255.0) - mean) / std
    return patch, torch.tensor([size / side], dtype=torch.float64)


def decode(score_map: Tensor, size_map: Tensor, offset_map: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """Window, max, two gathers, concatenate."""
    grid = score_map.shape[-1]
    _, best = torch.max((window * score_map).flatten(1), dim=1, keepdim=True)
    row, column = torch.div(best, grid, rounding_mode="floor"), best % grid
    index = best.unsqueeze(1).expand(best.shape[0], 2, 1)
    size = size_map.flatten(2).gather(dim=2, index=index)
    offset = offset_map.flatten(2).gather(dim=2, index=index).squeeze(-1)
    place = [(column.float() + offset[:, :1]) / grid, (row.float() + offset[:, 1:]) / grid]
    return torch.cat([*place, size.squeeze(-1)], dim=1), score_map.flatten(1).gather(1, best).squeeze(1)


def hann(grid: int) -> Tensor:
    side = torch.from_numpy(0.5 * (1 - np.cos(2 * np.pi / (grid + 1) * np.arange(1, grid + 1)))).float()
    return side[:, None] * side[None]

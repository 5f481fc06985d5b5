"""The best we know to do with PyTorch alone: fused attention, one row for the score, top-k, whole-row copies.

Anything that does not depend on the values of the frame is computed beforehand and comes as an argument.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..ops.reference import IMAGE_MEAN, IMAGE_STD


def attention(qkv: Tensor, row: int, template: int) -> tuple[Tensor, Tensor]:
    """SDPA, and the score of the one template row as a matrix-vector product."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    out = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    logits = (query[:, :, row : row + 1] * qkv.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return out, logits.softmax(-1, dtype=torch.float32)[..., template:].mean((1, 2))


def eliminate(tokens: Tensor, score: Tensor, ids: Tensor, keep: int, template_rows: Tensor) -> tuple[Tensor, Tensor]:
    """Top-k and one copy of rows; who was removed is not computed. template_rows: (B,T) into tokens.flatten(0,1)."""
    batch, _, channels = tokens.shape
    kept = score.topk(keep).indices
    rows = torch.cat((template_rows, kept + (template_rows[:, :1] + template_rows.shape[1])), dim=1)
    return tokens.flatten(0, 1).index_select(0, rows.flatten()).view(batch, -1, channels), ids.gather(1, kept)


def restore(tokens: Tensor, ids: Tensor, grid: int, first: Tensor) -> Tensor:
    """Copy rows into zeros, transpose. first: (B,1), where each sample's rows begin."""
    batch, _, channels = tokens.shape
    full = tokens.new_zeros(batch * grid * grid, channels)
    full.index_copy_(0, (ids + first).flatten(), tokens.flatten(0, 1))
    return full.view(batch, grid * grid, channels).transpose(1, 2).contiguous().view(batch, channels, grid, grid)


def crop(frame: Tensor, windows: list[tuple[int, int, int]], size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Slice or zero border, `interpolate` (on bytes where PyTorch can), normalize in place."""
    height, width = frame.shape[:2]
    patch = torch.empty(len(windows), 3, size, size, device=frame.device)
    for one, (left, top, side) in zip(patch, windows, strict=True):
        x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + side, width - 1), min(top + side, height - 1)
        inner = frame[y1:y2, x1:x2]
        if side > min(x2 - x1, y2 - y1):
            # Channels stay last, as `interpolate` likes them; `pad` would reorder them.
            inner = frame.new_zeros(side, side, 3)
            inner[y1 - top : y2 - top, x1 - left : x2 - left] = frame[y1:y2, x1:x2]
        inner = inner.permute(2, 0, 1).unsqueeze(0)
        inner = inner.float() if frame.is_cuda else inner
        one.copy_(functional.interpolate(inner, (size, size), mode="bilinear", align_corners=False)[0])
    mean, std = (patch.new_tensor(values).view(3, 1, 1) * 255 for values in (IMAGE_MEAN, IMAGE_STD))
    scale = torch.tensor([size / side for *_, side in windows], dtype=torch.float64, device=frame.device)
    return patch.sub_(mean).div_(std).to(dtype), scale


def decode(score_map: Tensor, size_map: Tensor, offset_map: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """Arg-max, gathers."""
    grid = score_map.shape[-1]
    score = score_map.flatten(1)
    best = (score * window.flatten()).argmax(1, keepdim=True)
    both = best[:, None].expand(-1, 2, -1)
    offset, size = offset_map.flatten(2).gather(2, both)[..., 0], size_map.flatten(2).gather(2, both)[..., 0]
    cell = torch.cat((best % grid, best // grid), dim=1)
    return torch.cat(((offset + cell) / grid, size), dim=1), score.gather(1, best)[:, 0]

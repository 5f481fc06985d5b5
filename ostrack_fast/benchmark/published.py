"""The published formulation of each op, written from its description: what the kernels are measured against.

Dense attention that is kept, boolean-mask indexing, sort, grid places as floats, NCHW convolutions one tower at a
time. Inputs that the published code has at hand by then (`ids` as floats, the list of the removed) come as arguments.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..boxes import crop_window
from ..ops.reference import IMAGE_MEAN, IMAGE_STD


def dense_attention(qkv: Tensor, template_mask: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """Output; score by boolean-mask indexing, None without a mask; and the map (B,H,N,N) that a block hands on."""
    batch, tokens, _, heads, width = qkv.shape
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    probability = ((query @ key.transpose(-2, -1)) * width**-0.5).softmax(dim=-1)
    out = (probability @ value).transpose(1, 2).reshape(batch, tokens, heads * width)
    if template_mask is None:
        return out, None, probability
    template = template_mask.shape[-1]
    rows = probability[:, :, :template, template:]
    chosen = template_mask.expand(batch, -1)[:, None, :, None].expand(-1, heads, -1, rows.shape[3])
    return out, rows[chosen].view(batch, heads, -1, rows.shape[3]).mean(dim=2).mean(dim=1), probability


def attention(qkv: Tensor, template_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Dense attention: output and score."""
    return dense_attention(qkv, template_mask)[:2]


def eliminate(tokens: Tensor, score: Tensor, ids: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort, gather, concatenate; `ids` are floats."""
    template = tokens.shape[1] - score.shape[1]
    _, order = torch.sort(score, dim=1, descending=True)
    kept, removed = order[:, :keep], order[:, keep:]
    search = tokens[:, template:].gather(1, kept.unsqueeze(-1).expand(tokens.shape[0], -1, tokens.shape[2]))
    return torch.cat([tokens[:, :template], search], dim=1), ids.gather(1, kept), ids.gather(1, removed)


def restore(tokens: Tensor, ids: Tensor, removed: Tensor, grid: int) -> Tensor:
    """Append zeros, scatter to float places made integers, permute."""
    batch, kept, channels = tokens.shape
    missing = grid * grid - kept
    padded = torch.cat([tokens, torch.zeros(batch, missing, channels, dtype=tokens.dtype, device=tokens.device)], dim=1)
    places = torch.cat([ids, removed], dim=1).unsqueeze(-1).expand(batch, -1, channels).to(torch.int64)
    full = torch.zeros_like(padded).scatter_(dim=1, index=places, src=padded)
    return full.unsqueeze(-1).permute(0, 3, 2, 1).contiguous().view(batch, channels, grid, grid)


def crop(frame: Tensor, boxes: list[list[float]], factor: float, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Slice, border, resize, to a float tensor, normalize; one box after the other, then to the device of `like`."""
    image = frame.numpy()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    patches, scales = [], []
    for box in boxes:
        left, top, side = crop_window(box, factor)
        right, bottom = left + side, top + side
        above, below = max(0, -top), max(bottom - image.shape[0] + 1, 0)
        before, after = max(0, -left), max(right - image.shape[1] + 1, 0)
        inner = image[top + above : bottom - below, left + before : right - after]
        padded = cv2.copyMakeBorder(inner, above, below, before, after, cv2.BORDER_CONSTANT)
        resized = cv2.resize(padded, (size, size))
        patches.append(((torch.from_numpy(resized).float().permute(2, 0, 1).unsqueeze(0) / 255.0) - mean) / std)
        scales.append(size / side)
    return torch.cat(patches).to(like), torch.tensor(scales, dtype=torch.float64, device=like.device)


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
    """The window (F,F) that the tracker multiplies the score map with."""
    side = torch.from_numpy(0.5 * (1 - np.cos(2 * np.pi / (grid + 1) * np.arange(1, grid + 1)))).float()
    return side[:, None] * side[None]


def linear(
    x: Tensor, weight: Tensor, bias: Tensor, norm: tuple[Tensor, Tensor] | None, gelu: bool, residual: Tensor | None
) -> Tensor:
    """LayerNorm with its affine, product, GELU, residual: one call each, everything in one dtype."""
    if norm is not None:
        x = functional.layer_norm(x, x.shape[-1:], *norm, 1e-6)
    x = functional.linear(x, weight, bias)
    x = functional.gelu(x) if gelu else x
    return x if residual is None else residual + x


def conv3x3(
    inputs: list[Tensor], layers: list[tuple[Tensor, Tensor]], norm: tuple[Tensor, Tensor, Tensor, Tensor]
) -> list[Tensor]:
    """Convolution, BatchNorm (mean, variance, weight, bias), ReLU, one tower after the other; NCHW."""
    mean, variance, weight, bias = norm
    return [
        torch.relu(
            functional.batch_norm(functional.conv2d(x, *layer, padding=1), mean, variance, weight, bias, eps=0.0)
        )
        for x, layer in zip(inputs, layers, strict=True)
    ]

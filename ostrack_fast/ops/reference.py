"""Every op in plain PyTorch: the specification, the fallback on any device, and the training path.

Readable first. Kernels are tested against these functions in float64.
"""

from __future__ import annotations

from functools import reduce
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from ..boxes import crop_window

Activation = Literal["none", "gelu", "relu"]


def _activate(x: Tensor, activation: Activation) -> Tensor:
    if activation == "none":
        return x
    return torch.nn.functional.gelu(x) if activation == "gelu" else torch.relu(x)


IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


def _logits(qkv: Tensor) -> Tensor:
    query, key, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return (query @ key.transpose(-2, -1)) * qkv.shape[-1] ** -0.5


def attention_map(qkv: Tensor) -> Tensor:
    """softmax(Q K' / sqrt D), (B,H,N,N), at least float32, from packed qkv (B,N,3,H,D)."""
    return _softmax(_logits(qkv))


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def candidate_score(probability: Tensor, template_mask: Tensor) -> Tensor:
    """Mean probability of each search key over heads and the chosen template rows: (B,H,M,N), mask -> (B,S).

    Source: section 3.3 of the paper, equation 6. A mask row with nothing chosen scores 0, and rows that are not
    chosen count nothing even where they are NaN.
    """
    template = template_mask.shape[-1]
    chosen = template_mask.expand(probability.shape[0], -1)
    rows = probability[:, :, :template, template:].masked_fill(~chosen[:, None, :, None], 0)
    return rows.sum(2).mean(1) / chosen.sum(-1, keepdim=True).clamp(min=1)


def attention(qkv: Tensor, template_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Multi-head attention and the score of every candidate; see `ostrack_fast.ops.attention`."""
    return cross_attention(qkv[:, :, 0], qkv[:, :, 1:], template_mask)


def cross_attention(q: Tensor, kv: Tensor, template_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """`attention` of the queries (B,M,H,D) alone over keys and values (B,N,2,H,D); see `ops.layers.cross_attention`."""
    query, (key, value) = q.transpose(1, 2), kv.permute(2, 0, 3, 1, 4)
    probability = _softmax((query @ key.transpose(-2, -1)) * q.shape[-1] ** -0.5)
    out = probability.to(kv.dtype) @ value
    score = None if template_mask is None else candidate_score(probability, template_mask)
    return out.transpose(1, 2).flatten(2), score


def attention_with_lse(qkv: Tensor, template_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None, Tensor]:
    """`attention`, and the natural logarithm of every softmax denominator, (B,H,N), at least float32."""
    wide = torch.promote_types(qkv.dtype, torch.float32)
    return *attention(qkv, template_mask), _logits(qkv).to(wide).logsumexp(-1)


def attention_backward(
    grad_out: Tensor | None,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    grad_score: Tensor | None = None,
    template_mask: Tensor | None = None,
) -> Tensor:
    """Gradient of `attention` in qkv (B,N,3,H,D), from those in out and score and what `attention_with_lse` gave.

    For where autograd cannot run; holds a few (B,H,N,N) at a time, in the dtype of `lse`.
    """
    heads, scale = qkv.shape[3], qkv.shape[4] ** -0.5
    query, key, value = qkv.to(lse.dtype).permute(2, 0, 3, 1, 4).unbind(0)
    probability = (query @ key.transpose(-2, -1) * scale - lse[..., None]).exp()
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    grad = grad_out.to(lse.dtype).unflatten(2, (heads, -1)).transpose(1, 2)
    grad_probability = grad @ value.transpose(-2, -1)
    if grad_score is not None and template_mask is not None:
        template = template_mask.shape[-1]
        share = template_mask.expand(qkv.shape[0], -1) / template_mask.sum(-1, keepdim=True).clamp(min=1) / heads
        grad_probability[:, :, :template, template:] += (share[:, :, None] * grad_score[:, None])[:, None]
    grad_logits = probability * (grad_probability - (grad_probability * probability).sum(-1, keepdim=True)) * scale
    grads = (grad_logits @ key, grad_logits.transpose(-2, -1) @ query, probability.transpose(-2, -1) @ grad)
    return torch.stack(grads, dim=2).permute(0, 3, 2, 1, 4).to(qkv.dtype).contiguous()


def ranking(score: Tensor) -> Tensor:
    """Places by falling score (B,S): equal ones in order, -0.0 equal to 0.0, NaN after everything. No gradient."""
    # Ascending, because there PyTorch puts NaN last.
    return score.detach().neg().sort(dim=1, stable=True).indices


def eliminate(tokens: Tensor, score: Tensor, ids: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the best candidates; see `ostrack_fast.ops.eliminate`."""
    template = tokens.shape[1] - score.shape[1]
    kept, removed = ranking(score).split((keep, score.shape[1] - keep), dim=1)
    search = tokens[:, template:].gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
    return torch.cat((tokens[:, :template], search), dim=1), ids.gather(1, kept), ids.gather(1, removed)


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
    """Put search tokens back on their grid; see `ostrack_fast.ops.restore`."""
    batch, _, channels = tokens.shape
    dtype = dtype or tokens.dtype
    if norm_weight is not None and norm_bias is not None:
        wide = torch.promote_types(tokens.dtype, torch.float32)
        weight, bias = norm_weight.to(wide), norm_bias.to(wide)
        tokens = torch.nn.functional.layer_norm(tokens.to(wide), (channels,), weight, bias, eps)
    full = tokens.new_zeros(batch, grid * grid, channels, dtype=dtype)
    full = full.scatter(1, ids[..., None].expand(-1, -1, channels), tokens.to(dtype))
    channels_last_map = full.view(batch, grid, grid, channels).permute(0, 3, 1, 2)
    return channels_last_map if channels_last else channels_last_map.contiguous()


def crop(
    frame: Tensor, box: Tensor, factor: float, size: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Square crops around boxes, resized and normalized; see `ostrack_fast.ops.crop`."""
    image = frame.cpu().numpy()
    windows = [crop_window(one, factor) for one in box.tolist()]
    pixels = np.empty((len(windows), size, size, 3), np.uint8)
    for target, window in zip(pixels, windows, strict=True):
        target[:] = crop_pixels(image, *window, size)
    patch = torch.from_numpy(pixels).to(frame.device).permute(0, 3, 1, 2).float().div(255)
    mean, std = (patch.new_tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    scale = torch.tensor([size / side for *_, side in windows], dtype=torch.float64, device=frame.device)
    return patch.sub(mean).div(std).to(dtype).contiguous(), scale


def crop_pixels(image: np.ndarray, left: int, top: int, side: int, size: int) -> np.ndarray:
    """The uint8 crop (size,size,3) before normalization: zero border, then OpenCV's bilinear resize.

    The frame's last column and row count as border, as in the published `sample_target`.
    """
    height, width = image.shape[:2]
    window = np.zeros((side, side, 3), np.uint8)
    x1, x2 = max(left, 0), min(left + side, width - 1)
    y1, y2 = max(top, 0), min(top + side, height - 1)
    if x1 < x2 and y1 < y2:
        window[y1 - top : y2 - top, x1 - left : x2 - left] = image[y1:y2, x1:x2]
    return cv2.resize(window, (size, size))


def best_cell(score_map: Tensor, window: Tensor | None = None) -> Tensor:
    """The place iy*F+ix, (B,1) int64, of the largest window * score, the first among equals.

    NaN is below everything; where there is nothing else, the first place.
    """
    response = (score_map if window is None else score_map * window.to(score_map.dtype)).flatten(1)
    largest = response.masked_fill(response.isnan(), -torch.inf).amax(1, keepdim=True)
    return (response == largest).int().argmax(1, keepdim=True)


def decode(
    score_map: Tensor, size_map: Tensor, offset_map: Tensor, window: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The box at the best place of the score map; see `ostrack_fast.ops.decode`."""
    maps = (score_map, size_map, offset_map)
    wide = reduce(torch.promote_types, (m.dtype for m in maps), torch.float32)
    score, size, offset = (m.to(wide).flatten(2) for m in maps)
    grid = score_map.shape[-1]
    best = best_cell(score_map.to(wide), window)
    size, offset = (m.gather(2, best[:, None].expand(-1, 2, -1)).squeeze(2) for m in (size, offset))
    cell = torch.cat((best % grid, best.div(grid, rounding_mode="floor")), dim=1).to(wide)
    return torch.cat(((cell + offset) / grid, size), dim=1), score.squeeze(1).gather(1, best).squeeze(1)


def advance(found: Tensor, box: Tensor, frame_size: tuple[int, int], factor: float, margin: float) -> Tensor:
    """From what `decode` found to the target's box in the frame, clipped; see `ostrack_fast.ops.advance`."""
    side = (box[:, 2:].prod(1, keepdim=True).sqrt() * factor).ceil()
    centre, extent = (found.double() * side).split(2, dim=1)
    corner = box[:, :2] + 0.5 * box[:, 2:] - 0.5 * side + centre - 0.5 * extent
    edge = box.new_tensor(frame_size).flip(0)
    low = corner.clamp(min=0).minimum(edge - margin)
    high = (corner + extent).clamp(min=margin).minimum(edge)
    return torch.cat((low, (high - low).clamp(min=margin)), dim=1)


class Linear:
    """activation(norm(x) W' + b) + residual with frozen weights; see `ostrack_fast.ops.linear`."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        norm_eps: float | None = None,
        activation: Activation = "none",
        dtype: torch.dtype = torch.float32,
    ):
        self.weight, self.bias, self.norm_eps = weight.to(dtype), bias.to(dtype), norm_eps
        self.activation: Activation = activation
        self.inputs = weight.shape[1]

    def __call__(self, x: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        if self.norm_eps is not None:
            x = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=self.norm_eps)
        y = _activate(torch.nn.functional.linear(x.to(self.weight.dtype), self.weight, self.bias), self.activation)
        y = y if residual is None else residual + y
        return y if out is None else out.copy_(y)


class Conv3x3:
    """activation of a 3 x 3 convolution with frozen weights; see `ostrack_fast.ops.conv3x3`."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        groups: int = 1,
        activation: Activation = "relu",
        dtype: torch.dtype = torch.float32,
    ):
        self.weight = weight.to(dtype, memory_format=torch.channels_last)
        self.bias, self.groups = bias.to(dtype), groups
        self.activation: Activation = activation
        self.inputs = weight.shape[1] * groups

    def __call__(self, x: Tensor) -> Tensor:
        y = torch.nn.functional.conv2d(
            x.to(self.weight.dtype).permute(0, 3, 1, 2), self.weight, self.bias, padding=1, groups=self.groups
        )
        return _activate(y, self.activation).permute(0, 2, 3, 1).contiguous()

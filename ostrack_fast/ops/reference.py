"""Every op in plain PyTorch: the specification, the fallback on any device, and the training path.

Readable first. Kernels are tested against these functions in float64.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from ..boxes import crop_window

Activation = Literal["none", "gelu", "relu"]
_ACTIVATIONS = {"none": lambda x: x, "gelu": torch.nn.functional.gelu, "relu": torch.relu}

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


def attention_map(qkv: Tensor) -> Tensor:
    """softmax(Q K' / sqrt D), (B,H,N,N), at least float32, from packed qkv (B,N,3,H,D)."""
    query, key, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    logits = (query @ key.transpose(-2, -1)) * qkv.shape[-1] ** -0.5
    return logits.softmax(dim=-1, dtype=torch.promote_types(qkv.dtype, torch.float32))


def candidate_score(probability: Tensor, template_mask: Tensor) -> Tensor:
    """Mean probability of each search key over heads and the chosen template rows: (B,H,N,N), mask -> (B,S).

    Source: section 3.3 of the paper, equation 6. A mask row with nothing chosen scores 0.
    """
    template = template_mask.shape[-1]
    weight = template_mask.to(probability.dtype).expand(probability.shape[0], -1)
    weight = weight / weight.sum(-1, keepdim=True).clamp(min=1)
    return (probability[:, :, :template, template:] * weight[:, None, :, None]).sum(2).mean(1)


def attention(qkv: Tensor, template_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Multi-head attention and the score of every candidate; see `ostrack_fast.ops.attention`."""
    probability = attention_map(qkv)
    out = probability.to(qkv.dtype) @ qkv[:, :, 2].transpose(1, 2)
    score = None if template_mask is None else candidate_score(probability, template_mask)
    return out.transpose(1, 2).flatten(2), score


def eliminate(tokens: Tensor, score: Tensor, ids: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the best candidates; see `ostrack_fast.ops.eliminate`."""
    template = tokens.shape[1] - score.shape[1]
    order = score.detach().sort(dim=1, descending=True, stable=True).indices
    kept, removed = order.split((keep, order.shape[1] - keep), dim=1)
    search = tokens[:, template:].gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
    return torch.cat((tokens[:, :template], search), dim=1), ids.gather(1, kept), ids.gather(1, removed)


def restore(tokens: Tensor, ids: Tensor, grid: int) -> Tensor:
    """Put search tokens back on their grid; see `ostrack_fast.ops.restore`."""
    batch, _, channels = tokens.shape
    full = tokens.new_zeros(batch, grid * grid, channels)
    full = full.scatter(1, ids[..., None].expand(-1, -1, channels), tokens)
    return full.transpose(1, 2).reshape(batch, channels, grid, grid)


def crop(
    frame: Tensor, box: Tensor, factor: float, size: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Square crops around boxes, resized and normalized; see `ostrack_fast.ops.crop`."""
    image = frame.cpu().numpy()
    windows = [crop_window(one, factor) for one in box.tolist()]
    pixels = np.stack([crop_pixels(image, *window, size) for window in windows])
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


def decode(
    score_map: Tensor, size_map: Tensor, offset_map: Tensor, window: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The box at the best place of the score map; see `ostrack_fast.ops.decode`."""
    grid = score_map.shape[-1]
    response = score_map.flatten(1) if window is None else (score_map * window).flatten(1)
    # max() promises no order among ties: take the first place that holds the maximum.
    best = (response == response.amax(1, keepdim=True)).int().argmax(1, keepdim=True)
    size, offset = (m.flatten(2).gather(2, best[:, None].expand(-1, 2, -1)).squeeze(2) for m in (size_map, offset_map))
    cell = torch.cat((best % grid, best.div(grid, rounding_mode="floor")), dim=1).to(offset)
    return torch.cat(((cell + offset) / grid, size), dim=1), score_map.flatten(1).gather(1, best).squeeze(1)


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
        self.activation = _ACTIVATIONS[activation]

    def __call__(self, x: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        if self.norm_eps is not None:
            x = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=self.norm_eps)
        y = self.activation(torch.nn.functional.linear(x.to(self.weight.dtype), self.weight, self.bias))
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
        self.bias, self.groups, self.activation = bias.to(dtype), groups, _ACTIVATIONS[activation]

    def __call__(self, x: Tensor) -> Tensor:
        y = torch.nn.functional.conv2d(
            x.to(self.weight.dtype).permute(0, 3, 1, 2), self.weight, self.bias, padding=1, groups=self.groups
        )
        return self.activation(y).permute(0, 2, 3, 1).contiguous()

"""The centre head: three convolutional towers give the score, offset and size maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .. import ops
from ..config import ModelConfig
from ..ops.sparse_map import SparseMap, convolve

_TOWERS = ("ctr", "offset", "size")


def _each(layers: Sequence[nn.Module], maps: Sequence[Tensor | SparseMap]) -> list[Tensor]:
    return [layer(x) for layer, x in zip(layers, maps, strict=True)]


class Conv3x3(nn.Conv2d):
    """A convolution of a map, or of the tokens in it: training on a CPU leaves out what elimination left empty."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor | SparseMap) -> Tensor:
        if isinstance(x, Tensor):
            return super().forward(x)
        return convolve(x, self.weight, cast(Tensor, self.bias))


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(Conv3x3(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class CenterHead(nn.Module):
    """Feature map (B,C,F,F) -> score (B,1,F,F) and size (B,2,F,F) in (0,1), offset (B,2,F,F) unbounded.

    Offsets are in cells, sizes in units of the crop. The names of parameters, methods and attributes are those of the
    published `CenterPredictor`, whose offset has no sigmoid although the paper's figure suggests one.
    """

    # Runs one layer of all towers; several processes that train together replace it by one exchange for the three.
    run_layers = staticmethod(_each)

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.feat_sz = cfg.search_grid
        self.stride = cfg.patch_size
        self.img_sz = cfg.search_size
        widths = [cfg.embed_dim, *(cfg.head_channels // 2**i for i in range(4))]
        for name, outputs in zip(_TOWERS, (1, 2, 2), strict=True):
            for i in range(4):
                self.add_module(f"conv{i + 1}_{name}", _conv(widths[i], widths[i + 1]))
            self.add_module(f"conv5_{name}", nn.Conv2d(widths[4], outputs, 1))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, x: Tensor, gt_score_map: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns score, boxes (B,4) as `cal_bbox`, size, offset.

        `gt_score_map` (B,F,F): read the boxes at its maximum instead of the score's.
        """
        score, size, offset = self.get_score_map(x)
        peak = score if gt_score_map is None else gt_score_map[:, None]
        boxes, _ = ops.decode(peak, size, offset.to(size.dtype))
        return score, boxes, size, offset

    def get_score_map(self, x: Tensor | SparseMap) -> tuple[Tensor, Tensor, Tensor]:
        """Score, size and offset maps of a feature map."""
        maps: Sequence[Tensor | SparseMap] = [x] * len(_TOWERS)
        for i in range(1, 6):
            maps = self.run_layers([self.get_submodule(f"conv{i}_{name}") for name in _TOWERS], maps)
        score, offset, size = cast("Sequence[Tensor]", maps)
        return _probability(score), _probability(size), offset

    def cal_bbox(
        self, score_map_ctr: Tensor, size_map: Tensor, offset_map: Tensor, return_score: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Boxes (B,4) cxcywh in units of the crop, at the maximum of the score map; with it (B,1) if asked."""
        boxes, score = ops.decode(score_map_ctr, size_map, offset_map.to(size_map.dtype))
        return (boxes, score[:, None]) if return_score else boxes


def _probability(logits: Tensor) -> Tensor:
    # Half precision would round the upper bound to 1, and the focal loss needs its logarithm.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.sigmoid().clamp(min=1e-4, max=1 - 1e-4)

"""The centre head: three convolutional towers give the score, offset and size maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import ops
from ..config import ModelConfig


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class CenterHead(nn.Module):
    """Feature map (B,C,F,F) -> score (B,1,F,F) and size (B,2,F,F) in (0,1), offset (B,2,F,F) unbounded.

    Offsets are in cells, sizes in units of the crop. The names of parameters, methods and attributes are those of the
    published `CenterPredictor`, whose offset has no sigmoid although the paper's figure suggests one.
    """

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.feat_sz = cfg.search_grid
        self.stride = cfg.patch_size
        self.img_sz = cfg.search_size
        widths = [cfg.embed_dim, *(cfg.head_channels // 2**i for i in range(4))]
        for name, outputs in (("ctr", 1), ("offset", 2), ("size", 2)):
            for i in range(4):
                self.add_module(f"conv{i + 1}_{name}", _conv(widths[i], widths[i + 1]))
            self.add_module(f"conv5_{name}", nn.Conv2d(widths[4], outputs, 1))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def tower(self, name: str, x: Tensor) -> Tensor:
        for i in range(1, 6):
            x = self.get_submodule(f"conv{i}_{name}")(x)
        return x

    def forward(self, x: Tensor, gt_score_map: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns score, boxes (B,4) as `cal_bbox`, size, offset.

        `gt_score_map` (B,F,F): read the boxes at its maximum instead of the score's.
        """
        score, size, offset = self.get_score_map(x)
        peak = score if gt_score_map is None else gt_score_map[:, None]
        boxes, _ = ops.decode(peak, size, offset.to(size.dtype))
        return score, boxes, size, offset

    def get_score_map(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score, size and offset maps of a feature map."""
        return _probability(self.tower("ctr", x)), _probability(self.tower("size", x)), self.tower("offset", x)

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

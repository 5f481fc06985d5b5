"""The centre head: three convolutional towers give the score, offset and size maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import ModelConfig


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class CenterHead(nn.Module):
    """Feature map (B,C,F,F) -> score (B,1,F,F) and size (B,2,F,F) in (0,1), offset (B,2,F,F) unbounded.

    Offsets are in cells, sizes in units of the crop. Parameter names are those of the published `CenterPredictor`,
    whose offset has no sigmoid although the paper's figure suggests one.
    """

    def __init__(self, cfg: ModelConfig):
        super().__init__()
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

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns score, size, offset."""
        return _probability(self.tower("ctr", x)), _probability(self.tower("size", x)), self.tower("offset", x)


def _probability(logits: Tensor) -> Tensor:
    # Half precision would round the upper bound to 1, and the focal loss needs its logarithm.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.sigmoid().clamp(min=1e-4, max=1 - 1e-4)

"""The network in the operators that OpenCV has read since 4.6, candidate elimination included.

OpenCV 4.6, which Debian 12 and Ubuntu 24.04 ship, has no LayerNormalization, Gelu, TopK, GatherElements or
ScatterElements, and its Mul takes no vector over the last dimension. This was found by running every operator of an
exported file there against onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from ..model import OSTrack
from ..model.vit import Block
from .network import ExportNetwork


class OpenCVNetwork(ExportNetwork):
    """`ExportNetwork` for a batch of 1 whose elimination is made of matmuls by matrices of zeros and ones.

    A candidate's rank is the number of those before it, and row k of the matrix that keeps candidates has its one in
    the column of rank k. Products by zero and one are exact, so the same candidates are kept in the same order.
    """

    def __init__(self, model: OSTrack, dtype: torch.dtype = torch.float32, candidate_elimination: bool = True):
        super().__init__(model, dtype, candidate_elimination)
        cfg = model.cfg
        candidates = cfg.search_grid**2
        for index, keep in enumerate(self._keep):
            if keep is None:
                continue
            chosen = self.get_buffer("rows")
            mean = torch.zeros(cfg.num_heads, cfg.template_grid**2 + candidates, 1, dtype=torch.float32, device="cpu")
            mean[:, chosen] = 1 / (cfg.num_heads * len(chosen))
            # Stacked attention maps times this is the mean over heads and over the template's chosen rows.
            self.register_buffer(f"mean{index}", mean.flatten(0, 1))
            # [i, j] is 1 where candidate i wins against j when their scores are equal.
            equal = torch.ones(candidates, candidates, dtype=torch.float32, device="cpu")
            self.register_buffer(f"earlier{index}", equal.triu(1))
            self.register_buffer(f"ranks{index}", torch.arange(keep, dtype=torch.float32, device="cpu"))
            candidates = keep
        if cfg.template_box:
            self._prepare_boxes(cfg.template_grid)

    def _prepare_boxes(self, grid: int) -> None:
        """Matrices that make of a box (1,4) its edges in cells, along x for every token and then along y: (1,2T)."""
        cells = torch.arange(grid, dtype=torch.float32, device="cpu")
        along_x, along_y = cells.repeat(grid), cells.repeat_interleave(grid)
        low = torch.zeros(4, 2 * grid**2, dtype=torch.float32, device="cpu")
        low[0, : grid**2] = low[1, grid**2 :] = grid
        self.register_buffer("begin", low)
        self.register_buffer("end", low + low[[2, 3, 0, 1]])
        self.register_buffer("cell", torch.cat((along_x, along_y))[None])

    def embed_template(self, template: Tensor, box: Tensor | None) -> Tensor:
        """`VisionTransformer.embed_template`, whose Min and Max of a vector and a constant OpenCV 4.6 does not read."""
        vectors = self.backbone.box_embed
        if vectors is None or box is None:
            return self.backbone.embed_template(template)
        cell = self.get_buffer("cell")
        begin = cell + (box @ self.get_buffer("begin") - cell).relu()
        end = cell + 1 - (cell + 1 - box @ self.get_buffer("end")).relu()
        along = (end - begin).relu()
        tokens = along.shape[1] // 2
        covered = (along[:, :tokens] * along[:, tokens:]).reshape(1, tokens, 1)
        return (
            self.backbone.patch_embed(template)
            + self.backbone.pos_embed_z
            + (covered @ (vectors[:1] - vectors[1:]) + vectors[1])
        )

    def forward(
        self, template: Tensor, search: Tensor, template_box: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Template (1,3,Z,Z) and search crop (1,3,X,X) -> the maps of `ExportNetwork.forward`."""
        z, x = self.embed_template(template, template_box), self.backbone.embed_search(search)
        rows = z.shape[1]
        tokens = torch.cat((z, x), dim=1)
        left = None  # (1,K,S): which cell of the grid each token left is of
        for index, (block, keep) in enumerate(zip(cast("list[Block]", self.backbone.blocks), self._keep, strict=True)):
            qkv = block.attn.packed(block.norm1(tokens))
            q, k, v = (qkv[:, :, each].transpose(1, 2) for each in range(3))
            # OpenCV 4.6 loses a factor that comes after a product of two computed matrices.
            logits = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
            probability = logits.softmax(-1, dtype=torch.float32)
            attended = probability.to(qkv.dtype) @ v
            tokens = tokens + block.attn.proj(attended.transpose(1, 2).flatten(2))
            if keep is not None:
                score = probability.flatten(1, 2).transpose(1, 2) @ self.get_buffer(f"mean{index}")
                kept = self._keep_best(score[:, rows:], index)
                tokens = torch.cat((tokens[:, :rows], kept @ tokens[:, rows:]), dim=1)
                left = kept if left is None else kept @ left
            tokens = tokens + block.mlp(block.norm2(tokens))
        features = self.backbone.norm(tokens)[:, rows:].transpose(1, 2)
        if left is not None:
            features = features @ left
        return self.head.get_score_map(features.unflatten(2, (self.cfg.search_grid, self.cfg.search_grid)))

    def _keep_best(self, score: Tensor, index: int) -> Tensor:
        """Scores (1,S,1) -> (1,K,S): row k is 1 at the candidate of rank k, else 0. Equal scores keep their order."""
        earlier, ranks = self.get_buffer(f"earlier{index}"), self.get_buffer(f"ranks{index}")
        count = score.shape[1]
        rows = score @ score.new_ones(1, count)  # [i, j] is the score of i
        columns = rows.transpose(1, 2)
        above, below = _positive(rows - columns), _positive(columns - rows)
        before = above + (1 - above - below) * earlier
        rank = before.transpose(1, 2) @ score.new_ones(count, 1)
        distance = rank @ score.new_ones(1, len(ranks)) - ranks
        return (1 - distance.abs()).relu().transpose(1, 2)


def _positive(x: Tensor) -> Tensor:
    """1 where x is above 0, else 0, without a comparison; exact for all differences of float32 numbers up to 1."""
    for _ in range(2):  # 1e-45, the smallest, becomes 1e-15 and then 1
        x = 1 - (1 - (x * 1e30).relu()).relu()
    return x


def translations() -> dict[Any, Callable[..., Any]]:
    """How operators of the network are written, by PyTorch's name: for `torch.onnx.export`."""
    aten = torch.ops.aten
    return {aten.layer_norm.default: _layer_norm, aten.gelu.default: _gelu, aten.clamp.default: _clamp}


def _layer_norm(x: Any, shape: Any, weight: Any, bias: Any, eps: float = 1e-5, cudnn_enable: bool = True) -> Any:
    """Rows become channels, which InstanceNormalization treats one by one."""
    from onnxscript import opset18 as op

    ones: Any = op.Constant(value_floats=[1.0] * x.shape[1])
    zeros: Any = op.Constant(value_floats=[0.0] * x.shape[1])
    last: Any = op.Constant(value_ints=[1])
    y: Any = op.Transpose(op.InstanceNormalization(x, ones, zeros, epsilon=eps), perm=[0, 2, 1])
    scaled: Any = op.Mul(y, op.Unsqueeze(weight, last))
    return op.Transpose(op.Add(scaled, op.Unsqueeze(bias, last)), perm=[0, 2, 1])


def _gelu(x: Any, approximate: str = "none") -> Any:
    """Half of x first: written as 0.5 * x * (1 + erf(x / sqrt 2)), GELU crashes OpenCV 5.0."""
    from onnxscript import opset18 as op

    half: Any = op.Constant(value_float=0.5)
    factor: Any = op.Constant(value_float=0.5**0.5)
    halved: Any = op.Mul(x, op.CastLike(half, x))
    erf: Any = op.Erf(op.Mul(x, op.CastLike(factor, x)))
    return op.Add(halved, op.Mul(halved, erf))


def _clamp(x: Any, min: float, max: float) -> Any:
    """From Relu alone: OpenCV 4.6 reads the bounds of Clip from attributes, where ONNX had them long ago."""
    from onnxscript import opset18 as op

    low: Any = op.Constant(value_float=min)
    high: Any = op.Constant(value_float=max)
    width: Any = op.Constant(value_float=max - min)
    above_low: Any = op.Relu(op.Sub(x, low))
    below_high: Any = op.Relu(op.Sub(width, above_low))
    return op.Sub(high, below_high)

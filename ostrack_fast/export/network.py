"""The network as an exporter wants it: two images in, three maps out, standard operators only."""

from __future__ import annotations

from copy import deepcopy
from math import ceil
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..model import OSTrack, template_mask
from ..model.vit import Block
from ..ops import reference


class _InDtype(nn.Module):
    """A linear layer or convolution whose weights and multiplications have one dtype, whatever its input has."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, dtype: torch.dtype):
        super().__init__()
        self.layer, self.dtype = layer.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.to(self.dtype))


class ExportNetwork(nn.Module):
    """`OSTrack` in evaluation mode, written with PyTorch's own operators alone.

    The graph of it holds no operator of this package, no control flow, and neither boolean tensors nor gathers by them,
    which TensorRT and OpenCV refuse: candidates are ranked by a sort, kept by a gather and put back by a scatter, all
    of fixed size. BatchNorm is folded into the convolutions.

    Args:
        model: is copied and not changed.
        dtype: of the weights and matmuls, float32 or float16. In float16 the residual stream, the LayerNorms, the
            softmax and the head's last layer stay float32, as in the engine.
        candidate_elimination: False keeps all candidates, as if the configuration eliminated none.

    Raises:
        ValueError: the template range GT_BOX, whose tokens depend on the target, while candidates are eliminated.
    """

    rows: Tensor  # the template tokens that rank the candidates, (n,) int64
    zero: Tensor

    def __init__(self, model: OSTrack, dtype: torch.dtype = torch.float32, candidate_elimination: bool = True):
        super().__init__()
        if not model.runs_frozen:
            raise ValueError(f"{type(model).__name__} has layers that an exported file would lack")
        cfg = self.cfg = model.cfg
        ratios = dict(zip(cfg.ce_layers, cfg.ce_keep_ratio, strict=True)) if candidate_elimination else {}
        self._keep: list[int | None] = []  # candidates left behind each block's attention; None where none is removed
        left = cfg.search_grid**2
        for index in range(cfg.depth):
            keep = ceil(ratios.get(index, 1) * left)
            self._keep.append(keep if keep < left else None)
            left = keep
        self.eliminates = any(keep is not None for keep in self._keep)
        if self.eliminates and cfg.ce_template_range == "GT_BOX":
            raise ValueError(
                "the template range GT_BOX depends on the target's box, which an exported network does not get: "
                "export without candidate elimination, or use a model with another range"
            )
        if self.eliminates:
            self.register_buffer("rows", template_mask(cfg, device="cpu").nonzero()[:, 0])
        # A new tensor of zeros would become the operator ConstantOfShape, which OpenCV does not read.
        self.register_buffer("zero", torch.zeros(1, 1, 1, dtype=torch.float32, device="cpu"))
        copy = deepcopy(model).eval().float().requires_grad_(False)
        self.backbone, self.head = copy.backbone, copy.box_head
        for block in self.head.children():
            if isinstance(block, nn.Sequential):
                block[0] = fuse_conv_bn_eval(cast(nn.Conv2d, block[0]), cast(nn.BatchNorm2d, block[1]))
                block[1] = nn.Identity()
        if dtype != torch.float32:
            self._lower(dtype)

    def _lower(self, dtype: torch.dtype) -> None:
        layers = {name: each for name, each in self.named_modules() if isinstance(each, (nn.Linear, nn.Conv2d))}
        for name, layer in layers.items():
            parent, _, own = name.rpartition(".")
            # Half precision would resolve a cell of the grid to no better than a pixel of the crop.
            setattr(self.get_submodule(parent), own, _InDtype(layer, torch.float32 if "conv5" in own else dtype))

    def forward(
        self, template: Tensor, search: Tensor, template_box: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Template (B,3,Z,Z) and search crop (B,3,X,X), float32, RGB, ImageNet-normalized -> the head's maps.

        `template_box`: as `OSTrack.forward`. Returns score (B,1,F,F), size (B,2,F,F) in units of the crop and offset
        (B,2,F,F) in cells, all float32.
        """
        z, x = self.backbone.embed_template(template, template_box), self.backbone.embed_search(search)
        ids = torch.arange(x.shape[1], dtype=torch.int64, device=x.device).expand(x.shape[0], -1)
        tokens = torch.cat((z, x), dim=1)
        for block, keep in zip(cast("list[Block]", self.backbone.blocks), self._keep, strict=True):
            qkv = block.attn.packed(block.norm1(tokens))
            probability = reference.attention_map(qkv)
            attended = probability.to(qkv.dtype) @ qkv[:, :, 2].transpose(1, 2)
            tokens = tokens + block.attn.proj(attended.transpose(1, 2).flatten(2))
            if keep is not None:
                score = probability.index_select(2, self.rows)[..., z.shape[1] :].mean((1, 2))
                tokens, ids, _ = reference.eliminate(tokens, score, ids, keep)
            tokens = tokens + block.mlp(block.norm2(tokens))
        return self.head.get_score_map(self._restored(self.backbone.norm(tokens)[:, z.shape[1] :], ids))

    def _restored(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """Tokens (B,K,C) on their grid, zeros elsewhere: (B,C,F,F)."""
        batch, _, channels = tokens.shape
        grid = self.cfg.search_grid
        if self.eliminates:
            tokens = self.zero.expand(batch, grid * grid, channels).scatter(
                1, ids[..., None].expand(-1, -1, channels), tokens
            )
        return tokens.transpose(1, 2).unflatten(2, (grid, grid))

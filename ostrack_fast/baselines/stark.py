"""STARK-aligned: the paper's Table 5 puts STARK (arXiv:2103.17154) on OSTrack's backbone, head and loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from .two_stream import CrossBlock, TwoStream, fusion_config, init_linear


class StarkAligned(TwoStream):
    """Both images' features, concatenated, through an encoder; a decoder with one query; OSTrack's head.

    STARK-S behind a ViT-B: a bottleneck to 256 channels, six encoder and six decoder blocks with 8 heads and hidden
    layers of 2048, and the search region's features weighted by their similarity to the decoder's output. Smaller
    backbones get a fusion that is smaller in proportion.

    What the paper leaves open, and what was chosen:
      * The streams share weights, as STARK's do.
      * The corner head gives way to the shared centre head, which reads the weighted features.
      * Blocks are OSTrack's, LayerNorm first; STARK's have it last. Similarities are divided by the root of the width,
        because normalized features make them large.
      * The ViT's tokens carry positions already, so none are added in the encoder.
      * The decoder's one query has no self-attention, which for one token is a linear layer.
      * No dynamic template, and no score branch: one template, as OSTrack.
    """

    def __init__(self, cfg: ModelConfig):
        fusion = fusion_config(cfg, width=256, head_width=32, depth=6, mlp_ratio=8.0)
        super().__init__(cfg, fusion)
        self.query = nn.Parameter(torch.zeros(1, 1, fusion.embed_dim))
        self.decoder = nn.ModuleList(CrossBlock(fusion) for _ in range(fusion.depth))
        self.decoder_norm = nn.LayerNorm(fusion.embed_dim, eps=1e-6)
        for module in (self.bottleneck, self.encoder, self.decoder):
            module.apply(init_linear)
        nn.init.trunc_normal_(self.query, std=0.02)

    def fuse(self, template: Tensor, search: Tensor) -> Tensor:
        """The search region's tokens (B,S,W), each times its similarity to what the query found in both images."""
        memory, target = torch.cat((template, search), dim=1), self.query.expand(len(search), -1, -1)
        for block in self.decoder:
            target = block(target, memory)
        target = self.decoder_norm(target)
        return search * (search @ target.transpose(1, 2)) / search.shape[2] ** 0.5

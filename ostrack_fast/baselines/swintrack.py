"""SwinTrack-aligned: the paper's Table 5 puts SwinTrack (arXiv:2112.00995) on OSTrack's backbone, head and loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from .two_stream import CrossBlock, TwoStream, fusion_config, init_linear


class SwinTrackAligned(TwoStream):
    """Concatenation-based fusion in an encoder; a decoder in which the search region attends to both; OSTrack's head.

    SwinTrack-B behind a ViT-B: 512 channels, eight encoder blocks with 8 heads, one decoder block, hidden layers four
    times as wide. Smaller backbones get a fusion that is smaller in proportion.

    What the paper leaves open, and what was chosen:
      * The streams share weights, as SwinTrack's do.
      * Classification and box branches give way to the shared centre head.
      * Attention is that of OSTrack's blocks. SwinTrack adds untied position encodings to it; the ViT's tokens carry
        positions already.
      * Template and search region are told apart by a learned vector each, as SwinTrack's encodings do.
    """

    def __init__(self, cfg: ModelConfig):
        fusion = fusion_config(cfg, width=512, head_width=64, depth=8, mlp_ratio=4.0)
        super().__init__(cfg, fusion)
        self.decoder = CrossBlock(fusion)
        self.decoder_norm = nn.LayerNorm(fusion.embed_dim, eps=1e-6)
        self.identity = nn.Parameter(torch.zeros(2, 1, cfg.embed_dim))
        for module in (self.bottleneck, self.encoder, self.decoder):
            module.apply(init_linear)
        nn.init.trunc_normal_(self.identity, std=0.02)

    def embed_template(self, template: Tensor, box: Tensor | None = None) -> Tensor:
        """The template's features (B,T,C), behind its stream and marked as the template's."""
        return super().embed_template(template, box) + self.identity[0]

    def stream_search(self, search: Tensor) -> Tensor:
        """The search region's features (B,S,C), behind its stream and marked as the search region's."""
        return super().stream_search(search) + self.identity[1]

    def fuse(self, template: Tensor, search: Tensor) -> Tensor:
        """The search region's tokens (B,S,W) after they attended to both images."""
        return self.decoder_norm(self.decoder(search, torch.cat((template, search), dim=1)))

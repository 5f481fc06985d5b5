"""A network as the engine runs it, computed by the network's own modules."""

from __future__ import annotations

import torch
from torch import Tensor

from .frozen import Template, stage
from .ostrack import OSTrack


class PlainNetwork:
    """What `FrozenOSTrack` is to OSTrack, for networks of other shapes: nothing is folded, packed or fused.

    What the network's `embed_template` returns, (B,T,C), is computed once for each target.

    Args:
        model: is read, not changed.
        dtype: float32, float16 or bfloat16, of autocast; int8 is none of them.

    Raises:
        ValueError: int8.
    """

    def __init__(self, model: OSTrack, device: torch.device, dtype: torch.dtype):
        if dtype == torch.int8:
            raise ValueError(f"{type(model).__name__} runs through its own modules, which have no int8: choose float32")
        self.cfg, self.device = model.cfg, device
        self.compute_dtype = self.dtype = dtype
        with torch.device("meta"):
            self._model = type(model)(model.cfg).eval().requires_grad_(False)
        state = {name: value.detach().to(device, copy=True) for name, value in model.state_dict().items()}
        self._model.load_state_dict(state, assign=True)
        unread = (model.backbone.cls_token, model.backbone.pos_embed)
        self.parameters = sum(each.numel() for each in model.parameters()) - sum(each.numel() for each in unread)
        self.candidates: Tensor | None = None
        self.eliminates, self.qkv_rows = False, self.cfg.template_grid**2
        self.recordable = False  # modules compute with PyTorch

    def tail(self, window: Tensor) -> None:
        """There is no kernel for what follows these features."""

    def crop_patches(self) -> None:
        """The modules read images, not patches."""

    def embed_template(self, template: Tensor, box: Tensor | None = None) -> Template:
        """Template images (B,3,Z,Z) -> their tokens, in a tensor with room for the search region's; no qkv."""
        cfg, rows = self.cfg, self.cfg.template_grid**2
        shape = len(template), rows + cfg.search_grid**2, cfg.embed_dim
        tokens = torch.zeros(shape, dtype=torch.float32, device=self.device)
        with self._autocast():
            tokens[:, :rows] = self._model.embed_template(template.float(), box)
        return Template(tokens, torch.zeros(shape[0], rows, 3 * cfg.embed_dim, dtype=self.dtype, device=self.device))

    def __call__(self, template: Template, search: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Templates, search image (B,3,X,X) -> score (B,1,F,F), size and offset maps (B,2,F,F), float32."""
        with stage("network"), self._autocast():
            tokens = template.tokens[:, : self.cfg.template_grid**2]
            _, _, maps = self._model.forward_tokens(tokens, search.float(), mask, search_only=True)
        score, size, offset = (each.float() for each in maps)
        return score, size, offset

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

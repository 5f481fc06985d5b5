"""The upstream network and tracker, written from their description: the first bar of the waterfall.

Dense attention whose N x N maps are kept until the frame is done, template embedded anew for every frame, LayerNorm and
BatchNorm unfolded, the head's towers one after the other. Parameters are those of an `OSTrack`, and any of the ops can
be replaced by a better one, so that each one's share of the gain can be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ostrack_fast.boxes import clip_xywh, image_to_crop
from ostrack_fast.locator import CLIP_MARGIN, hann_window
from ostrack_fast.model import OSTrack, template_mask
from ostrack_fast.model.vit import Block

from . import bench_attention, bench_crop, bench_decode, bench_eliminate, bench_restore

Box = tuple[float, float, float, float]  # xywh in pixels


class UpstreamNetwork:
    """Template and search images (B,3,Z,Z), (B,3,X,X) -> score, size and offset maps.

    Args:
        attention: (qkv, mask) -> (out, score) in place of the dense one.
        eliminate, restore: with the arguments of `ostrack_fast.ops`, in place of the upstream ones; both or neither.
    """

    def __init__(
        self,
        model: OSTrack,
        attention: Callable[..., Any] | None = None,
        eliminate: Callable[..., Any] | None = None,
        restore: Callable[..., Any] | None = None,
    ):
        self.model, self._restore = model, restore
        self._attention, self._eliminate = attention or bench_attention.dense_attention, eliminate
        self._keep = dict(enumerate(model.cfg.search_tokens()[1:]))
        self._mask = template_mask(model.cfg, device=model.backbone.norm.weight.device)

    def __call__(
        self, template: Tensor, search: Tensor, template_box: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        backbone = self.model.backbone
        return self.locate(backbone.embed_template(template.to(backbone.norm.weight.dtype), template_box), search)

    def locate(self, z: Tensor, search: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same from the template's embedded tokens z (B,T,C)."""
        cfg, backbone = self.model.cfg, self.model.backbone
        x = backbone.embed_search(search.to(backbone.norm.weight.dtype))
        # Upstream keeps them as floats.
        kind = torch.float32 if self._eliminate is None else torch.int64
        ids = torch.arange(x.shape[1], dtype=kind, device=x.device).expand(len(x), -1)
        tokens, removed = torch.cat((z, x), dim=1), []
        maps: list[Tensor] = []
        for index, block in enumerate(cast("list[Block]", backbone.blocks)):
            mask = self._mask if index in cfg.ce_layers else None
            qkv = block.attn.packed(block.norm1(tokens))
            out, score, *kept = self._attention(qkv, mask)
            maps += kept
            tokens = tokens + block.drop_path(block.attn.proj(out))
            if index in cfg.ce_layers:
                step: Callable[..., Any] = self._eliminate or bench_eliminate.upstream
                tokens, ids, gone = step(tokens, score, ids, self._keep[index])
                removed.append(gone)
            tokens = tokens + block.drop_path(block.mlp(block.norm2(tokens)))
        found = backbone.norm(tokens)[:, z.shape[1] :]
        if self._restore is not None:
            feature_map = self._restore(found, ids, cfg.search_grid)
        else:
            none = ids[:, :0]
            feature_map = bench_restore.upstream(found, ids, torch.cat([none, *removed], dim=1), cfg.search_grid)
        return self.model.box_head.get_score_map(feature_map)


def upstream_tracking(model: OSTrack, frame: Tensor, boxes: Sequence[Box]) -> Callable[[], Tensor]:
    """The upstream `initialize`; returns its `track`: the boxes (targets,4) in the next frame, one after the other.

    Boxes are floats, as the corrected upstream code keeps them.
    """
    cfg, network, like = model.cfg, UpstreamNetwork(model), model.backbone.norm.weight
    window = hann_window(cfg.search_grid).to(like.device)
    templates = []
    for box in boxes:
        template, scale = bench_crop.upstream(frame, [list(box)], cfg.template_factor, cfg.template_size, like)
        around = torch.tensor([box], dtype=torch.float32, device=like.device)
        templates.append((template, image_to_crop(around, around, scale.to(like), cfg.template_size)))

    def track() -> Tensor:
        moved = []
        for (template, template_box), box in zip(templates, boxes, strict=True):
            search, scale = bench_crop.upstream(frame, [list(box)], cfg.search_factor, cfg.search_size, like)
            score_map, size_map, offset_map = (each.float() for each in network(template, search, template_box))
            found, _ = bench_decode.upstream(score_map, size_map, offset_map, window)
            place = crop_to_image(found[0].tolist(), box, scale.item(), cfg.search_size)
            moved.append(clip_xywh(place, frame.shape[0], frame.shape[1], CLIP_MARGIN))
        return torch.tensor(moved, dtype=torch.float64)

    return track


def crop_to_image(predicted: Sequence[float], around: Sequence[float], scale: float, size: int) -> Box:
    """A predicted cxcywh box in units of the crop -> xywh in pixels of the image (published `map_box_back`)."""
    side = size / scale
    cx, cy, w, h = (value * side for value in predicted)
    left = around[0] + 0.5 * around[2] - 0.5 * side + cx - 0.5 * w
    top = around[1] + 0.5 * around[3] - 0.5 * side + cy - 0.5 * h
    return left, top, w, h

"""OSTrack: backbone, head, decode. The whole network as the paper draws it (figure 2)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from .. import ops
from ..config import ModelConfig, get_config
from .checkpoint import load_pretrained
from .head import CenterHead
from .vit import Features, VisionTransformer


class OSTrack(nn.Module):
    """One-stream tracker: template and search crop in, box of the template's target in the search crop out."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg = cfg
        self.backbone = VisionTransformer(cfg)
        self.box_head = CenterHead(cfg)

    @classmethod
    def from_preset(cls, name: str) -> OSTrack:
        """An untrained model in evaluation mode; `name` is a preset or the name of a published yaml file."""
        return cls(get_config(name)).eval()

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, cfg: ModelConfig | str | None = None) -> OSTrack:
        """A trained model in evaluation mode.

        Args:
            name_or_path: weights that ship with the package (`"small"`), or a file: .safetensors written by this
                package, or a checkpoint of the published code (.pth.tar), whose pickled objects are never executed.
            cfg: the configuration, for a file that does not carry one and whose shapes leave a choice.

        Raises:
            FileNotFoundError: no such name or file. ValueError: the file does not fit the configuration.
        """
        config, state = load_pretrained(name_or_path, cfg)
        model = cls(config)
        model.load_state_dict(state)
        return model.eval()

    def forward(
        self,
        template: Tensor,
        search: Tensor,
        ce_template_mask: Tensor | None = None,
        ce_keep_rate: float | None = None,
        return_last_attn: bool = False,
    ) -> dict[str, Tensor | list]:
        """Locate the template's target in the search crop.

        Args:
            template: (B,3,Z,Z), search: (B,3,X,X); RGB, ImageNet-normalized.
            ce_template_mask: (T,) or (B,T) bool, the template tokens that rank the candidates; None takes them
                from the configuration (`template_mask`; GT_BOX has no such default).
            ce_keep_rate: share of candidates every eliminating block keeps, instead of the configured ones.
            return_last_attn: also return `attn`, (B,H,N,N) of the last block.

        Returns:
            `pred_boxes` (B,1,4) cxcywh in units of the search crop, at the arg-max of `score_map` (B,1,F,F);
            `size_map`, `offset_map` (B,2,F,F); `backbone_feat` (B,T+F*F,C), zeros where eliminated;
            `removed_indexes_s`: per eliminating block (B,n) places in the order of falling score, or None;
            `ce_scores`: per eliminating block the scores (B,S) and the places (B,S) they belong to.
        """
        cfg = self.cfg
        if ce_template_mask is None and cfg.ce_layers:
            ce_template_mask = template_mask(cfg, device=search.device)
        z = self.backbone.embed_template(template)
        features, feature_map, (score, size, offset) = self.forward_tokens(
            z, search, ce_template_mask, ce_keep_rate, return_last_attn
        )
        boxes, _ = ops.decode(score, size, offset)
        template_features = features.tokens[:, : z.shape[1]]
        out: dict[str, Tensor | list] = {
            "pred_boxes": boxes[:, None],
            "score_map": score,
            "size_map": size,
            "offset_map": offset,
            "backbone_feat": torch.cat((template_features, feature_map.flatten(2).transpose(1, 2)), dim=1),
            "removed_indexes_s": features.removed,
            "ce_scores": features.scores,
        }
        if features.attn is not None:
            out["attn"] = features.attn
        return out

    def forward_tokens(
        self,
        z: Tensor,
        search: Tensor,
        ce_template_mask: Tensor | None = None,
        ce_keep_rate: float | None = None,
        return_last_attn: bool = False,
    ) -> tuple[Features, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """From template tokens `backbone.embed_template` made; other arguments as `forward`.

        Returns the backbone's features, the restored feature map (B,C,F,F) and the head's maps: score, size, offset.
        """
        x = self.backbone.embed_search(search)
        features = self.backbone.forward_tokens(z, x, ce_template_mask, ce_keep_rate, return_last_attn)
        feature_map = ops.restore(features.tokens[:, z.shape[1] :], features.ids, self.cfg.search_grid)
        score, size, offset = self.box_head(feature_map)
        # Half precision would resolve a place on the grid to no better than a pixel of the crop.
        return features, feature_map, (score, size, offset.to(score.dtype))


def build_ostrack(cfg: ModelConfig | str, training: bool = False) -> OSTrack:
    """An untrained model from a configuration or a preset's name, in training or evaluation mode."""
    return OSTrack(get_config(cfg) if isinstance(cfg, str) else cfg).train(training)


def template_mask(cfg: ModelConfig, box: Tensor | None = None, device: torch.device | str | None = None) -> Tensor:
    """The template tokens that rank candidates, (T,) bool, or (B,T) for GT_BOX.

    Args:
        box: (B,4) xywh of the target in units of the template crop; GT_BOX only.

    Source: published `generate_mask_cond`. Its centre of an even grid is the token up and left of the middle,
    unlike the paper's formula.
    """
    grid = cfg.template_grid
    if cfg.ce_template_range == "GT_BOX":
        if box is None:
            raise ValueError("the template range GT_BOX needs the target's box: pass ce_template_mask")
        return _box_mask(cfg, box).to(device or box.device)
    span = {
        "ALL": slice(None),
        "CTR_POINT": slice((grid - 1) // 2, (grid - 1) // 2 + 1),
        "CTR_REC": slice((grid - 1) // 2, grid // 2 + 1),
    }[cfg.ce_template_range]
    mask = torch.zeros(grid, grid, dtype=torch.bool, device="cpu")
    mask[span, span] = True
    return mask.flatten().to(device)


def _box_mask(cfg: ModelConfig, box: Tensor) -> Tensor:
    """Tokens whose central 2 x 2 pixels touch the box; the centre token where the box is too small to touch any."""
    edge = (box.double() * cfg.template_size).cpu()
    low, high = edge[:, :2].int(), (edge[:, :2] + edge[:, 2:] - 1).int()
    # A bilinear reduction by the patch size reads, of each patch, the two middle pixels along either side.
    middle = torch.arange(cfg.template_grid, device="cpu") * cfg.patch_size + cfg.patch_size // 2
    inside = [
        ((middle - 1 < high[:, i, None]) & (middle >= low[:, i, None]) & (high > low)[:, i, None]) for i in (0, 1)
    ]
    mask = (inside[1][:, :, None] & inside[0][:, None, :]).flatten(1)
    centre = ((cfg.template_grid - 1) // 2) * (cfg.template_grid + 1)
    mask[~mask.any(1), centre] = True
    return mask

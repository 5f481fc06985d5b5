"""OSTrack: backbone, head, decode. The whole network as the paper draws it (figure 2)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from .. import ops
from ..config import ModelConfig, get_config
from ..ops.sparse_map import is_worthwhile, sparse_map
from .checkpoint import load_pretrained
from .head import CenterHead
from .vit import Features, VisionTransformer


class OSTrack(nn.Module):
    """One-stream tracker: template and search crop in, box of the template's target in the search crop out.

    `head_type`, `aux_loss`, `feat_sz_s` and `feat_len_s` are for trackers and actors of the published code.
    """

    runs_frozen: ClassVar[bool] = True
    """Whether the engine may compute this network as `FrozenOSTrack` does; others run through their own modules."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg = cfg
        self.backbone = VisionTransformer(cfg)
        self.box_head = CenterHead(cfg)
        self.head_type = "CENTER"
        self.aux_loss = False
        self.feat_sz_s = cfg.search_grid
        self.feat_len_s = cfg.search_grid**2

    @classmethod
    def from_preset(cls, name: str) -> OSTrack:
        """An untrained model in evaluation mode; `name` is a preset or the name of a published yaml file."""
        return cls(get_config(name)).eval()

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, cfg: ModelConfig | str | None = None) -> OSTrack:
        """A trained model in evaluation mode.

        Args:
            name_or_path: weights that ship with the package (`"small"`); a file: .safetensors written by this
                package, or a checkpoint of the published code (.pth.tar), whose pickled objects are never executed;
                a folder with one such file; or a model on the Hugging Face Hub, `"user/model"` or
                `"user/model@revision"` (needs the extra `hub`).
            cfg: the configuration, a preset's name or the path of a published yaml file, for weights that do not say
                with which they were trained. By default it is what the file says: in its metadata, by the name of the
                yaml file in the published trainer's settings, and where there is neither by the shapes of the tensors
                (then with elimination, which leaves no trace in them).

        Raises:
            FileNotFoundError: no such name, file or model, or the Hub cannot be reached.
            CheckpointError: a ValueError; the file is damaged, of another kind, or does not fit the configuration.
        """
        config, state = load_pretrained(name_or_path, cfg)
        # Without memory first, so that the weights are there once.
        with torch.device("meta"):
            model = cls(config)
        model.load_state_dict(state, assign=True)
        return model.eval()

    def forward(
        self,
        template: Tensor,
        search: Tensor,
        ce_template_mask: Tensor | None = None,
        ce_keep_rate: float | None = None,
        return_last_attn: bool = False,
        template_box: Tensor | None = None,
        search_only: bool = False,
    ) -> dict[str, Tensor | list | None]:
        """Locate the template's target in the search crop.

        Args:
            template: (B,3,Z,Z), search: (B,3,X,X); RGB, ImageNet-normalized.
            ce_template_mask: (T,) or (B,T) bool, the template tokens that rank the candidates; None for all of them,
                as in the published code. `template_mask` makes the configured one.
            ce_keep_rate: share of candidates every eliminating block keeps, instead of the configured ones.
            return_last_attn: return `attn` in training too.
            template_box: (B,4) xywh of the target in units of the template crop, for a configuration with
                `template_box`; None where it is not known.
            search_only: leave the template's tokens out of `backbone_feat`, which saves the last block's work on them.

        Returns:
            `pred_boxes` (B,1,4) cxcywh in units of the search crop, at the arg-max of `score_map` (B,1,F,F);
            `size_map`, `offset_map` (B,2,F,F); `backbone_feat` (B,T+F*F,C), zeros where eliminated;
            `removed_indexes_s`: per eliminating block (B,n) cells in the order of falling score, or None;
            `attn` (B,H,N,N), the last block's attention, or None: in training unless asked for, and where the
            configuration eliminates nothing (as the published plain ViT);
            `ce_scores`: per eliminating block the scores (B,S) and the cells (B,S) they belong to.
        """
        if ce_template_mask is None and self.cfg.ce_layers:
            ce_template_mask = torch.ones(self.cfg.template_grid**2, dtype=torch.bool, device=search.device)
        z = self.embed_template(template, template_box)
        attended = return_last_attn or (bool(self.cfg.ce_layers) and not self.training)
        features, feature_map, (score, size, offset) = self.forward_tokens(
            z, search, ce_template_mask, ce_keep_rate, attended, search_only
        )
        boxes, _ = ops.decode(score, size, offset)
        template_features = features.tokens[:, : -features.ids.shape[1]]
        return {
            "pred_boxes": boxes[:, None],
            "score_map": score,
            "size_map": size,
            "offset_map": offset,
            "backbone_feat": torch.cat((template_features, feature_map.flatten(2).transpose(1, 2)), dim=1),
            "removed_indexes_s": features.removed,
            "attn": features.attn,
            "ce_scores": features.scores,
        }

    def embed_template(self, template: Tensor, box: Tensor | None = None) -> Tensor:
        """What `forward_tokens` takes of a template, (B,T,C): constant for as long as a target is tracked."""
        return self.backbone.embed_template(template, box)

    def forward_head(self, cat_feature: Tensor, gt_score_map: Tensor | None = None) -> dict[str, Tensor]:
        """Boxes and maps of the backbone's output (B,T+F*F,C), as `forward` returns them; a published method."""
        features = cat_feature[:, -self.feat_len_s :].transpose(1, 2).unflatten(2, (self.feat_sz_s, self.feat_sz_s))
        score, boxes, size, offset = self.box_head(features.contiguous(), gt_score_map)
        return {"pred_boxes": boxes[:, None], "score_map": score, "size_map": size, "offset_map": offset}

    def forward_tokens(
        self,
        z: Tensor,
        search: Tensor,
        ce_template_mask: Tensor | None = None,
        ce_keep_rate: float | None = None,
        return_last_attn: bool = False,
        search_only: bool = False,
    ) -> tuple[Features, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """From template tokens that `embed_template` made; other arguments as `forward`.

        `search_only`: leave the template's tokens out of the features, after the last block's attention.

        Returns the backbone's features, the restored feature map (B,C,F,F) and the head's maps: score, size, offset.
        """
        x = self.backbone.embed_search(search)
        features = self.backbone.forward_tokens(z, x, ce_template_mask, ce_keep_rate, return_last_attn, search_only)
        restored = features.tokens[:, -features.ids.shape[1] :], features.ids, self.cfg.search_grid
        feature_map = ops.restore(*restored)
        sparse = isinstance(self.box_head, CenterHead) and is_worthwhile(restored[0], restored[2])
        read = sparse_map(*restored) if sparse else feature_map
        score, size, offset = self.box_head.get_score_map(read)
        # Half precision would resolve a position on the grid to no better than a pixel of the crop.
        return features, feature_map, (score, size, offset.to(score.dtype))


def build_ostrack(cfg: ModelConfig | str, training: bool = False) -> OSTrack:
    """An untrained model from a configuration or a preset's name, in training or evaluation mode."""
    return OSTrack(get_config(cfg)).train(training)


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
    middle = torch.arange(cfg.template_grid, dtype=torch.int64, device="cpu") * cfg.patch_size + cfg.patch_size // 2
    inside = [
        ((middle - 1 < high[:, i, None]) & (middle >= low[:, i, None]) & (high > low)[:, i, None]) for i in (0, 1)
    ]
    mask = (inside[1][:, :, None] & inside[0][:, None, :]).flatten(1)
    centre = ((cfg.template_grid - 1) // 2) * (cfg.template_grid + 1)
    mask[~mask.any(1), centre] = True
    return mask

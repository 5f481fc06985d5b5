"""The training objective: focal loss on the score map, GIoU and L1 on the box (section 3.4 of the paper)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..boxes import cxcywh_to_xyxy, paired_iou, xywh_to_xyxy
from ..settings import check_ranges
from .targets import gaussian_heatmap

BOX_CELLS = ("predicted", "target")
Mean = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms, and two departures from the published objective, both off by default.

    Args:
        giou, l1, focal: the published weights.
        box_cells: where the box terms apply. "predicted": at the arg-max of the predicted score map, as published;
            "target": at every cell of the true peak, weighted by the peak. The second teaches the box from the first
            step on, not only once the arg-max is right, which matters in short runs.
        attention: weight of a term that asks the eliminating blocks' candidate score to lie on the target.
    """

    giou: float = 2.0
    l1: float = 5.0
    focal: float = 1.0
    box_cells: str = "predicted"
    attention: float = 0.0

    def __post_init__(self) -> None:
        if self.box_cells not in BOX_CELLS:
            raise ValueError(f"box_cells={self.box_cells!r} is none of {BOX_CELLS}")
        check_ranges(self, giou=(0, 1e6), l1=(0, 1e6), focal=(0, 1e6), attention=(0, 1e6))


def focal_loss(predicted: Tensor, target: Tensor, peaks: Tensor | None = None) -> Tensor:
    """Penalty-reduced focal loss over (B,...) maps in (0,1); peaks are the cells where `target` is exactly 1.

    Normalized by the number of peaks, by default those in `target`. Source: equation 7 of the paper (CornerNet's,
    alpha 2, beta 4).
    """
    peak = target == 1
    positive = (1 - predicted) ** 2 * predicted.clamp(min=1e-12).log()
    negative = (1 - target) ** 4 * predicted**2 * (1 - predicted).clamp(min=1e-12).log()
    peaks = peak.sum() if peaks is None else peaks
    return -torch.where(peak, positive, negative).sum() / peaks.clamp(min=1)


def attention_loss(
    scores: list[tuple[Tensor, Tensor]], box: Tensor, grid: int, share_of: Tensor | None = None
) -> Tensor:
    """-log of the share of the candidate score that lies on the target, averaged over eliminating blocks and batch.

    Args:
        scores: per block the scores (B,S) and cells (B,S), as `OSTrack.forward` returns them.
        box: (B,4) xywh in units of the search crop.
        share_of: (B,) what each pair counts in the average; None for alike.
    """
    share_of = box.new_full((len(box),), 1 / len(box)) if share_of is None else share_of
    low, high = (box[:, :2] * grid - 0.5)[..., None], ((box[:, :2] + box[:, 2:]) * grid - 0.5)[..., None]
    nearest = ((box[:, :2] + box[:, 2:] / 2) * grid - 0.5).round()[..., None]
    total = box.new_zeros(())
    for score, ids in scores:
        cell = torch.stack((ids % grid, ids.div(grid, rounding_mode="floor")), dim=1).to(box)
        on_target = (((cell >= low) & (cell <= high)) | (cell == nearest)).all(1)
        share = (score * on_target).sum(1) / score.sum(1)
        total = total - (share.clamp(min=1e-6).log() * share_of).sum()
    return total / max(len(scores), 1)


def ostrack_loss(
    out: dict,
    box: Tensor,
    cfg: LossConfig = LossConfig(),
    mean: Mean = lambda value: value,
    present: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch and its terms.

    Args:
        out: what `OSTrack.forward` returned.
        box: (B,4) xywh of the target in units of the search crop.
        mean: the mean of a tensor over the processes that share a batch. What normalizes a term is averaged so, which
            makes the mean of their losses the loss of the whole batch.
        present: (B,) bool, whether the target is in the search crop; None for all. A pair without it has a score map to
            learn, with no peak, and no box.

    Returns:
        the scalar loss, and its detached terms `loss`, `giou`, `l1`, `focal`, `attention`, and the mean `iou`
        of the predicted boxes of targets that are present.
    """
    score = out["score_map"].squeeze(1)
    here = box.new_ones(len(box)) if present is None else present.to(box)
    target = gaussian_heatmap(box, score.shape[-1]) * here[:, None, None]
    truth = xywh_to_xyxy(box).clamp(0, 1)
    with torch.no_grad():
        iou, _ = paired_iou(cxcywh_to_xyxy(out["pred_boxes"][:, 0]), truth)
    if cfg.box_cells == "predicted":
        boxes, weight = out["pred_boxes"], here[:, None]
    else:
        boxes, weight = _cell_boxes(out), target.flatten(1)
    boxes = cxcywh_to_xyxy(boxes)
    truths = truth[:, None].expand_as(boxes)
    # In one exchange: each waits for the slowest process.
    pairs, weights, peaks = mean(torch.stack((here.sum(), weight.sum(), (target == 1).sum().to(here))))
    share_of, share = here / pairs.clamp(min=1e-6), weight / weights.clamp(min=1e-6)
    terms = {
        "giou": ((1 - paired_iou(boxes, truths)[1]) * share).sum(),
        "l1": ((boxes - truths).abs().mean(-1) * share).sum(),
        "focal": focal_loss(score, target, peaks),
    }
    loss = cfg.giou * terms["giou"] + cfg.l1 * terms["l1"] + cfg.focal * terms["focal"]
    if cfg.attention:
        terms["attention"] = attention_loss(out["ce_scores"], box, score.shape[-1], share_of)
        loss = loss + cfg.attention * terms["attention"]
    return loss, {"loss": loss.detach(), **{k: v.detach() for k, v in terms.items()}, "iou": (iou * share_of).sum()}


def _cell_boxes(out: dict) -> Tensor:
    """The box every cell predicts, (B,F*F,4) cxcywh."""
    size, offset = out["size_map"], out["offset_map"].to(out["size_map"].dtype)
    grid = size.shape[-1]
    cells = torch.arange(grid, device=size.device, dtype=size.dtype)
    origin = torch.stack(torch.meshgrid(cells, cells, indexing="xy"))
    return torch.cat(((origin + offset) / grid, size), dim=1).flatten(2).transpose(1, 2)

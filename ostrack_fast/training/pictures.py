"""Pictures of training pairs: what goes into the network and what comes out."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..boxes import cxcywh_to_xyxy
from ..data.images import Image
from ..model import OSTrack
from ..visualization.draw import TARGET_COLOUR, draw_box
from ..visualization.inside import SIDE, dimmed, heat, pixels_of, titled

TRUTH_COLOUR = (60, 220, 60)


@torch.no_grad()
def draw_pairs(
    model: OSTrack, template: Tensor, search: Tensor, boxes: tuple[Tensor, Tensor], mask: Tensor | None, keep: float
) -> Image:
    """A row for each pair: template, search with the true box in green and the predicted one, score map, candidates.

    Candidates that were eliminated are dark.

    Args:
        model: is run in evaluation mode, and left in the mode it was in.
        template: (B,3,Z,Z), search: (B,3,X,X), normalized.
        boxes: of template and search, (B,4) xywh over the side of the crop.
        mask, keep: see `OSTrack.forward`.

    Returns:
        (h,w,3) uint8 RGB.
    """
    training = model.training
    try:
        out = model.eval()(template, search, mask, ce_keep_rate=keep)
    finally:
        model.train(training)
    low_high = cxcywh_to_xyxy(out["pred_boxes"][:, 0]).float().cpu()
    predicted = torch.cat((low_high[:, :2], low_high[:, 2:] - low_high[:, :2]), dim=1)
    alive = _alive(out["removed_indexes_s"], len(search), model.cfg.search_grid)
    rows = []
    for i in range(len(search)):
        target, region = (cv2.resize(pixels_of(patch), (SIDE, SIDE)) for patch in (template[i], search[i]))
        found = draw_box(region, (boxes[1][i].cpu() * SIDE).tolist(), TRUTH_COLOUR)
        score = out["score_map"][i, 0].float().cpu().numpy()
        panels = [
            titled(draw_box(target, (boxes[0][i].cpu() * SIDE).tolist(), TRUTH_COLOUR), "template"),
            titled(draw_box(found, (predicted[i] * SIDE).tolist(), TARGET_COLOUR), "search"),
            titled(heat(region, score), f"score, at most {score.max():.2f}"),
            titled(dimmed(region, alive[i]), f"candidates: {int(alive[i].sum())} of {alive[i].size}"),
        ]
        rows.append(np.concatenate(panels, axis=1))
    return np.concatenate(rows)


def _alive(removed: list[Tensor | None], batch: int, grid: int) -> NDArray[np.bool_]:
    """(B,F,F) the cells that no block eliminated."""
    left = torch.ones(batch, grid * grid, dtype=torch.bool, device="cpu")
    for ids in removed:
        if ids is not None:
            left.scatter_(1, ids.cpu().long(), False)
    return left.view(batch, grid, grid).numpy()

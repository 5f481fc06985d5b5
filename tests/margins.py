"""Keeps a comparison of two float32 implementations from hanging on a tie.

Elimination and decode pick among candidates by score. Where the last kept and the first eliminated candidate, or the
two best cells of the score map, score alike to the last bits, the rounding of a processor's own instructions decides,
and two right implementations choose differently. Tests therefore use inputs whose choices have a margin, and assert it.
"""

import torch

from ostrack_fast import ops
from ostrack_fast.boxes import image_to_crop
from ostrack_fast.locator import hann_window
from ostrack_fast.model import template_mask

# Share of the score. Rounding moves a float32 score by about 1e-6 of itself.
MARGIN = 5e-5


@torch.no_grad()
def margin(model, template, search, mask=None, keep_rate=None, window=None):
    """The narrowest choice that an `OSTrack` makes on these images, for each item: (B,) as a share of the score.

    Arguments as `OSTrack.forward`, but without a mask it is the configured one. The choice of the best cell counts
    where a `window` (F,F) is given, or torch.ones.
    """
    mask = template_mask(model.cfg) if mask is None and model.cfg.ce_layers else mask
    out = model(template, search, mask, ce_keep_rate=keep_rate)
    smallest = torch.full((len(search),), float("inf"))
    for (score, _), removed in zip(out["ce_scores"], out["removed_indexes_s"], strict=True):
        if removed is not None and removed.shape[1]:
            kept = score.shape[1] - removed.shape[1]
            ranked = score.sort(descending=True).values
            smallest = smallest.minimum((ranked[:, kept - 1] - ranked[:, kept]) / ranked[:, kept - 1])
    if window is not None:
        best, second = (out["score_map"] * window).flatten(1).topk(2).values.unbind(1)
        smallest = smallest.minimum((best - second) / best)
    return smallest


def decided_images(model, batch, seed=1, mask=None, keep_rate=None):
    """Random template and search crops, (batch,3,Z,Z) and (batch,3,X,X), whose choices all have the margin."""
    cfg, found = model.cfg, []
    training = model.training
    model.eval()
    for attempt in range(1000):
        torch.manual_seed(1000 * seed + attempt)
        z = torch.randn(1, 3, cfg.template_size, cfg.template_size)
        x = torch.randn(1, 3, cfg.search_size, cfg.search_size)
        own = mask if mask is None or mask.dim() == 1 else mask[len(found) :][:1]
        if margin(model, z, x, own, keep_rate, torch.ones(cfg.search_grid, cfg.search_grid)).item() > MARGIN:
            found.append((z, x))
        if len(found) == batch:
            model.train(training)
            return tuple(torch.cat(images) for images in zip(*found, strict=True))
    raise AssertionError(f"of 1000 random images not even {batch} make this network's choices clear")


def assert_frame_decided(model, first, start, frame, around):
    """A target that was `start` in the frame `first` and is searched in `frame` around a box is found by clear choices.

    Frames are (h,w,3) uint8 arrays, boxes xywh in pixels.
    """
    cfg = model.cfg
    boxes = [torch.tensor([box], dtype=torch.float64) for box in (start, around)]
    z, scale = ops.crop(torch.from_numpy(first), boxes[0], cfg.template_factor, cfg.template_size)
    x, _ = ops.crop(torch.from_numpy(frame), boxes[1], cfg.search_factor, cfg.search_size)
    mask = None
    if cfg.ce_layers:
        mask = template_mask(cfg, image_to_crop(*[boxes[0].float()] * 2, scale.float(), cfg.template_size))
    found = margin(model, z, x, mask, window=hann_window(cfg.search_grid)).item()
    assert found > MARGIN, f"choices this close ({found:.1e} of the score) are decided by rounding: take other inputs"

"""The evaluation of the PySOT toolkit."""

from __future__ import annotations

import numpy as np

from ...data.truth import Array
from .base import OVERLAPS, PIXELS, SHARES, CurveProtocol, Curves, Truth, all_positive, iou, share_above, share_within


class Pysot(CurveProtocol):
    """PySOT's toolkit (`OPEBenchmark`).

    Frames with the absent flag are taken out before the comparison, but the shares are of all frames. It has flags for
    LaSOT alone; they are used wherever a benchmark has some, LaSOT_ext included. Nothing is done about answers that are
    no box, which miss, nor about the first frame.

    The overlap is a miss where a number of the true box is not positive, and the error a hit where its centre lies left
    of the image or above it: the toolkit looks at the centre there, not at the box.
    """

    def _score(self, predicted: Array, truth: Truth) -> Curves:
        boxes, frames = truth.boxes, len(truth.boxes)
        if truth.absent is not None:
            predicted, boxes = predicted[~truth.absent], boxes[~truth.absent]
        overlaps = np.where(all_positive(boxes), np.maximum(iou(predicted, boxes), 0), -1)
        centre, true_centre = ((one[:, :2] + (one[:, 2:] - 1) / 2) for one in (predicted, boxes))
        unit = boxes[:, 2:] + 1e-16
        return Curves(
            share_above(overlaps, OVERLAPS, frames),
            share_within(_distance(centre, true_centre), PIXELS, frames),
            share_within(_distance(centre / unit, true_centre / unit), SHARES, frames),
        )


def _distance(centre: Array, true_centre: Array) -> Array:
    """Between centres (n,2), (n,); -1 where the true one is not right of and below the origin."""
    distance = np.sqrt(((true_centre - centre) ** 2).sum(axis=1))
    return np.where((true_centre > 0).all(axis=1), distance, -1)

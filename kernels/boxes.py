"""From maps to boxes in the frame: what the kernels behind the network share.

float64 with separately rounded operations where the frame's pixels begin: the side must be the one that `crop` took, to
the bit, so kernels that use `along` are compiled without fused multiply-add.
"""

import triton
import triton.language as tl


@triton.jit
def clamp(value, low, high):
    # Comparisons with NaN are false, so NaN stays: a lost target must not look like a box at the border.
    value = tl.where(value < low, low, value)
    return tl.where(value > high, high, value)


@triton.jit
def along(centre, extent, corner, length, side, edge, margin):
    """Low end and length of the clipped box along one axis of the frame."""
    centre, extent = centre.to(tl.float64) * side, extent.to(tl.float64) * side
    low = corner + 0.5 * length - 0.5 * side + centre - 0.5 * extent
    high = low + extent
    edge = edge.to(tl.float64)
    # The upper bound comes second and wins where a frame is smaller than the margin.
    low, high = clamp(low, 0.0, edge - margin), clamp(high, margin, edge)
    return low, tl.where(high - low < margin, margin, high - low)


@triton.jit
def best_cell(response, cells, mask, F: tl.constexpr):
    """The first cell of the largest response; of nothing but NaN the first of all."""
    is_best = mask & (response == tl.max(response, axis=0))
    best = tl.min(tl.where(is_best, cells, F * F), axis=0)
    # Nothing equals the maximum when every response is NaN: report the first cell rather than read outside the map.
    return tl.where(best < F * F, best, 0)

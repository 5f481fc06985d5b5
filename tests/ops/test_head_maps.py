"""The head's maps: the compiled kernel against float64, beside PyTorch's formula."""

import pytest
import torch

from ostrack_fast import ops
from ostrack_fast.ops import native
from ostrack_fast.ops.layers import head_maps

CPU = torch.device("cpu")


def both():
    with ops.use("native"):
        assert native.unsupported_reason("head_maps", CPU) is None
        compiled = head_maps(CPU)
    with ops.use("reference"):
        return compiled, head_maps(CPU)


def exact(rows):
    """Score, size, offset in float64."""
    batch, cells, _ = rows.shape
    grid = int(cells**0.5)
    planes = [rows[:, :, plane].double().reshape(batch, 1, grid, grid) for plane in range(5)]
    score, _, _, width, height = (1 / (1 + torch.exp(-each)) for each in planes)
    cut = [each.clamp(1e-4, 1 - 1e-4) for each in (score, width, height)]
    return cut[0], torch.cat(cut[1:], dim=1), torch.cat(planes[1:3], dim=1)


@pytest.mark.parametrize(("batch", "grid"), [(1, 12), (1, 24), (3, 5), (2, 1), (0, 4)])
def test_maps_are_as_exact_as_pytorchs(batch, grid):
    torch.manual_seed(grid)
    rows = 8 * torch.randn(batch, grid * grid, 5)
    compiled, plain = both()
    for ours, theirs, right in zip(compiled(rows), plain(rows), exact(rows), strict=True):
        assert ours.shape == theirs.shape == right.shape and ours.dtype == theirs.dtype == torch.float32
        if batch:
            allowed = 2 * (theirs - right).abs().max().item() + 1e-7
            assert (ours - right).abs().max().item() <= allowed


def test_extremes_are_cut_and_nan_stays():
    rows = torch.tensor([-200.0, -12.0, 0.0, 12.0, 200.0, -torch.inf, torch.inf, torch.nan, 1.0])
    for maps in both():
        score, size, offset = maps(rows[None, :, None].expand(1, 9, 5))
        torch.testing.assert_close(offset[0, 1].flatten(), rows, rtol=0, atol=0, equal_nan=True)
        for plane in (score[0, 0], size[0, 0], size[0, 1]):
            low, high = plane.new_tensor(1e-4), plane.new_tensor(1 - 1e-4)
            expected = torch.stack((low, low, low * 5000, high, high, low, high, rows[7], torch.sigmoid(rows[8])))
            torch.testing.assert_close(plane.flatten(), expected, equal_nan=True)


@pytest.mark.parametrize("wrong", [(1, 9, 4), (1, 8, 5), (9, 5), (1, 0, 5)])
def test_rows_of_other_shapes_are_refused(wrong):
    for maps in both():
        with pytest.raises(ValueError, match=r"float32 \(B,F\*F,5\)"):
            maps(torch.ones(wrong))
        with pytest.raises(ValueError, match="float32"):
            maps(torch.ones(1, 9, 5).double())
        with pytest.raises(RuntimeError, match="has no gradient"):
            maps(torch.ones(1, 9, 5, requires_grad=True))

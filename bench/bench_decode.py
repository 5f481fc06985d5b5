import published
import pytest
import torch


@pytest.mark.parametrize("grid", [16, 24])
@pytest.mark.parametrize("batch", [1, 8])
def test_decode(check_then_time, batch, grid):
    torch.manual_seed(0)
    maps = (torch.rand(batch, 1, grid, grid), torch.rand(batch, 2, grid, grid), torch.rand(batch, 2, grid, grid))
    check_then_time("decode", *maps, published.hann(grid))

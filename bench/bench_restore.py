import pytest
import torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kept", "grid"), [(89, 16), (199, 24)])
@pytest.mark.parametrize("batch", [1, 8])
def test_restore(check_then_time, batch, kept, grid, dtype):
    torch.manual_seed(0)
    ids = torch.stack([torch.randperm(grid * grid)[:kept] for _ in range(batch)])
    check_then_time("restore", torch.randn(batch, kept, 768).to(dtype), ids, grid)

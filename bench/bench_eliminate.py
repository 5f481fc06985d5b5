import pytest
import torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("template", "search", "keep"), [(64, 256, 180), (144, 576, 404)])
@pytest.mark.parametrize("batch", [1, 8])
def test_eliminate(check_then_time, batch, template, search, keep, dtype):
    torch.manual_seed(0)
    tokens = torch.randn(batch, template + search, 768).to(dtype)
    score = torch.stack([torch.randperm(search) for _ in range(batch)]).float() / search
    check_then_time("eliminate", tokens, score, torch.arange(search).expand(batch, -1).contiguous(), keep)

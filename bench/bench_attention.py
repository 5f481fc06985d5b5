import pytest
import torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("template", "search"), [(64, 256), (144, 576)])
@pytest.mark.parametrize("batch", [1, 8])
def test_attention(check_then_time, batch, template, search, dtype):
    torch.manual_seed(0)
    mask = torch.zeros(template, dtype=torch.bool)
    mask[27] = True
    check_then_time("attention", torch.randn(batch, template + search, 3, 12, 64).to(dtype), mask)

import pytest
import torch


@pytest.mark.parametrize(
    ("box", "factor", "size"),
    [
        ((900.0, 500.0, 120.0, 60.0), 2.0, 128),
        ((900.0, 500.0, 120.0, 60.0), 4.0, 256),
        ((5.0, 5.0, 300.0, 200.0), 5.0, 384),
    ],
)
def test_crop(check_then_time, box, factor, size):
    torch.manual_seed(0)
    frame = torch.randint(0, 256, (1080, 1920, 3), dtype=torch.uint8)
    if torch.cuda.is_available():
        pytest.skip("the published crop runs on the CPU: compare the backends there")
    check_then_time("crop", frame, torch.tensor([box], dtype=torch.float64), factor, size)

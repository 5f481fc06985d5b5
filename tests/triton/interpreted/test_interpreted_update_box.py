"""The box of the next frame, interpreted, against the specification: the same to the bit."""

import pytest
import torch
from race_guard import guard

from ostrack_fast.kernels.update_box import update_box
from ostrack_fast.ops.update_box import reference as update_box_reference


def boxes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = torch.rand(count, 4, generator=generator) * 1.4 - 0.2
    box = torch.rand(count, 4, generator=generator, dtype=torch.float64) * 400 - 50
    box[:, 2:] = box[:, 2:].abs() + 0.1
    return found, box


@pytest.mark.parametrize("factor", [4.0, 5.0, 4.1, 2.7182818284590452])
@pytest.mark.parametrize(("frame_size", "margin"), [((480, 640), 10), ((1080, 1920), 0.3), ((5, 7), 10)])
def test_equals_the_specification(frame_size, margin, factor):
    found, box = boxes(40, seed=frame_size[0])
    with guard(3):
        ours = update_box(found, box, frame_size, factor, margin)
    assert ours.dtype == torch.float64
    assert torch.equal(ours, update_box_reference(found, box, frame_size, factor, margin))


def test_the_side_of_perfect_squares_is_not_rounded_up():
    box = torch.tensor([[0.0, 0.0, side, side] for side in (1.0, 3.0, 49.0, 0.1, 1e6)], dtype=torch.float64)
    found = torch.tensor([[0.5, 0.5, 0.25, 0.25]]).expand(5, 4)
    ours = update_box(found, box, (10**7, 10**7), 4.0, 0.0)
    assert torch.equal(ours[:3], box[:3]) and torch.equal(ours[4], box[4])
    assert torch.equal(ours, update_box_reference(found, box, (10**7, 10**7), 4.0, 0.0))


def test_views_and_nan():
    found, box = boxes(6, seed=1)
    found[2, 1] = torch.nan
    ours = update_box(found.T.contiguous().T, box.T.contiguous().T, (480, 640), 4, 10)
    expected = update_box_reference(found, box, (480, 640), 4, 10)
    assert torch.equal(ours.isnan(), expected.isnan()) and ours[2].isnan().any()
    assert torch.equal(ours.nan_to_num(), expected.nan_to_num())

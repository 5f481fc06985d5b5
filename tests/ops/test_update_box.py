"""The box of the next frame, in every backend on every device: the specification, bit by bit."""

import pytest
import torch

from ostrack_fast import ops
from ostrack_fast.bench.upstream import crop_to_image
from ostrack_fast.boxes import clip_xywh
from ostrack_fast.ops.update_box import reference as update_box_reference

SIZES = [((480, 640), 10.0), ((1080, 1920), 0.3), ((5, 7), 10.0)]


def boxes(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = torch.rand(count, 4, generator=generator) * 1.4 - 0.2
    box = torch.rand(count, 4, generator=generator, dtype=torch.float64) * 400 - 50
    box[:, 2:] = box[:, 2:].abs() + 0.1
    return found, box


@pytest.mark.parametrize("count", [1, 31, 300])
@pytest.mark.parametrize("factor", [4.0, 5.0, 2.718])
@pytest.mark.parametrize(("frame_size", "margin"), SIZES)
def test_equals_the_specification(device, frame_size, margin, factor, count):
    found, box = boxes(count)
    ours = ops.update_box(found.to(device), box.to(device), frame_size, factor, margin)
    assert ours.dtype == torch.float64
    assert torch.equal(ours.cpu(), update_box_reference(found, box, frame_size, factor, margin))


def test_follows_the_published_steps(device):
    """From the crop to the frame, then clipped, in Python's floats."""
    found, box = boxes(40, seed=1)
    found = found.abs()
    ours = ops.update_box(found.to(device), box.to(device), (480, 640), 4.0, 10.0)
    for row, around, place in zip(ours.tolist(), box.tolist(), found.double().tolist(), strict=True):
        side = -(-((around[2] * around[3]) ** 0.5 * 4.0) // 1)
        moved = crop_to_image(place, around, 256 / side, 256)
        assert row == pytest.approx(clip_xywh(moved, 480, 640, 10.0), abs=1e-9)


def test_nan_stays_nan(device):
    found, box = boxes(6, seed=2)
    found[2, 1] = torch.nan
    ours = ops.update_box(found.to(device), box.to(device), (480, 640), 4.0, 10.0).cpu()
    expected = update_box_reference(found, box, (480, 640), 4.0, 10.0)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)
    assert ours[2].isnan().any() and ours[[0, 1, 3, 4, 5]].isfinite().all()

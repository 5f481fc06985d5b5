import pytest
import torch

from ostrack_fast import ops
from ostrack_fast.ops import reference


def inputs(batch, grid, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.rand(batch, n, grid, grid, generator=generator, dtype=torch.float64) for n in (1, 2, 2)]
    window = torch.hann_window(grid + 2, periodic=False, dtype=torch.float64)[1:-1]
    return [*(m.to(dtype) for m in maps), torch.outer(window, window).float()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("windowed", [True, False])
@pytest.mark.parametrize(("batch", "grid"), [(1, 16), (3, 24), (2, 1), (5, 7)])
def test_matches_reference_in_float64(device, dtype, windowed, batch, grid):
    score, size, offset, window = inputs(batch, grid, dtype)
    chosen = window if windowed else None
    got_box, got_score = ops.decode(*(None if m is None else m.to(device) for m in (score, size, offset, chosen)))
    exact = [m.double() for m in (score, size, offset)]
    box, best = reference.decode(*exact, None if chosen is None else chosen.double())
    torch.testing.assert_close(got_box.cpu().double(), box, rtol=2 * torch.finfo(got_box.dtype).eps, atol=1e-7)
    assert torch.equal(got_score.cpu().double(), best)  # no arithmetic: the map's own value


def test_the_first_of_equal_cells_wins(device):
    score, size, offset, _ = inputs(2, 8, torch.float32)
    score.clamp_(max=0.5)
    score[0, 0, 5, 3] = score[0, 0, 5, 4] = score[0, 0, 7, 0] = 0.75
    score[1] = 0.25
    box, best = ops.decode(score.to(device), size.to(device), offset.to(device))
    expected = torch.stack([(offset[0, :, 5, 3] + torch.tensor([3, 5])) / 8, offset[1, :, 0, 0] / 8])
    torch.testing.assert_close(box[:, :2].cpu(), expected)
    assert best.tolist() == [0.75, 0.25]


def test_the_window_moves_the_choice_but_not_the_score(device):
    score, size, offset, window = inputs(1, 16, torch.float32)
    score.clamp_(max=0.5)
    score[0, 0, 0, 0], score[0, 0, 8, 8] = 0.9, 0.8
    with_window = ops.decode(*(m.to(device) for m in (score, size, offset, window)))
    without = ops.decode(*(m.to(device) for m in (score, size, offset)))
    assert with_window[1].item() == pytest.approx(0.8)
    assert without[1].item() == pytest.approx(0.9)
    assert torch.equal(with_window[0][0, 2:].cpu(), size[0, :, 8, 8])
    assert torch.equal(without[0][0, 2:].cpu(), size[0, :, 0, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_number_is_read_exactly(dtype):
    numbers = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(dtype)
    finite = numbers[numbers.isfinite()][:, None, None, None]
    maps = torch.cat((finite, finite.flip(0)), dim=1)
    box, best = ops.OPS["decode"].backends["native"].run(finite, maps, torch.zeros_like(maps))
    assert torch.equal(box[:, 2:].view(torch.int32), maps[..., 0, 0].float().view(torch.int32))
    assert torch.equal(best.view(torch.int32), finite.flatten().float().view(torch.int32))

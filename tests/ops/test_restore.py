import pytest
import torch

from ostrack_fast import ops
from ostrack_fast.ops import native, reference


def inputs(batch, kept, channels, grid, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, kept, channels, generator=generator, dtype=torch.float64).to(dtype)
    ids = torch.stack([torch.randperm(grid * grid, generator=generator)[:kept] for _ in range(batch)])
    return tokens, ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("batch", "kept", "channels", "grid"),
    [(1, 89, 768, 16), (2, 199, 96, 24), (1, 256, 768, 16), (3, 1, 1, 1), (2, 5, 33, 3), (1, 30, 31, 9)],
)
def test_matches_reference(device, dtype, batch, kept, channels, grid):
    tokens, ids = inputs(batch, kept, channels, grid, dtype)
    got = ops.restore(tokens.to(device), ids.to(device), grid)
    assert torch.equal(got.cpu(), reference.restore(tokens, ids, grid))


def test_every_token_lands_on_its_place_and_the_rest_is_zero(device):
    tokens, ids = inputs(2, 40, 17, 8, torch.float32)
    out = ops.restore(tokens.to(device), ids.to(device), 8).cpu().flatten(2)
    for b in range(2):
        assert torch.equal(out[b][:, ids[b]].T, tokens[b])
        gone = sorted(set(range(64)) - set(ids[b].tolist()))
        assert out[b][:, gone].count_nonzero() == 0


def test_threads_do_not_change_the_result(threads):
    tokens, ids = inputs(2, 100, 768, 16, torch.float32)
    with ops.use("native"):
        assert torch.equal(ops.restore(tokens, ids, 16), reference.restore(tokens, ids, 16))


@pytest.mark.parametrize("place", [-1, 9, 2**40])
def test_a_place_off_the_grid_is_an_error(place):
    tokens, ids = inputs(1, 4, 8, 3, torch.float32)
    ids[0, 2] = place
    with pytest.raises(ValueError, match="cpu_restore"):
        native.restore(tokens, ids, 3)

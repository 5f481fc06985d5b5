import pytest
import torch

from ostrack_fast import ops
from ostrack_fast.ops import reference


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
        ops.OPS["restore"].backends["native"].run(tokens, ids, 3)


def restored(*arguments, **named):
    """On the backend of the fixture; where it says that it has no kernel for this, on the automatic choice."""
    if ops.OPS["restore"].unsupported_reason(ops.forced_backend(), *arguments, **named) is None:
        return ops.restore(*arguments, **named)
    with pytest.raises(RuntimeError, match=r"cannot run restore: (with|no CUDA kernel with)"):
        ops.restore(*arguments, **named)
    with ops.use("auto"):
        return ops.restore(*arguments, **named)


def layer_norm(tokens, weight, bias, kind, eps=1e-6):
    wide = [value.to(kind) for value in (tokens, weight, bias)]
    return torch.nn.functional.layer_norm(wide[0], wide[1].shape, *wide[1:], eps)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("map_dtype", [None, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("batch", "kept", "channels", "grid"), [(1, 89, 384, 16), (3, 25, 70, 6), (2, 1, 1, 1)])
def test_with_the_final_layer_norm(device, batch, kept, channels, grid, dtype, map_dtype, channels_last):
    tokens, ids = inputs(batch, kept, channels, grid, dtype)
    tokens = 3 * tokens + 5
    weight, bias = (torch.randn(channels, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    got = restored(
        tokens.to(device),
        ids.to(device),
        grid,
        weight.to(device),
        bias.to(device),
        channels_last=channels_last,
        dtype=map_dtype,
    )
    exact = reference.restore(layer_norm(tokens, weight, bias, torch.float64), ids, grid)
    plain = reference.restore(layer_norm(tokens, weight, bias, torch.float32).to(map_dtype or dtype), ids, grid)
    assert got.dtype == (map_dtype or dtype)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    assert got.is_contiguous(memory_format=memory)
    error, allowed = ((value.cpu().double() - exact).abs().max() for value in (got, plain))
    assert error <= 2 * allowed + torch.finfo(got.dtype).eps * exact.abs().max() / 4
    gone = torch.ones(batch, grid * grid, dtype=torch.bool).scatter(1, ids, False)
    assert got.cpu().flatten(2).transpose(1, 2)[gone].count_nonzero() == 0  # not the bias: exact zeros


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("batch", "kept", "channels", "grid"), [(1, 89, 768, 16), (2, 5, 33, 3), (3, 9, 1, 3)])
def test_channels_last_is_the_same_map(device, batch, kept, channels, grid, dtype):
    tokens, ids = (value.to(device) for value in inputs(batch, kept, channels, grid, dtype))
    last = restored(tokens, ids, grid, channels_last=True)
    assert last.permute(0, 2, 3, 1).is_contiguous()
    assert torch.equal(last, ops.restore(tokens, ids, grid))


def test_eps_is_that_of_the_norm(device):
    tokens, ids = inputs(1, 4, 8, 2, torch.float32)
    ones, zeros = torch.ones(8), torch.zeros(8)
    got = restored(tokens.to(device), ids.to(device), 2, ones.to(device), zeros.to(device), eps=0.5)
    torch.testing.assert_close(
        got.cpu(), reference.restore(layer_norm(tokens, ones, zeros, torch.float64, 0.5).float(), ids, 2)
    )

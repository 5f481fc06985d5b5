"""Elimination, restoration and decoding under the interpreter, against the specification."""

import pytest
import torch
from race_guard import guard

from ostrack_fast import kernels, ops
from ostrack_fast.ops import reference

INF, NAN = float("inf"), float("nan")


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def permutations(batch: int, places: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(places, generator=generator) for _ in range(batch)])


def tied_scores(batch: int, candidates: int, seed: int = 0) -> torch.Tensor:
    """Scores with many ties, both zeros and both infinities."""
    score = torch.randint(-3, 4, (batch, candidates), generator=torch.Generator().manual_seed(seed)).float()
    special = torch.tensor([0.0, -0.0, INF, -INF, 0.0])[:candidates]
    score[:, : len(special)] = special
    return score


@pytest.mark.parametrize(
    ("batch", "template", "candidates", "channels", "keep", "dtype"),
    [
        (1, 64, 256, 768, 180, torch.bfloat16),
        (1, 64, 180, 64, 126, torch.float16),
        (1, 64, 126, 32, 89, torch.float32),
        (1, 144, 576, 40, 404, torch.float16),
        (1, 144, 404, 8, 283, torch.bfloat16),
        (1, 144, 283, 8, 199, torch.float64),
        (3, 5, 7, 1030, 4, torch.float32),
        (2, 3, 6, 17, 0, torch.bfloat16),
        (2, 3, 6, 17, 6, torch.float16),
        (1, 0, 1, 1, 1, torch.float32),
    ],
)
def test_eliminate_and_its_gradient(batch, template, candidates, channels, keep, dtype):
    tokens = random(batch, template + candidates, channels, dtype=dtype)
    score, ids = tied_scores(batch, candidates), permutations(batch, candidates)
    with guard(candidates):
        ours = kernels.eliminate(tokens, score, ids, keep)
    expected = reference.eliminate(tokens, score, ids, keep)
    for one, other in zip(ours, expected, strict=True):
        assert torch.equal(one, other)
    if keep == 0:  # which the op refuses
        return
    own_leaf, leaf = tokens.clone().requires_grad_(), tokens.clone().requires_grad_()
    grad = random(*expected[0].shape, dtype=dtype, seed=1)
    with ops.use("triton"):
        ops.eliminate(own_leaf, score, ids, keep)[0].backward(grad)
    reference.eliminate(leaf, score, ids, keep)[0].backward(grad)
    assert torch.equal(own_leaf.grad, leaf.grad)


def test_eliminate_ranks_nan_last_and_loses_nothing():
    score = torch.tensor([[NAN, -INF, 2.0, NAN, -0.0, 0.0, INF, NAN]])
    ids = torch.arange(10, 18)[None]
    with guard():
        tokens, kept, removed = kernels.eliminate(random(1, 9, 4), score, ids, 5)
    assert kept.tolist() == [[16, 12, 14, 15, 11]]
    assert removed.tolist() == [[10, 13, 17]]
    assert not tokens.isnan().any()


@pytest.mark.parametrize(
    ("batch", "kept", "channels", "grid", "dtype"),
    [
        (1, 89, 768, 16, torch.bfloat16),
        (1, 199, 64, 24, torch.float16),
        (2, 256, 70, 16, torch.float32),
        (2, 3, 5, 2, torch.float64),
        (1, 1, 1, 1, torch.float32),
    ],
)
def test_restore_and_its_gradient(batch, kept, channels, grid, dtype):
    tokens, ids = random(batch, kept, channels, dtype=dtype), permutations(batch, grid * grid)[:, :kept].contiguous()
    with guard(kept):
        ours = kernels.restore(tokens, ids, grid)
    assert torch.equal(ours, reference.restore(tokens, ids, grid))
    own_leaf, leaf = tokens.clone().requires_grad_(), tokens.clone().requires_grad_()
    grad = random(*ours.shape, dtype=dtype, seed=1)
    with ops.use("triton"):
        ops.restore(own_leaf, ids, grid).backward(grad)
    reference.restore(leaf, ids, grid).backward(grad)
    assert torch.equal(own_leaf.grad, leaf.grad)


@pytest.mark.parametrize("size", [1e12, 1e20, 1e37])
def test_layer_norm_of_any_float32(size):
    """The square of such tokens is not a float32; their LayerNorm is an ordinary number."""
    tokens, ids = size * random(1, 4, 70), torch.arange(4)[None]
    tokens[0, 1] = size  # no variance: the bias alone
    weight, bias = random(70, seed=1), random(70, seed=2)
    with guard(4):
        ours = kernels.restore(tokens, ids, 2, weight, bias)
    expected = reference.restore(tokens.double(), ids, 2, weight, bias)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kept", "channels", "grid"), [(25, 96, 6), (3, 70, 2)])
def test_restore_with_layer_norm(kept, channels, grid, dtype, parameters):
    tokens = (3 * random(2, kept, channels) + 5).to(dtype)
    ids = permutations(2, grid * grid)[:, :kept].contiguous()
    weight, bias = random(channels, seed=1).to(parameters), random(channels, seed=2).to(parameters)
    with guard(kept):
        ours = kernels.restore(tokens, ids, grid, weight, bias)

    def formula(kind: torch.dtype) -> torch.Tensor:
        normed = torch.nn.functional.layer_norm(tokens.to(kind), (channels,), weight.to(kind), bias.to(kind), 1e-6)
        return reference.restore(normed, ids, grid)

    exact = formula(torch.float64)
    error = (ours.double() - exact).abs().max()
    allowed = (formula(torch.float32).to(dtype).double() - exact).abs().max()
    assert ours.dtype == dtype
    assert error <= 2 * allowed, f"error {error:.2e}, PyTorch {allowed:.2e}"
    assert (ours[exact == 0] == 0).all()


@pytest.mark.parametrize("out", [None, torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_restore_in_another_layout_or_dtype(channels_last, normalized, out):
    tokens, ids = (3 * random(2, 30, 70) + 5)[:, 4:], permutations(2, 36)[:, :26]
    norm = [random(70, seed=1), random(70, seed=2)] if normalized else [None, None]
    with guard(5):
        ours = kernels.restore(tokens, ids, 6, *norm, channels_last=channels_last, dtype=out)
    expected = kernels.restore(tokens.contiguous(), ids.contiguous(), 6, *norm)
    assert torch.equal(ours, expected.to(out or torch.float32)) and ours.dtype == (out or torch.float32)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert ours.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(("channels", "grid"), [(768, 16), (1030, 5), (1, 1)])
def test_restore_channels_last_sizes(channels, grid):
    tokens, ids = random(1, grid * grid, channels), permutations(1, grid * grid)
    with guard(grid):
        ours = kernels.restore(tokens, ids, grid, channels_last=True, dtype=torch.float16)
    assert torch.equal(ours, reference.restore(tokens.half(), ids, grid))


@pytest.mark.parametrize("grid", [16, 24, 1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("windowed", [False, True])
def test_decode(grid, dtype, windowed):
    score_map = random(3, 1, grid, grid).sigmoid().to(dtype)
    score_map[0] = 0.5  # a tie everywhere
    score_map[1, 0].view(-1)[-1] = 0.99
    size_map, offset_map = (random(3, 2, grid, grid, seed=seed).sigmoid().to(dtype) for seed in (1, 2))
    window = torch.outer(*(torch.hann_window(grid + 2, periodic=False)[1:-1],) * 2) if windowed else None
    with guard(grid):
        box, score = kernels.decode(score_map, size_map, offset_map, window)
    expected = reference.decode(
        score_map.double(), size_map.double(), offset_map.double(), None if window is None else window.double()
    )
    assert box.dtype == score.dtype == torch.float32
    assert torch.allclose(box.double(), expected[0], atol=1e-7, rtol=0)
    assert torch.equal(score.double(), expected[1])


@pytest.mark.parametrize(("holes", "best"), [([0, 1], 3), (range(4), 0)])
@pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning")
def test_decode_stays_inside_the_map_when_scores_are_nan(holes, best):
    score_map = torch.tensor([0.9, 0.1, 0.2, 0.3]).view(1, 1, 2, 2)
    score_map.view(-1)[list(holes)] = NAN
    size_map = torch.arange(8.0).view(1, 2, 2, 2)
    with guard():
        box, _ = kernels.decode(score_map, size_map, torch.zeros(1, 2, 2, 2))
    assert box[0, 2:].tolist() == [best, best + 4]

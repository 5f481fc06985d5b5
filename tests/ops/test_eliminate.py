import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ostrack_fast import ops
from ostrack_fast.ops import reference

SHARED = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def ranked(score: list[float]) -> list[int]:
    """Places by falling score, ties in order: Python's own stable sort, in which -0.0 equals 0.0."""
    return sorted(range(len(score)), key=lambda place: -score[place])


def inputs(batch, template, search, channels, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, template + search, channels, generator=generator, dtype=torch.float64).to(dtype)
    score = torch.rand(batch, search, generator=generator)
    ids = torch.stack([torch.randperm(search, generator=generator) for _ in range(batch)])
    return tokens, score, ids


def same(got, expected):
    return all(torch.equal(g.cpu(), e) for g, e in zip(got, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("batch", "template", "search", "keep", "channels"),
    [(1, 64, 256, 180, 768), (3, 144, 576, 404, 48), (2, 1, 5, 5, 7), (2, 3, 1, 1, 1), (1, 0, 90, 63, 33)],
)
def test_matches_reference(device, dtype, batch, template, search, keep, channels):
    tokens, score, ids = inputs(batch, template, search, channels, dtype)
    got = ops.eliminate(tokens.to(device), score.to(device), ids.to(device), keep)
    assert same(got, reference.eliminate(tokens, score, ids, keep))


@SHARED
@given(
    score=st.lists(
        st.one_of(st.floats(width=32, allow_nan=False), st.sampled_from([0.0, -0.0, 1.0])), min_size=1, max_size=300
    ),
    share=st.floats(0, 1),
)
@example(score=[0.0, -0.0] * 20, share=0.5)
@example(score=[float("-inf"), float("inf"), 1e-45, -1e-45, 0.0], share=0.4)
def test_order_is_stable_and_falling(device, score, share):
    keep = max(1, round(share * len(score)))
    search = len(score)
    tokens = torch.arange(search + 2, dtype=torch.float32)[None, :, None].repeat(1, 1, 3)
    ids = 1000 + torch.arange(search)[None]
    scores = torch.tensor([score], dtype=torch.float32)
    out, kept, removed = ops.eliminate(tokens.to(device), scores.to(device), ids.to(device), keep)
    order = ranked(scores[0].tolist())
    assert (kept[0] - 1000).tolist() == order[:keep]
    assert (removed[0] - 1000).tolist() == order[keep:]
    assert out[0, :, 0].tolist() == [0, 1, *(2 + place for place in order[:keep])]


def test_the_largest_search_region(device):
    tokens, score, ids = inputs(2, 4, 1024, 8)
    score = (score * 50).round()  # ties everywhere
    got = ops.eliminate(tokens.to(device), score.to(device), ids.to(device), 717)
    assert same(got, reference.eliminate(tokens, score, ids, 717))


def test_inputs_need_not_be_contiguous():
    tokens, score, ids = inputs(2, 4, 50, 16)
    loose = tokens.transpose(0, 1).contiguous().transpose(0, 1)
    with ops.use("native"):
        got = ops.eliminate(loose, score.t().contiguous().t(), ids, 20)
    assert same(got, reference.eliminate(tokens, score, ids, 20))


def test_threads_do_not_change_the_result(threads):
    tokens, score, ids = inputs(2, 64, 256, 768)  # large enough to be split
    with ops.use("native"):
        assert same(ops.eliminate(tokens, score, ids, 180), reference.eliminate(tokens, score, ids, 180))


def test_nan_is_rejected_on_the_cpu_and_ranks_last_in_the_kernel():
    tokens, score, ids = inputs(1, 2, 6, 4)
    score[0, 1] = float("nan")
    score[0, 2] = float("-inf")
    with pytest.raises(ValueError, match="NaN"):
        ops.eliminate(tokens, score, ids, 3)
    _, kept, removed = ops.OPS["eliminate"].backends["native"].run(tokens, score, ids, 3)
    assert removed[0, -2:].tolist() == [ids[0, 2], ids[0, 1]]
    assert sorted(kept[0].tolist() + removed[0].tolist()) == list(range(6))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["native", "triton"])
def test_nan_ranks_last_on_a_gpu(backend):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    tokens, score, ids = (value.cuda() for value in inputs(1, 2, 6, 4))
    score[0, 1], score[0, 2] = float("nan"), float("-inf")
    with ops.use(backend):
        _, kept, removed = ops.eliminate(tokens, score, ids, 3)
    assert removed[0, -2:].tolist() == [ids[0, 2].item(), ids[0, 1].item()]
    assert sorted(kept[0].tolist() + removed[0].tolist()) == list(range(6))

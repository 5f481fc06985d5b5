"""Attention and its score, against the reference in float64."""

import os
import subprocess
import sys

import pytest
import torch

from ostrack_fast import ops
from ostrack_fast.ops import layers, native, reference

# Tokens and template tokens of both models, with and without elimination; lengths beside the edges of blocks; very few.
LENGTHS = [
    (320, 64),
    (244, 64),
    (190, 64),
    (153, 64),
    (720, 144),
    (548, 144),
    (427, 144),
    (343, 144),
    (63, 16),
    (64, 9),
    (65, 64),
    (17, 16),
    (2, 1),
]


def inputs(batch, tokens, heads, width, dtype=torch.float32, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(batch, tokens, 3, heads, width, generator=generator) * spread
    return qkv.to(dtype)


def rows(template, *chosen):
    mask = torch.zeros(template, dtype=torch.bool)
    mask[list(chosen)] = True
    return mask


def assert_accurate(qkv, mask, device):
    """The error against float64 is at most twice that of the reference in the same dtype, or a rounding error."""
    on_device = qkv.to(device), None if mask is None else mask.to(device)
    exact = reference.attention(qkv.double(), mask)
    baseline = reference.attention(*on_device)
    got = ops.attention(*on_device)
    assert got[0].dtype == qkv.dtype
    for name, ours, plain, expected in zip(("out", "score"), got, baseline, exact, strict=True):
        if expected is None:
            assert ours is None
            continue
        assert ours.shape == expected.shape
        unit = torch.finfo(ours.dtype).eps * expected.abs().max()
        error, allowed = ((value.cpu().double() - expected).abs().max() for value in (ours, plain))
        assert error <= 2 * allowed + unit, f"{name}: error {error:.3g}, PyTorch's {allowed:.3g}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "template"), LENGTHS)
def test_error_by_length(device, tokens, template, dtype):
    mask = rows(template, template * 27 // 64)
    assert_accurate(inputs(1, tokens, 3, 64, dtype), mask, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [32, 64, 96, 128])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_error_by_width(device, width, dtype, spread):
    mask = rows(40, *range(5, 21))
    assert_accurate(inputs(2, 150, 2, width, dtype, spread), mask, device)


@pytest.mark.parametrize(
    "mask",
    [
        rows(70, *range(70)),
        rows(70, 69),
        rows(70, 0, 63, 64),
        torch.stack([rows(70, 1), rows(70, 2, 66), rows(70, *range(30))]),
        rows(70, 3)[None],
    ],
    ids=["all", "last", "across-blocks", "per-sample", "one-row-of-mask"],
)
def test_masks(device, mask):
    batch = 3 if mask.shape[0] == 3 else 1
    assert_accurate(inputs(batch, 201, 2, 64), mask, device)


def test_score_is_the_mean_of_its_rows(device):
    """And a score of rows chosen for all samples equals that of the same rows chosen for each."""
    qkv = inputs(2, 130, 2, 64).to(device)
    chosen = (4, 33, 39)
    together = ops.attention(qkv, rows(40, *chosen).to(device))[1]
    each = ops.attention(qkv, rows(40, *chosen).expand(2, 40).contiguous().to(device))[1]
    single = [ops.attention(qkv, rows(40, row).to(device))[1] for row in chosen]
    assert torch.equal(together, each)
    torch.testing.assert_close(together, torch.stack(single).mean(0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_does_not_depend_on_scoring(device, dtype):
    qkv = inputs(1, 200, 2, 64, dtype).to(device)
    assert torch.equal(ops.attention(qkv)[0], ops.attention(qkv, rows(64, 27).to(device))[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_repeats_bit_by_bit(device, dtype):
    qkv, mask = inputs(2, 320, 4, 64, dtype).to(device), rows(64, *range(64)).to(device)
    first = ops.attention(qkv, mask)
    for _ in range(5):
        again = ops.attention(qkv, mask)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("batch", "tokens"), [(1, 720), (2, 100), (1, 1)])
def test_threads_do_not_change_a_bit(threads, dtype, batch, tokens):
    qkv, mask = inputs(batch, tokens, 3, 64, dtype), rows(max(1, tokens // 3), 0)
    with ops.use("native"):
        many = [ops.attention(qkv, mask) for _ in range(20)]  # threads that share memory by mistake meet now and then
        torch.set_num_threads(1)
        one = ops.attention(qkv, mask)
    assert all(torch.equal(out, one[0]) and torch.equal(score, one[1]) for out, score in many)


@pytest.mark.parametrize("tokens", [1, 5, 64])
def test_no_search_tokens(device, tokens):
    qkv = inputs(2, tokens, 2, 64)
    out, score = ops.attention(qkv.to(device), rows(tokens, 0).to(device))
    assert score.shape == (2, 0)
    torch.testing.assert_close(out.cpu(), reference.attention(qkv)[0])


def test_one_token_returns_its_value(device):
    qkv = inputs(2, 1, 3, 64)
    assert torch.equal(ops.attention(qkv.to(device))[0].cpu(), qkv[:, :, 2].flatten(2))


def test_packed_but_not_contiguous(device):
    qkv = inputs(2, 90, 2, 64)
    strided = qkv.to(device).repeat(1, 1, 1, 1, 2)[..., :64]  # a copy to a device is contiguous
    assert not strided.is_contiguous()
    assert torch.equal(ops.attention(strided)[0], ops.attention(qkv.to(device))[0])


@pytest.mark.parametrize("size", [1e2, 1e4, 1e18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_logits_choose_one_key(device, dtype, size):
    """Each query has one key far above the others, where exponentials taken without the maximum would overflow."""
    tokens, width = 200, 64
    chosen = torch.arange(tokens) * 7 % width
    qkv = inputs(1, tokens, 1, width)
    qkv[:, :, :2] = 0
    qkv[0, torch.arange(tokens), 0, 0, chosen] = size
    qkv[0, torch.arange(width), 1, 0, torch.arange(width)] = size
    qkv[0, width:, 1] = -size
    qkv = qkv.to(dtype)
    out, score = ops.attention(qkv.to(device), rows(10, 3).to(device))
    assert torch.equal(out[0].cpu(), qkv[0, chosen, 2, 0])
    assert torch.equal(score[0].cpu(), torch.eye(tokens)[chosen[3], 10:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_far_below_zero(device, dtype):
    """The maximum starts below any logit."""
    qkv = inputs(1, 130, 2, 64)
    qkv[:, :, 0, :, 0] = 512
    qkv[:, :, 1, :, 0] = -512
    assert_accurate(qkv.to(dtype), rows(30, 3), device)


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", [0, 1, 2], ids=["query", "key", "value"])
def test_not_finite_goes_where_softmax_takes_it(backend, dtype, value, part):
    qkv, mask = inputs(2, 150, 2, 64, dtype), rows(20, 3)
    token = 3 if part == 0 else 97
    qkv[1, token, part, 1, 5] = value
    with ops.use(backend):
        out, score = ops.attention(qkv, mask)
    expected = reference.attention(qkv.double())[0]
    tolerance = {"rtol": 0.05, "atol": 0.02} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(out.double(), expected, equal_nan=True, **tolerance)
    if backend == "native":  # only the chosen row matters; the reference multiplies the other rows by 0
        expected = reference.attention_map(qkv.double())[:, :, 3, 20:].mean(1)
        torch.testing.assert_close(score.double(), expected, equal_nan=True, **tolerance)
    assert out[0].isfinite().all()
    assert not out[1].isfinite().all()


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_key_of_minus_infinity_counts_nothing(backend):
    """Logits of -inf are probabilities of 0, in any number of leading blocks; a row of nothing else is NaN."""
    qkv = inputs(1, 200, 2, 64)
    qkv[0, :, 0, :, 0] = 1
    qkv[0, :, 1, :, 0] = 0
    expected = reference.attention(qkv[:, 150:])[0]
    qkv[0, :150, 1, :, 0] = float("-inf")
    with ops.use(backend):
        torch.testing.assert_close(ops.attention(qkv)[0][:, 150:], expected)
        qkv[0, :, 1, :, 0] = float("-inf")
        assert ops.attention(qkv)[0].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 5, 8, 40, 80, 200, 512])
def test_native_takes_any_width_to_512(dtype, width):
    with ops.use("native"):
        assert_accurate(inputs(1, 75, 2, width, dtype), rows(7, 2), "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_log_sum_exp(dtype):
    qkv = inputs(2, 150, 3, 64, dtype, spread=2.0)
    _, _, lse = ops.OPS["attention"].backends["native"].run(qkv)
    query, key, _ = qkv.double().permute(2, 0, 3, 1, 4)
    expected = (query @ key.transpose(-2, -1) / 8).logsumexp(-1)
    torch.testing.assert_close(lse.double(), expected, rtol=2e-6, atol=2e-6)
    fewer = torch.empty(2, 3, 40)
    native.call(
        "attention", qkv.device, qkv[:, :40, 0], qkv[:, :, 1:], None, torch.empty(2, 40, 192, dtype=dtype), None, fewer
    )
    torch.testing.assert_close(fewer.double(), expected[:, :, :40], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("queries", [1, 36, 64, 65, 180, 300])
def test_cross_attention(queries, dtype, backend):
    """Some queries over all keys, in parts of larger tensors: nothing beside the result is touched."""
    kv = inputs(2, 190, 3, 64, dtype)[:, :, 1:]
    q = torch.cat([inputs(2, 190, 3, 64, dtype, spread=2.0, seed=seed)[:, :, 0] for seed in (1, 2)], 1)[:, :queries]
    exact = reference.cross_attention(q.double(), kv.double())[0]
    plain = reference.cross_attention(q, kv)[0]
    surrounding = torch.full((2, queries + 5, 192), 7.0, dtype=dtype)
    out = surrounding[:, 2 : queries + 2]
    with ops.use(backend):
        attend = layers.cross_attention(3, 64, dtype, q.device)
        got, score = attend(q, kv, None, out)
        assert torch.equal(attend(q, kv)[0], got)
    assert score is None
    assert got.data_ptr() == out.data_ptr()
    error, allowed = ((value.double() - exact).abs().max() for value in (out, plain))
    assert error <= 2 * allowed + torch.finfo(dtype).eps * exact.abs().max()
    out.fill_(7)
    assert (surrounding == 7).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("queries", "chosen"), [(40, (3, 11)), (40, (39,)), (100, (0, 70, 99))])
def test_cross_attention_scores_candidates(queries, chosen, dtype):
    """The template's queries alone find the score of all tokens."""
    qkv = inputs(2, 190, 3, 64, dtype)
    mask = rows(queries, *chosen).expand(2, -1).clone()
    mask[1] = rows(queries, 5)
    with ops.use("native"):
        attend = layers.cross_attention(3, 64, dtype, qkv.device)
        got, score = attend(qkv[:, :queries, 0], qkv[:, :, 1:], mask)
        whole, expected = ops.attention(qkv, mask)
    torch.testing.assert_close(score, expected, rtol=1e-5, atol=1e-8)
    # The estimate of the maximum, so the rounding of probabilities, depends on how many queries a block has.
    torch.testing.assert_close(got, whole[:, :queries], rtol=0.02, atol=1e-5 if dtype == torch.float32 else 2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["portable", "avx2", "avx512"])
def test_lesser_processors(capability):
    """The accuracy tests again, in a process that takes this processor for an older one."""
    features = native.build_info()["cpu_features"]
    needed = {"portable": None, "avx2": "avx2", "avx512": "avx512f"}[capability]
    if needed and not features[needed]:
        pytest.skip(f"this processor has no {needed}")
    chosen = "native-cpu and (error or masks or huge) or native and (width or finite or infinity or log_sum or threads)"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, __file__]
    environment = os.environ | {"OSTRACK_FAST_CPU_CAPABILITY": capability}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_unknown_capability_is_an_error():
    code = "import torch; from ostrack_fast import ops; ops.attention(torch.zeros(1, 2, 3, 1, 8))"
    environment = os.environ | {"OSTRACK_FAST_CPU_CAPABILITY": "avx9", "OSTRACK_FAST_BACKEND": "native"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0


@pytest.mark.parametrize(
    "qkv",
    [torch.zeros(2, 5, 3, 64), torch.zeros(1, 5, 2, 1, 64), torch.zeros(1, 5, 3, 1, 64, dtype=torch.int32)],
    ids=["dims", "not-three", "integers"],
)
def test_wrong_qkv(qkv):
    with pytest.raises(ValueError, match="qkv must be"):
        ops.attention(qkv)


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(6, dtype=torch.bool),
        torch.ones(3, 2, dtype=torch.bool),
        torch.ones(2),
        torch.ones(0, dtype=torch.bool),
    ],
    ids=["longer-than-N", "batch", "dtype", "empty"],
)
def test_wrong_mask(mask):
    with pytest.raises(ValueError, match="template_mask must be"):
        ops.attention(inputs(2, 5, 1, 64), mask)


def test_mask_that_chooses_nothing():
    mask = torch.stack([rows(3, 1), rows(3)])
    with pytest.raises(ValueError, match="chooses no row"):
        ops.attention(inputs(2, 5, 1, 64), mask)


def gradients(qkv, mask, device, scored):
    """Of out and, where `scored`, of the score: in float64, by autograd in the dtype of qkv, and by `ops.attention`."""
    generator = torch.Generator().manual_seed(1)
    batch, tokens, _, heads, width = qkv.shape
    of_out = torch.randn(batch, tokens, heads * width, generator=generator)
    of_score = torch.randn(batch, tokens - mask.shape[-1], generator=generator)
    found = []
    for run, where, dtype in (
        (reference, "cpu", torch.float64),
        (reference, device, qkv.dtype),
        (ops, device, qkv.dtype),
    ):
        leaf = qkv.to(where, dtype, copy=True).requires_grad_()
        out, score = run.attention(leaf, mask.to(where))
        loss = (out * of_out.to(where, out.dtype)).sum()
        if scored:
            loss = loss + (score * of_score.to(where, score.dtype)).sum()
        loss.backward()
        found.append(leaf.grad.cpu().double())
    return found


@pytest.mark.parametrize("scored", [False, True], ids=["of-out", "of-score-too"])
@pytest.mark.parametrize(
    ("batch", "tokens", "width", "mask"),
    [
        (2, 180, 64, rows(36, 14)),
        (1, 320, 64, rows(64, 27)),
        (1, 65, 33, rows(16, *range(16))),
        (2, 140, 96, torch.stack([rows(66, 1), rows(66, 2, 65)])),
        (1, 64, 8, rows(64, 3)),
        (1, 17, 128, rows(9, 0, 8)),
        (1, 410, 40, rows(200, *range(200))),  # several blocks of keys, of queries and of rows that the score counts
    ],
)
def test_error_of_the_gradient(device, batch, tokens, width, mask, scored):
    reason = ops.OPS["attention"].unsupported_reason(ops.forced_backend(), inputs(1, 2, 1, width).to(device))
    if reason is not None:
        pytest.skip(f"{ops.forced_backend()}: {reason}")
    exact, plain, ours = gradients(inputs(batch, tokens, 3, width), mask, device, scored)
    unit = torch.finfo(torch.float32).eps * exact.abs().max()
    error, allowed = ((value - exact).abs().max() for value in (ours, plain))
    assert error <= 2 * allowed + unit, f"error {error:.3g}, PyTorch's {allowed:.3g}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_where_all_logits_are_far_below_zero(device, dtype):
    """A key that only fills a block, whose logits are 0, would be infinitely more probable than these."""
    qkv = inputs(1, 33, 2, 64, dtype)
    qkv[:, :, 0] += 6
    qkv[:, :, 1] -= 6
    *_, ours = gradients(qkv, rows(8, 3), device, True)
    assert ours.isfinite().all()


def test_threads_do_not_change_a_bit_of_the_gradient(threads):
    qkv, mask = inputs(2, 100, 3, 64), rows(36, 14)
    with ops.use("native"):
        many = [gradients(qkv, mask, "cpu", True)[2] for _ in range(5)]
        torch.set_num_threads(1)
        one = gradients(qkv, mask, "cpu", True)[2]
    assert all(torch.equal(each, one) for each in many)


@pytest.mark.parametrize("scored", [False, True], ids=["of-out", "of-score-too"])
@pytest.mark.parametrize(
    ("tokens", "width", "mask"),
    [
        (100, 64, rows(36, 14)),
        (65, 64, torch.stack([rows(16, 3), rows(16, *range(16))])),
        (191, 96, rows(47, 46)),
        (203, 32, rows(47, 46)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradient_in_half_precision(device, dtype, tokens, width, mask, scored):
    exact, plain, ours = gradients(inputs(2, tokens, 3, width, dtype), mask, device, scored)
    error, allowed = ((value - exact).abs().max() for value in (ours, plain))
    assert error <= 2 * allowed

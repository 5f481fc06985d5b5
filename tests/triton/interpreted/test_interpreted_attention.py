"""Attention, its score and its gradient under the interpreter, against the float64 specification."""

import sys

import pytest
import torch
from race_guard import guard

from ostrack_fast import kernels, ops
from ostrack_fast.ops import reference

HALF = (torch.float16, torch.bfloat16)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def template_mask(kind: str, batch: int, template: int) -> torch.Tensor:
    """The template ranges of the published code, and what only a general mask can say."""
    mask = torch.zeros(batch, template, dtype=torch.bool)
    if kind == "point":
        mask[:, {64: 27, 144: 65}.get(template, template // 2)] = True
    elif kind == "square":
        side = int(template**0.5)
        corner = (side // 2) * (side + 1)
        mask[:, [corner, corner - 1, corner - side, corner - side - 1]] = True
    elif kind == "all":
        mask[:] = True
    elif kind == "mixed":
        mask = torch.rand(batch, template, generator=torch.Generator().manual_seed(3)) < 0.3
        mask[0] = False
        mask[-1] = False
        mask[-1, -1] = True
    return mask if kind == "mixed" else mask[0]


def assert_no_worse(ours: torch.Tensor, pytorch: torch.Tensor, exact: torch.Tensor, floor: float) -> None:
    """At most twice the error of PyTorch's formula at the same dtype; `floor` where that happens to be exact."""
    assert ours.shape == exact.shape
    if exact.numel() == 0:
        return
    error, allowed = ((value.double() - exact).abs().max().item() for value in (ours, pytorch))
    assert error <= 2 * allowed + floor, f"error {error:.2e}, PyTorch {allowed:.2e}"


def check_forward(qkv: torch.Tensor, mask: torch.Tensor | None, seed: int) -> None:
    with guard(seed):
        out, score, lse = kernels.attention(qkv, mask)
    exact_out, exact_score = reference.attention(qkv.double(), mask)
    pytorch_out, pytorch_score = reference.attention(qkv, mask)
    floor = torch.finfo(qkv.dtype).eps / 4
    assert out.dtype == qkv.dtype
    assert_no_worse(out, pytorch_out, exact_out, floor)
    if mask is None:
        assert score is None
    else:
        assert score.dtype == torch.float32
        assert_no_worse(score, pytorch_score, exact_score, 1e-8)
    query, key, _ = qkv.double().permute(2, 0, 3, 1, 4)
    exact_lse = (query @ key.transpose(-2, -1) * qkv.shape[-1] ** -0.5).logsumexp(-1)
    assert torch.allclose(lse.double(), exact_lse, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize(
    ("template", "search", "dtype", "kind"),
    [
        (64, 256, torch.bfloat16, "point"),
        (64, 180, torch.float16, "all"),
        (64, 126, torch.bfloat16, "square"),
        (64, 89, torch.float32, "point"),
        (144, 576, torch.float16, "point"),
        (144, 404, torch.bfloat16, "square"),
        (144, 283, torch.float16, "all"),
        (144, 199, torch.bfloat16, "point"),
    ],
)
def test_sizes_of_the_model(template, search, dtype, kind):
    check_forward(random(1, template + search, 3, 1, 64, dtype=dtype), template_mask(kind, 1, template), seed=search)


@pytest.mark.parametrize("kind", ["point", "square", "all", "mixed"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_template_ranges_over_several_blocks_and_heads(kind, dtype):
    check_forward(random(3, 81, 3, 2, 32, dtype=dtype), template_mask(kind, 3, 70), seed=1)


@pytest.mark.parametrize("tokens", [1, 2, 17, 64, 65])
def test_no_mask_and_odd_lengths(tokens):
    check_forward(random(2, tokens, 3, 2, 32, dtype=torch.bfloat16), None, seed=2)


@pytest.mark.parametrize(("tokens", "template"), [(2, 1), (66, 65), (66, 1), (3, 3)])
def test_extreme_splits(tokens, template):
    check_forward(random(1, tokens, 3, 2, 32, dtype=torch.float16), torch.ones(template, dtype=torch.bool), seed=3)


@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
@pytest.mark.parametrize("dim", [32, 64, 96, 128])
def test_head_dimensions(dim, dtype):
    check_forward(random(1, 70, 3, 2, dim, dtype=dtype), template_mask("point", 1, 9), seed=dim)


def test_blocks_of_128_rows_for_large_batches(monkeypatch):
    module = sys.modules[kernels.attention.__module__]
    blocks = module._forward_blocks(torch.empty(32, 320, 3, 12, 64, dtype=torch.float16, device="meta"))
    assert blocks["BLOCK_M"] == 128
    monkeypatch.setattr(module, "_forward_blocks", lambda qkv: blocks)
    check_forward(random(2, 150, 3, 1, 64, dtype=torch.bfloat16), template_mask("square", 1, 130), seed=4)


def test_large_logits_do_not_overflow():
    qkv = random(1, 40, 3, 1, 64)
    qkv[:, :, :2] *= 30
    with guard():
        out, score, _ = kernels.attention(qkv, template_mask("all", 1, 8))
    exact_out, exact_score = reference.attention(qkv.double(), template_mask("all", 1, 8))
    # Logits of several thousand: float32 rounds them by up to 2e-4, and the probabilities with them.
    assert torch.allclose(out.double(), exact_out, atol=5e-3)
    assert torch.allclose(score.double(), exact_score, atol=5e-3)


def test_score_does_not_depend_on_the_order_of_programs():
    qkv, mask = random(2, 90, 3, 4, 32, dtype=torch.float16), template_mask("mixed", 2, 70)
    scores = []
    for seed in range(4):
        with guard(seed):
            scores.append(kernels.attention(qkv, mask)[1])
    assert all(torch.equal(scores[0], other) for other in scores[1:])


def test_tickets_are_left_ready_for_the_next_launch():
    qkv, mask = random(2, 40, 3, 2, 32), template_mask("all", 2, 33)
    arrivals = torch.zeros(2, dtype=torch.int32)
    first = kernels.attention(qkv, mask, arrivals)[1]
    assert arrivals.tolist() == [0, 0]
    assert torch.equal(first, kernels.attention(qkv, mask, arrivals)[1])


def test_a_mask_broadcast_over_the_batch_equals_one_per_element():
    qkv, mask = random(3, 40, 3, 2, 32), template_mask("square", 3, 16)
    one = kernels.attention(qkv, mask)[1]
    assert torch.equal(one, kernels.attention(qkv, mask.expand(3, -1))[1])
    assert torch.equal(one, kernels.attention(qkv, mask[None].expand(3, -1).contiguous())[1])


@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "dim", "dtype"),
    [
        (1, 153, 1, 64, torch.bfloat16),
        (1, 190, 1, 64, torch.float16),
        (2, 70, 2, 64, torch.float32),
        (1, 40, 2, 32, torch.bfloat16),
        (1, 65, 1, 96, torch.float16),
        (1, 20, 2, 96, torch.float32),
        (1, 33, 1, 128, torch.bfloat16),
        (1, 33, 1, 128, torch.float32),
        (1, 1, 1, 32, torch.float16),
    ],
)
def test_gradient(batch, tokens, heads, dim, dtype):
    qkv = random(batch, tokens, 3, heads, dim, dtype=dtype)
    grad = random(batch, tokens, heads * dim, dtype=dtype, seed=1)
    out, _, lse = kernels.attention(qkv)
    with guard(tokens):
        ours = kernels.attention_backward(grad, qkv, out, lse)
    expected = []
    for leaf in (qkv.double().requires_grad_(), qkv.clone().requires_grad_()):
        reference.attention(leaf)[0].backward(grad.to(leaf.dtype))
        expected.append(leaf.grad)
    for part in range(3):
        assert_no_worse(ours[:, :, part], expected[1][:, :, part], expected[0][:, :, part], 2 * torch.finfo(dtype).eps)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp2:RuntimeWarning")
def test_gradient_where_every_logit_is_very_negative():
    qkv = random(1, 40, 3, 1, 32)
    qkv[:, :, 0], qkv[:, :, 1] = 5 + 0.01 * qkv[:, :, 0], -5 + 0.01 * qkv[:, :, 1]
    out, _, lse = kernels.attention(qkv)
    assert lse.max() < -100
    leaf = qkv.double().requires_grad_()
    reference.attention(leaf)[0].backward(torch.ones(1, 40, 32, dtype=torch.float64))
    ours = kernels.attention_backward(torch.ones(1, 40, 32), qkv, out, lse)
    assert torch.allclose(ours.double(), leaf.grad, atol=1e-3)


def test_autograd_and_inputs_that_are_not_dense():
    qkv = random(1, 20, 3, 1, 32)
    out, _, lse = kernels.attention(qkv)
    grad = random(1, 32, 20, seed=1).transpose(1, 2)
    leaf = qkv.transpose(1, 4).contiguous().transpose(1, 4).requires_grad_()
    with ops.use("triton"):
        result, score = ops.attention(leaf, torch.ones(4, dtype=torch.bool))
        assert torch.equal(result, out) and score.requires_grad
        result.backward(grad)
    assert torch.equal(leaf.grad, kernels.attention_backward(grad.contiguous(), qkv, out, lse))


def test_reasons_why_not():
    def reason(name, **arguments):
        return ops.declared(name).unsupported_reason("triton", **arguments)

    qkv = torch.empty(1, 8, 3, 2, 32)
    assert reason("attention", qkv=qkv, template_mask=None) is None
    assert "head dimension" in reason("attention", qkv=torch.empty(1, 8, 3, 2, 48))
    assert "float64" in reason("attention", qkv=qkv.double())
    assert "tokens" in reason("attention", qkv=torch.empty(1, 1025, 3, 1, 32))
    assert "CUDA device" in reason("attention", qkv=qkv.to("meta"))
    out, lse, score = torch.empty(1, 8, 64), torch.empty(1, 2, 8), torch.empty(1, 4)
    backward = {"qkv": qkv, "out": out, "lse": lse, "grad_out": out}
    assert reason("attention_backward", **backward) is None
    assert "gradient of the score" in reason("attention_backward", **backward, grad_score=score)
    weight = torch.empty(8, 8)
    assert reason("linear", weight=weight, bias=weight[0], norm_eps=1e-6, dtype=torch.float16) is None
    assert "int8" in reason("linear", weight=weight, dtype=torch.int8)
    assert "frozen" in reason("linear", weight=weight.clone().requires_grad_())
    assert reason("conv3x3", weight=weight[:, :, None, None].expand(8, 8, 3, 3), groups=1) is None
    assert "no triton kernel" in reason("cross_attention", heads=1, width=32, dtype=torch.float32, device=qkv.device)
    box = torch.empty(1, 4)
    around = {"frame_size": (4, 4), "factor": 4.0, "margin": 10.0}
    assert reason("update_box", found=box, box=box.double(), **around) is None
    assert "float32" in reason("update_box", found=box.double(), box=box.double(), **around)
    tokens, ids = torch.empty(1, 4, 8), torch.arange(4)[None]
    assert reason("restore", tokens=tokens, ids=ids, grid=2, dtype=torch.float16) is None
    assert "float64" in reason("restore", tokens=tokens, ids=ids, grid=2, dtype=torch.float64)
    tokens.requires_grad_()
    assert reason("restore", tokens=tokens, ids=ids, grid=2, channels_last=True) is None


def test_bound_calls_share_arrival_counters_that_stay_zero():
    """None is filled between launches; more targets get more, and graphs keep those that they were captured with."""
    qkv, mask = random(3, 100, 3, 1, 32, dtype=torch.float16), template_mask("square", 3, 64)
    with ops.use("triton"):
        bound = ops.OPS["attention"].bind(qkv, mask)
    for batch in (2, 1, 3, 2):
        with guard(batch):
            out, score, _ = bound(qkv[:batch], mask)
        expected = kernels.attention(qkv[:batch], mask)
        assert torch.equal(out, expected[0]) and torch.equal(score, expected[1])
        assert not any(each.any() for each in bound._arrivals)
    assert [len(each) for each in bound._arrivals] == [2, 3]

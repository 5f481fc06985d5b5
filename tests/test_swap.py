"""`accelerate(network, mode="ops")`: modules as in the published code and its forks, replaced in place."""

import copy
import io
import sys
import threading

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional

from ostrack_fast import accelerate, ops
from ostrack_fast.cli import app
from ostrack_fast.ops.layers import why_no_int8
from ostrack_fast.swap import report_of, written_out
from ostrack_fast.swap.attention_map import AttentionMap
from ostrack_fast.swap.block import exactly, loosely
from ostrack_fast.swap.compare import difference
from ostrack_fast.swap.swapped import Session

from .published_like import Attention, CenterPredictor, Mlp, published
from .swap_like import (
    BiasedAttention,
    CEBlock,
    DecisionAttention,
    KeepingAttention,
    OneTowerLess,
    PatchMerge,
    PlainBlock,
    SplitAttention,
    TokenCEBlock,
    awake,
)

DIM, HEADS, T, S = 32, 2, 9, 25
torch.manual_seed(0)  # of the weights below


@pytest.fixture(autouse=True)
def whatever_the_speed(monkeypatch):
    """Which of two is faster differs from run to run on a busy machine."""
    monkeypatch.setattr(Session, "speed", lambda self, key, original, replacement: 2.0)


def tokens(batch=2, count=T + S, seed=3):
    return torch.randn(batch, count, DIM, generator=torch.Generator().manual_seed(seed))


def states(report):
    return {row.name: (row.kind, row.state) for row in report.rows}


def ids(batch=2):
    """As the published backbone makes them, in float32."""
    return torch.arange(T).float().repeat(batch, 1), torch.arange(S).float().repeat(batch, 1)


def some_rows(batch=2):
    mask = torch.zeros(batch, T, dtype=torch.bool)
    mask[:, 2:5] = True
    return mask


CASES = {
    "block": (PlainBlock(DIM, HEADS), (tokens(),), "block"),
    "block-none": (PlainBlock(DIM, HEADS), (tokens(), None), "block"),
    "keeps-all": (CEBlock(DIM, HEADS), (tokens(), *ids()), "block"),
    "eliminates": (CEBlock(DIM, HEADS, 0.7), (tokens(), *ids(), None, some_rows()), "block"),
    "eliminates-all-rows": (CEBlock(DIM, HEADS, 0.7), (tokens(), *ids(), None, None), "block"),
    "eliminates-as-asked": (CEBlock(DIM, HEADS, 0.7), (tokens(), *ids(), None, some_rows(), 0.5), "block"),
    "eliminates-behind-tokens": (
        TokenCEBlock(DIM, HEADS, 0.7),
        (tokens(count=2 + T + S), *ids(), None, some_rows(), None),
        "block",
    ),
    "attention": (Attention(DIM, HEADS), (tokens(),), "attention"),
    "attention-map": (Attention(DIM, HEADS), (tokens(), None, True), "attention"),
    "attention-decision": (DecisionAttention(DIM, HEADS), (tokens(), S, 0.4), "attention"),
    "mlp": (Mlp(DIM, nn.GELU), (tokens(),), "MLP"),
    "norm-linear": (nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 5)), (tokens(),), "LayerNorm and linear"),
    "patches": (nn.Conv2d(6, DIM, 4, 4), (torch.randn(2, 6, 20, 24),), "patch embedding"),
    "linear": (nn.Linear(DIM, 7, bias=False), (tokens(),), "linear"),
    "head": (CenterPredictor(DIM, 16, 8), (torch.randn(2, DIM, 8, 8),), "centre head"),
    "head-one-tower-less": (OneTowerLess(DIM, 16, 8), (torch.randn(1, DIM, 8, 8),), "centre head"),
}


def options(name):
    return {"add_cls_token": True, "query": 2} if name == "eliminates-behind-tokens" else {}


def flat(value):
    if isinstance(value, torch.Tensor) or value is None:
        return [value]
    return [each for part in value for each in flat(part)]


def assert_same(found, expected, tolerance=1e-5):
    found, expected = flat(found), flat(expected)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype and a.shape == b.shape and a.is_contiguous() == b.is_contiguous()
            torch.testing.assert_close(a + 0, b + 0, rtol=0, atol=tolerance * float(b.abs().max().clamp(min=1e-9)))


def counting(module, monkeypatch):
    """How often the module's own method runs from here on."""
    swap = next(value for value in module.__dict__.values() if type(value).__name__ == "Swapped")
    calls, original = [], swap.original
    monkeypatch.setattr(swap, "original", lambda *a, **k: calls.append(1) or original(*a, **k))
    return calls


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_a_module_gives_what_it_gave(name, monkeypatch):
    module, arguments, kind = CASES[name]
    module = awake(copy.deepcopy(module))
    expected = module(*arguments, **options(name))
    names, signature = list(module.state_dict()), type(module).forward

    def run(module):
        return module(*arguments, **options(name))

    report = accelerate(module, mode="ops", dtype="float32", inputs=run)
    assert states(report)[""] == (kind, "replaced"), [row.why for row in report.rows]
    assert report.error < 1e-5 and report.covered == pytest.approx(1)
    calls = counting(module, monkeypatch)
    assert_same(run(module), expected)
    assert not calls, "the module's own code ran"
    assert list(module.state_dict()) == names and type(module).forward is signature
    assert report.restore() is module and "forward" not in module.__dict__ and report_of(module) is None
    assert_same(run(module), expected, 0)


LEFT = {
    "split": (SplitAttention(DIM, HEADS, T), (tokens(),), "attention", "differs by"),
    "mask": (Attention(DIM, HEADS), (tokens(), torch.arange(T + S).expand(2, -1) > T), "attention", "takes a mask"),
    "tanh": (Mlp(DIM, lambda: nn.GELU("tanh")), (tokens(),), "MLP", "differs by"),
    "rearranged": (PatchMerge(DIM // 4), (torch.randn(1, 3, 4, 4, DIM // 4),), "LayerNorm and linear", "(...,"),
    "rows-differ": (
        CEBlock(DIM, HEADS, 0.7),
        (tokens(), *ids(), None, torch.arange(2 * T).view(2, T) % 9 < torch.tensor([[2], [6]])),
        "block",
        "not as many for every image",
    ),
}


@pytest.mark.parametrize("name", LEFT)
@torch.no_grad()
def test_a_module_that_computes_something_else_is_left(name):
    module, arguments, kind, why = LEFT[name]
    module = awake(copy.deepcopy(module))
    expected = module(*arguments)
    report = accelerate(module, mode="ops", dtype="float32", inputs=arguments)
    row = next(row for row in report.rows if row.name == "")
    assert (row.kind, row.state) == (kind, "left") and why in row.why
    assert_same(module(*arguments), expected)


@pytest.fixture
def imprecise():
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("imprecise")
@torch.no_grad()
def test_in_float32_the_module_is_compared_as_it_is_in_float32():
    """Whatever rounding the caller allows: on a processor with bfloat16, "medium" rounds to that."""
    seen = []

    class Noting(nn.Linear):
        def forward(self, x):
            seen.append(torch.get_float32_matmul_precision())
            return super().forward(x)

    module = awake(Noting(DIM, DIM))
    report = accelerate(module, mode="ops", dtype="float32", inputs=(tokens(),))
    assert states(report) == {"": ("linear", "replaced")} and report.error < 1e-5
    assert seen == ["highest"] * 2, "once for the whole network, once for the module"
    report.restore()
    module(tokens())
    assert seen[-1] == "medium"


@torch.no_grad()
def test_a_module_that_is_left_costs_nothing():
    """Once its calls are known, it is as it was; the report goes on telling why."""
    network = nn.Sequential(awake(Mlp(DIM, lambda: nn.GELU("tanh"))), nn.Linear(DIM, DIM))
    report = accelerate(network.eval(), mode="ops", dtype="float32", inputs=(tokens(),))
    assert "forward" not in network[0].__dict__ and "forward" in network[1].__dict__
    rows = report.rows
    row = next(row for row in rows if row.name == "0")
    assert row.state == "left" and "differs by" in row.why
    assert accelerate(network, mode="ops", dtype="float32", inputs=(tokens(),)).rows == rows


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@torch.no_grad()
def test_modules_on_a_gpu(dtype):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    network = published(ce=None).cuda()
    images = [torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(size)).cuda() for size in (64, 128)]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = network(*images)
    # TF32 is allowed, as PyTorch comes.
    report = accelerate(network, mode="ops", dtype=dtype, inputs=tuple(images))
    assert {row.kind: row.state for row in report.rows} == dict.fromkeys(
        ("patch embedding", "block", "centre head"), "replaced"
    ), [row.why for row in report.rows]
    found = network(*images)
    for name in ("score_map", "size_map", "offset_map"):
        error = (found[name] - expected[name]).abs().max() / expected[name].abs().max()
        assert error < {"float32": 1e-4, "float16": 0.02}[dtype], name


@pytest.fixture
def attended(monkeypatch):
    """Grows with every attention of a written-out one that our op computes."""
    calls = []
    build = written_out.cross_attention
    monkeypatch.setattr(written_out, "cross_attention", lambda *sizes: calls.append(sizes) or build(*sizes))
    return calls


@torch.no_grad()
def test_attention_that_a_module_writes_out_runs_on_our_ops(attended):
    module = awake(BiasedAttention(DIM, HEADS))
    plain = copy.deepcopy(module)
    report = accelerate(module, mode="ops", dtype="float32", inputs=(tokens(), T))
    assert states(report) == {"": ("written-out attention", "replaced")}
    assert report.error < 1e-5 and report.covered == pytest.approx(1)
    attended.clear()
    assert_same(module(tokens(), T), plain(tokens(), T))
    assert len(attended) == 1
    for each in (module, plain):
        each.v_bias.add_(1)  # no weight of a layer, but part of what one is called with
    for _ in range(2):  # checked, then served
        assert_same(module(tokens(), T), plain(tokens(), T))
    assert len(attended) == 3


class OwnMethods(nn.Module):
    """Calls modules by names of their own, as ROMTrack does."""

    def __init__(self):
        super().__init__()
        self.attn = KeepingAttention(DIM, HEADS)

    def forward(self, x):
        return self.attn.forward_test(x)


@torch.no_grad()
def test_other_methods_of_attention_are_replaced_and_keep_what_they_kept(attended):
    network = awake(OwnMethods())
    network.attn.start(tokens(count=T, seed=1))
    plain = copy.deepcopy(network)
    report = accelerate(network, mode="ops", dtype="float32", inputs=(tokens(),))
    assert states(report) == {"attn": ("written-out attention", "replaced")}
    assert report.error < 1e-5 and report.covered > 0.5
    assert_same((network.attn.k, network.attn.v), (plain.attn.k, plain.attn.v), 0)
    for seed in range(4):  # of which the first two begin with keys of another call, one of them of other sizes
        attended.clear()
        assert_same(network(tokens(seed=seed)), plain(tokens(seed=seed)))
        assert_same((network.attn.k, network.attn.v), (plain.attn.k, plain.attn.v))
        assert len(attended) == 1
    report.restore()
    assert not {"forward", "forward_test", "start"} & network.attn.__dict__.keys()
    assert_same(network(tokens()), plain(tokens()))


@torch.no_grad()
def test_a_thread_is_served_while_another_runs_the_modules_as_they_were(attended):
    module = awake(BiasedAttention(DIM, HEADS))
    report = accelerate(module, mode="ops", dtype="float32", inputs=(tokens(), T))
    attended.clear()

    def run():
        with torch.no_grad():
            module(tokens(), T)

    with report._session.originals():
        run()
        assert not attended
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert len(attended) == 1


READ = {
    "scaled": lambda logits, v: (2 * logits / 4).softmax(-1) @ v,
    "functions": lambda logits, v: torch.matmul(functional.softmax(functional.dropout(logits, 0.5, False), 3), v),
    "other-dimension": lambda logits, v: logits.softmax(2) @ v,
    "in-place": lambda logits, v: logits.masked_fill_(logits > 0, -1).softmax(-1) @ v,
    "assigned": lambda logits, v: _assigned(logits).softmax(-1) @ v,
    "biased": lambda logits, v: (logits + 1).exp().softmax(-1) @ v,
    "by-tensor": lambda logits, v: (logits * torch.full((1,), 0.5)).softmax(-1) @ v,
    "narrow": lambda logits, v: logits.softmax(-1) @ v[..., :3],
    "returned": lambda logits, v: torch.cat((logits.softmax(-1), logits), -1),
    "wide": lambda logits, v: logits.softmax(-1, dtype=torch.float64),
    "dropped": lambda logits, v: functional.dropout(logits.softmax(-1), 1.0) @ v,
    "none": lambda logits, v: logits @ v,
}


def _assigned(logits):
    logits[:, :, :2, 2:] = float("-inf")
    return logits


@pytest.mark.parametrize("name", READ)
@torch.no_grad()
def test_whatever_is_done_with_written_out_logits_gives_what_it_gave(name):
    q, k, v = torch.randn(3, 2, HEADS, 7, 8, generator=torch.Generator().manual_seed(1))
    ours = written_out.OurOps(nn.Identity(), torch.float32)
    expected = READ[name](q @ k.transpose(-2, -1), v)
    with ours:
        found = READ[name](q @ k.transpose(-2, -1), v)
    assert_same(found.contiguous(), expected.contiguous())
    assert ours.begun == 1 and ours.ended == (name in ("scaled", "functions"))


class Counting(nn.Module):
    """An MLP by its attributes that keeps its last input."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.last = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM), None

    def forward(self, x):
        self.last = x
        return self.fc2(nn.functional.gelu(self.fc1(x)))


def test_a_module_that_keeps_something_is_left_and_what_it_keeps_is_as_before():
    module = awake(Counting())
    report = accelerate(module, mode="ops", dtype="float32", inputs=(tokens(),))
    assert report.rows[0].why == "keeps something between calls" and module.last is None


class Adding(nn.Module):
    """An MLP by its attributes that counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls.add_(1)
        return self.fc2(nn.functional.gelu(self.fc1(x)))


def test_a_module_that_changes_in_place_what_it_keeps_is_left():
    report = accelerate(awake(Adding()), mode="ops", dtype="float32", inputs=(tokens(),))
    assert report.rows[0].why == "changes in place what it keeps"


class Query(nn.Module):
    """Hands a parameter of its own to a module (as AQATrack does)."""

    def __init__(self):
        super().__init__()
        self.query, self.mlp = nn.Parameter(torch.randn(1, 3, DIM)), Mlp(DIM, nn.GELU)

    def forward(self, x):
        return self.mlp(self.query) + x.mean()


def test_a_parameter_handed_to_a_module_counts_like_any_input():
    module = awake(Query())
    report = accelerate(module, mode="ops", dtype="float32", inputs=(tokens(),))
    assert states(report) == {"mlp": ("MLP", "replaced")}
    assert report.error < 1e-5 and report.rows[0].share == pytest.approx(1)


@torch.no_grad()
def test_changed_weights_are_seen_and_checked_again():
    module = awake(PlainBlock(DIM, HEADS))
    accelerate(module, mode="ops", dtype="float32", inputs=(tokens(),))
    other = awake(PlainBlock(DIM, HEADS), seed=5)
    module.load_state_dict(other.state_dict())
    for _ in range(2):
        assert_same(module(tokens()), other(tokens()))
    module.mlp.act = nn.ReLU()  # no weight: told by nothing but the next check
    module.norm1.weight.mul_(2)
    expected = type(module).forward(module, tokens())
    for _ in range(2):
        assert_same(module(tokens()), expected)


def test_training_gradients_hooks_and_autocast_go_through_the_original(monkeypatch):
    module = awake(PlainBlock(DIM, HEADS))
    plain = copy.deepcopy(module)
    accelerate(module, mode="ops", dtype="float32", inputs=(tokens(),))
    x = tokens().requires_grad_()
    module(x).sum().backward()
    plain(y := tokens().requires_grad_()).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=0)
    torch.testing.assert_close(module.attn.qkv.weight.grad, plain.attn.qkv.weight.grad, rtol=0, atol=0)
    calls = counting(module, monkeypatch)
    with torch.no_grad():
        module.train()(tokens())
        assert len(calls) == 1
        module.eval()
        seen = []
        hook = module.attn.register_forward_hook(lambda module, given, output: seen.append(output))
        module(tokens())
        assert len(seen) == 1 and len(calls) == 2
        hook.remove()
        with torch.autocast("cpu", torch.bfloat16):
            module(tokens())
        assert len(calls) == 3
        outer = module.register_forward_hook(lambda module, given, output: output * 2)
        assert_same(module(tokens()), 2 * plain(tokens()))
        assert len(calls) == 3
        outer.remove()
    with torch.inference_mode():
        assert_same(module(tokens()), plain(tokens()))
    assert len(calls) == 3


@torch.no_grad()
def test_copies_and_pickles_are_networks_of_their_own():
    network = published()
    accelerate(network, mode="ops", dtype="float32")
    x = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 128, 128)
    expected = network(*x)
    twin = copy.deepcopy(network)
    buffer = io.BytesIO()
    torch.save(network, buffer)
    buffer.seek(0)
    for other in (twin, torch.load(buffer, weights_only=False)):
        assert report_of(other) is not report_of(network)
        assert_same([other(*x)[name] for name in expected], list(expected.values()), 1e-5)
        other.box_head.conv5_ctr.bias.add_(1)
        assert not torch.allclose(other(*x)["score_map"], expected["score_map"])
    assert torch.equal(network(*x)["score_map"], expected["score_map"])


@torch.no_grad()
def test_an_attention_map_is_a_tensor_that_computes_what_is_read():
    q, k = torch.randn(2, 2, 7, 3, 4).unbind()
    expected = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / 2).softmax(-1)
    lazy = AttentionMap(q, k, torch.float32)
    assert lazy.shape == (2, 3, 7, 7) and lazy.dtype == torch.float32 and lazy.dim() == 4 and lazy.size(1) == 3
    part = lazy[:, :, 1:, 1:][:, :, :4, 4:]
    assert lazy.known is None and isinstance(part, AttentionMap) and part.known is None
    torch.testing.assert_close(part.mean(2), expected[:, :, 1:5, 5:].mean(2))
    assert lazy.known is None
    for read in (
        lambda m: m + 0,
        lambda m: torch.from_numpy(m.numpy().copy()),
        lambda m: m.cpu().tolist(),
        lambda m: torch.cat([m, m]),
        lambda m: copy.deepcopy(m),
        lambda m: m[0, 1],
        lambda m: m[:, :, ::2, :],
        lambda m: m[:, :, -3:, None],
        lambda m: m.clone().masked_fill_(m > 0.5, 0),
        lambda m: m.mul_(1.0),
        lambda m: [each + 0 for each in m],
    ):
        found, wanted = read(AttentionMap(q, k, torch.float32)), read(expected.clone())
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@torch.no_grad()
def test_other_compute_dtypes_return_the_dtype_of_their_input(dtype):
    if dtype == "int8" and (reason := why_no_int8(torch.device("cpu"))) is not None:
        pytest.skip(f"int8: {reason}")
    network = published(dim=64)
    x = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 128, 128)
    expected = network(*x)
    report = accelerate(network, mode="ops", dtype=dtype, inputs=x)
    assert {row.state for row in report.rows if row.kind in ("MLP", "attention", "centre head")} == {"replaced"}
    found = network(*x)
    assert found["score_map"].dtype == torch.float32
    share = (found["score_map"] - expected["score_map"]).abs().max() / expected["score_map"].abs().max()
    assert 0 < share < 0.2 and 1e-5 < report.errors["score_map"] < 0.2


@torch.no_grad()
def test_with_less_precision_candidates_may_change_places():
    module, arguments, _ = CASES["eliminates"]
    expected = awake(copy.deepcopy(module))(*arguments)
    order = torch.arange(expected[0].shape[1]).flip(0)
    moved = (expected[0][:, order], expected[1], expected[2].flip(1), *expected[3:])
    assert difference(expected, moved) > 0.1 and loosely(expected, moved) < 1e-5
    assert loosely(expected, (expected[0] * 1.1, *expected[1:])) > 0.05
    assert loosely(expected, (*expected[:4], expected[4] * 1.1)) > 0.05
    assert loosely(expected, expected[:4]) == loosely(expected[0], expected[0][:1]) == float("inf")


@torch.no_grad()
def test_candidates_of_the_same_score_may_change_places(monkeypatch):
    """As rounding decides: here, the two best do."""
    eliminate = ops.eliminate

    def other_order(stream, score, positions, keep):
        stream, kept, gone = eliminate(stream, score, positions, keep)
        first, order = stream.shape[1] - keep, [1, 0, *range(2, keep)]
        return torch.cat((stream[:, :first], stream[:, first:][:, order]), 1), kept[:, order], gone

    module, arguments, _ = CASES["eliminates"]
    expected = awake(copy.deepcopy(module))(*arguments)
    monkeypatch.setattr(ops, "eliminate", other_order)
    module = awake(copy.deepcopy(module))
    report = accelerate(module, mode="ops", dtype="float32", inputs=arguments)
    assert states(report)[""] == ("block", "replaced") and report.error < 1e-5
    found = module(*arguments)
    assert difference(expected, found) > 0.1 and exactly(expected, found) < 1e-5
    assert exactly(expected, (found[0] * 1.1, *found[1:])) > 0.05
    assert exactly(expected, (found[0].flip(1), *found[1:])) > 0.05
    assert exactly(expected, (*found[:2], found[2] + 1, *found[3:])) > 0.01
    assert exactly(expected, (*found[:3], found[3] + 1, found[4])) > 0.01


@torch.no_grad()
def test_a_module_that_gains_nothing_is_left(monkeypatch):
    monkeypatch.setattr(Session, "speed", lambda self, key, original, replacement: 0.9)
    module = awake(Mlp(DIM, nn.GELU))
    report = accelerate(module, mode="ops", dtype="float32", inputs=(tokens(),))
    assert {row.why for row in report.rows} == {"not faster than the original here"} and report.covered == 0


@torch.no_grad()
def test_a_network_that_gains_nothing_is_left(monkeypatch):
    monkeypatch.setattr(Session, "speed", lambda self, key, *_: 0.9 if key == ("network",) else 2.0)
    module = awake(nn.Sequential(Mlp(DIM, nn.GELU), nn.Linear(DIM, DIM)))
    before = {name: dict(each.__dict__) for name, each in module.named_modules()}
    report = accelerate(module, mode="ops", dtype="float32", inputs=(tokens(),))
    assert {name: dict(each.__dict__) for name, each in module.named_modules()} == before
    assert report_of(module) is None and report.speed == 0.9
    assert {(row.state, row.why) for row in report.rows} == {("left", "the network as a whole is not faster")}
    assert str(report).startswith("0 of 2 modules replaced") and str(report).endswith("0.90 times as fast")


@torch.no_grad()
def test_auto_says_that_modules_are_replaced_and_returns_the_network():
    network = published()
    network.extra = nn.Linear(3, 3)
    x = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 128, 128)
    expected = network(*x)
    with pytest.warns(UserWarning, match=r"modules are replaced one by one.*because the engine does not fit.*extra"):
        assert accelerate(network, device="cpu", dtype="float32") is network
    found = network(*x)
    assert_same([found[name] for name in expected], list(expected.values()), 1e-5)
    report = report_of(network)
    assert report.covered > 0.8 and report.error < 1e-5
    assert states(report)["backbone.blocks.0.attn"] == ("attention", "replaced")
    with pytest.raises(ValueError, match="unexpected 2"):
        accelerate(network, device="cpu", mode="network")
    with pytest.raises(ValueError, match="none of auto, network, ops"):
        accelerate(network, mode="module")
    with pytest.raises(ValueError, match=r"cannot be replaced one by one.*no parameters"):
        accelerate(nn.ReLU())


def test_a_network_without_inputs_is_checked_by_its_first_call():
    network = nn.Sequential(PlainBlock(DIM, HEADS), nn.Linear(DIM, 3))
    report = accelerate(awake(network), mode="ops", dtype="float32")
    assert report.error is None and report.covered is None and "pass inputs=" in str(report)
    assert set(states(report).values()) >= {("block", "not called"), ("linear", "not called")}
    with torch.no_grad():
        network(tokens())
    assert states(report) == {"0": ("block", "replaced"), "1": ("linear", "replaced")}


def test_the_table_and_the_command_line(tmp_path, monkeypatch):
    network = awake(nn.Sequential(PlainBlock(DIM, HEADS), Mlp(DIM, nn.ReLU)))
    report = accelerate(network, mode="ops", dtype="float32", inputs=lambda network: network(tokens()))
    console = Console(width=160, file=io.StringIO())
    console.print(report.table())
    text = console.file.getvalue()
    assert "block" in text and "left: differs by" in text and "of the FLOPs; outputs of the network differ by" in text
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef build():\n"
        "    return nn.Sequential(nn.Linear(4, 4)), (torch.randn(2, 4),)\n\n\ndef wrong():\n    return 1\n\n\n"
        "def larger():\n    return nn.Linear(4, 4), (torch.randn(2, 5),)\n\n\n"
        "def bare():\n    return nn.Linear(4, 4), torch.randn(2, 4)\n"
    )
    from typer.testing import CliRunner

    runner, file = CliRunner(), tmp_path / "mine.py"
    found = runner.invoke(app, ["accelerate", "--check", f"{file}:build", "--dtype", "float32"])
    assert found.exit_code == 0 and "1 of 1 modules replaced in float32" in found.output
    assert "mine" not in sys.modules
    for wrong, words in (
        (f"{file}:wrong", "a torch.nn.Module is needed"),
        (f"{file}:none", "has no function none"),
        (f"{file}:larger", "with nothing replaced, fails at the given inputs: RuntimeError: mat1 and mat2 shapes"),
        (f"{file}:larger", "Inputs are a tuple of arguments, a dict of keyword arguments, or a function"),
        (f"{file}:bare", "inputs must be a tuple of arguments, a dict"),
        ("mine:build", "PYTHONPATH"),
        ("nothing", "must be MODULE:FACTORY"),
    ):
        assert words in " ".join(runner.invoke(app, ["accelerate", "--check", wrong]).output.split())

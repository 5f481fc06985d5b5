"""The registered ops: PyTorch's own checks of them, models compiled whole and exported, gradients."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ostrack_fast import ops
from ostrack_fast.config import ModelConfig, get_config
from ostrack_fast.model import OSTrack
from ostrack_fast.ops import native, reference

registered = torch.ops.ostrack_fast
TINY = ModelConfig(
    template_size=32,
    search_size=64,
    embed_dim=32,
    depth=3,
    num_heads=2,
    head_channels=16,
    ce_layers=(0, 1),
    ce_keep_ratio=(0.7, 0.7),
    drop_path=0.0,
)


def random(*shape, dtype=torch.float32, seed=0, grad=False):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return values.requires_grad_(grad)


def places(batch, kept, grid):
    return torch.stack([torch.randperm(grid * grid, generator=torch.Generator().manual_seed(b)) for b in range(batch)])[
        :, :kept
    ]


def qkv(grad, dtype=torch.float32):
    return random(2, 7, 3, 2, 8, dtype=dtype, grad=grad)


def mask(batch=None):
    chosen = torch.tensor([True, False, True])
    return chosen if batch is None else torch.stack([chosen, ~chosen])


def maps(grad, dtype=torch.float32):
    return [random(2, n, 4, 4, dtype=dtype, seed=n + i, grad=grad) for i, n in enumerate((1, 2, 2))]


def norm(channels, grad):
    return random(channels, seed=5, grad=grad), random(channels, seed=6, grad=grad)


CALLS = {
    "attention": lambda grad: (registered.attention, (qkv(grad), mask()), {}),
    "attention of half": lambda grad: (registered.attention, (qkv(grad, torch.bfloat16), None), {}),
    "attention mask each": lambda grad: (registered.attention, (qkv(grad), mask(2)), {}),
    "attention without mask": lambda grad: (registered.attention, (qkv(grad), None), {}),
    "eliminate": lambda grad: (
        registered.eliminate,
        (random(2, 8, 3, grad=grad), random(2, 6), places(2, 6, 3), 4),
        {},
    ),
    "restore": lambda grad: (registered.restore, (random(2, 5, 3, grad=grad), places(2, 5, 3), 3), {}),
    "restore with norm": lambda grad: (
        registered.restore,
        (random(2, 5, 4, grad=grad), places(2, 5, 3), 3, *norm(4, grad), 1e-6, True, torch.float64),
        {},
    ),
    "crop": lambda _: (
        registered.crop,
        (torch.arange(300, dtype=torch.uint8).view(10, 10, 3), torch.tensor([[2.0, 3.0, 4.0, 4.0]]).double(), 2.0, 6),
        {"dtype": torch.float32},
    ),
    "decode": lambda grad: (registered.decode, (*maps(grad), torch.rand(4, 4)), {}),
    "decode of half": lambda grad: (registered.decode, (*maps(grad, torch.bfloat16), None), {}),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name, grad, backend):
    if grad and name == "crop":
        pytest.skip("a crop has no gradient")
    op, arguments, keywords = CALLS[name](grad)
    with ops.use(backend):
        torch.library.opcheck(op.default, arguments, keywords)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("name", CALLS)
def test_meta_tensors_give_the_shapes_and_strides_of_the_answer(name, backend):
    op, arguments, keywords = CALLS[name](False)
    public = getattr(ops, op.__name__)
    with ops.use(backend):
        real = public(*arguments, **keywords)
    shapes = public(*(a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments), **keywords)
    for one, other in zip(*(r if isinstance(r, tuple) else (r,) for r in (real, shapes)), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert other.is_meta
            assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


def of_public_op(name, backend="reference"):
    """(function of the float64 tensors that have a gradient, these tensors)."""
    tokens = random(2, 8, 3, dtype=torch.float64, grad=True)
    weight, bias = (p.detach().double().requires_grad_() for p in norm(3, False))
    if name == "attention":
        return lambda x: ops.attention(x, mask(2)), (qkv(True, torch.float64),)
    if name == "eliminate":
        return lambda x: ops.eliminate(x, random(2, 6), places(2, 6, 3), 4)[0], (tokens,)
    if name == "restore":
        return lambda x: ops.restore(x, places(2, 8, 3), 3), (tokens,)
    if name == "restore with norm":
        return lambda *x: ops.restore(x[0], places(2, 8, 3), 3, *x[1:], channels_last=True), (tokens, weight, bias)
    return lambda *x: ops.decode(*x, torch.linspace(0.1, 1, 16).view(4, 4)), tuple(maps(True, torch.float64))


GRADIENTS = ["attention", "eliminate", "restore", "restore with norm", "decode"]


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_the_reference(name):
    function, inputs = of_public_op(name)
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_the_registered_ops(name, monkeypatch):
    function, inputs = of_public_op(name)
    monkeypatch.setattr(ops, "_traced", lambda tensor: True)
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_recomputed_gradient_of_attention_by_dtype(dtype):
    """From the compiled kernel's out and lse, at least as close to float64 as autograd through the reference."""
    x = random(2, 40, 3, 2, 16, dtype=dtype)
    chosen, of_out, of_score = mask(2), random(2, 40, 32, dtype=dtype, seed=1), random(2, 37, seed=2)
    grads = []
    for leaf in (x.double().requires_grad_(), x.clone().requires_grad_()):
        out, score = reference.attention(leaf, chosen)
        torch.autograd.backward((out, score), (of_out.to(out.dtype), of_score.to(score.dtype)))
        grads.append(leaf.grad)
    out, _, lse = native.attention_with_lse(x, chosen)
    ours = reference.attention_backward(of_out, x, out, lse, of_score, chosen)
    error, allowed = ((grad.double() - grads[0]).abs().max() for grad in (ours, grads[1]))
    assert ours.dtype == dtype
    assert error <= 2 * allowed


def model(cfg=TINY, train=False):
    torch.manual_seed(0)
    net = OSTrack(cfg).train(train)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # a compiled and an eager step then start from one state
    return net


def images(cfg=TINY, batch=2):
    return random(batch, 3, cfg.template_size, cfg.template_size), random(batch, 3, cfg.search_size, cfg.search_size)


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            got[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.fixture(autouse=True)
def fresh_compiler():
    yield
    torch._dynamo.reset()


def test_compiled_whole():
    net = model()
    with torch.no_grad():
        expected = net(*images())
        assert_same(torch.compile(net, fullgraph=True, backend="aot_eager")(*images()), expected)
    assert expected["removed_indexes_s"][0].shape == (2, 4)


def test_compiled_training_step():
    grads = []
    for compiled in (False, True):
        net = model(train=True)
        run = torch.compile(net, fullgraph=True, backend="aot_eager") if compiled else net
        out = run(*images())
        (out["score_map"].square().mean() + out["pred_boxes"].sum() + out["offset_map"].abs().mean()).backward()
        grads.append({name: p.grad for name, p in net.named_parameters()})
    for name, expected in grads[0].items():
        if expected is None:
            assert grads[1][name] is None
            continue
        torch.testing.assert_close(grads[1][name], expected, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("cfg", [TINY, replace(get_config("small"), depth=6)], ids=["tiny", "small"])
def test_exported(cfg, strict):
    net = model(cfg)
    program = torch.export.export(net, images(cfg, 1), strict=strict)
    called = {str(node.target) for node in program.graph.nodes if "ostrack_fast" in str(node.target)}
    assert called == {f"ostrack_fast.{op}.default" for op in ("attention", "eliminate", "restore", "decode")}
    with torch.no_grad():
        assert_same(program.module()(*images(cfg, 1)), net(*images(cfg, 1)))


class OneBlock(nn.Module):
    """From a frame to a box, by all ops and little else: what Inductor compiles in seconds."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(3, 3 * 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, frame, box, window):
        patch, scale = ops.crop(frame, box, 2.0, 8, torch.float32)
        packed = self.qkv(patch.flatten(2).transpose(1, 2)).unflatten(2, (3, 2, 4))
        tokens, score = ops.attention(packed, torch.arange(15) < 3)
        ids = torch.arange(49).expand(2, -1)
        tokens, ids, _ = ops.eliminate(tokens, score, ids, 30)
        grid = ops.restore(tokens[:, 15:], ids, 7, self.norm.weight, self.norm.bias, channels_last=True)
        found, best = ops.decode(grid[:, :1], grid[:, 1:3], grid[:, 3:5], window)
        return found, best, ops.advance(found.detach(), box, (10, 10), 2.0, 1.0), scale


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_all_ops_compiled_with_their_gradients(compiler):
    frame = torch.arange(300, dtype=torch.uint8).view(10, 10, 3)
    box = torch.tensor([[2.0, 3.0, 4.0, 4.0], [0.0, 0.0, 3.0, 9.0]], dtype=torch.float64)
    arguments = frame, box, torch.rand(7, 7, generator=torch.Generator().manual_seed(0))
    results = []
    for compiled in (False, True):
        net = OneBlock()
        run = torch.compile(net, fullgraph=True, backend=compiler) if compiled else net
        answer = run(*arguments)
        (answer[0].square().sum() + answer[1].sum()).backward()
        results.append([*answer, *(p.grad for p in net.parameters())])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_wrong_shape_is_an_error_while_compiling_too():
    compiled = torch.compile(lambda x: ops.attention(x)[0], fullgraph=True, backend="aot_eager")
    with pytest.raises((ValueError, RuntimeError), match="qkv must be"):
        compiled(torch.zeros(2, 5, 2, 1, 8))

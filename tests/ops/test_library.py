"""The registered ops: PyTorch's own checks of them, models compiled whole and exported, gradients."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ostrack_fast import ops
from ostrack_fast.config import ModelConfig, get_config
from ostrack_fast.model import OSTrack
from ostrack_fast.ops import reference

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


def mask(batch):
    chosen = torch.tensor([True, False, True])
    return torch.stack([chosen, ~chosen][:batch])


def samples(dtype):
    """(op, arguments) for each of the registry's small samples."""
    cpu = torch.device("cpu")
    return [(op, arguments) for op in ops.OPS.values() for arguments in op.samples("small", dtype, cpu)]


SAMPLES = samples(torch.float32)
SAMPLES += [(op, next(op.samples("small", torch.bfloat16, torch.device("cpu")))) for op in ops.OPS.values()]
NAMES = [f"{op.name}-{index}" for index, (op, _) in enumerate(SAMPLES)]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize(("op", "arguments"), SAMPLES, ids=NAMES)
def test_opcheck(op, arguments, grad, backend):
    if grad:
        if op.gradient is None:
            pytest.skip(f"{op.name} has no gradient")
        if backend == "reference":
            pytest.skip("the gradient is the same one")
        first, *rest = arguments
        arguments = first.detach().requires_grad_(), *rest
    with ops.use(backend if op.unsupported_reason(backend, *arguments) is None else "auto"):
        torch.library.opcheck(op.overload, arguments)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(("op", "arguments"), SAMPLES, ids=NAMES)
def test_meta_tensors_give_the_shapes_and_strides_of_the_answer(op, arguments, backend):
    if (reason := op.unsupported_reason(backend, *arguments)) is not None:
        pytest.skip(reason)
    with ops.use(backend):
        real = op(*arguments)
    shapes = op(*(a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments))
    for one, other in zip(*(r if isinstance(r, tuple) else (r,) for r in (real, shapes)), strict=True):
        assert other.is_meta
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


DIFFERENTIABLE = [(op, arguments) for op, arguments in samples(torch.float64) if op.gradient is not None]


def differentiable_tensors(op, arguments):
    """(function of the float tensors that have a gradient, these tensors in float64)."""
    without = {"eliminate": (1,), "decode": (3,)}.get(op.name, ())  # the ranking's score; the window
    at = [
        i
        for i, value in enumerate(arguments)
        if isinstance(value, torch.Tensor) and value.is_floating_point() and i not in without
    ]

    def function(*values):
        answer = op(*[values[at.index(i)] if i in at else value for i, value in enumerate(arguments)])
        return answer[:2] if op.name == "attention" else answer  # lse has no gradient

    return function, tuple(arguments[i].detach().clone().double().requires_grad_() for i in at)


@pytest.mark.parametrize(("op", "arguments"), DIFFERENTIABLE, ids=[op.name for op, _ in DIFFERENTIABLE])
def test_gradients(op, arguments):
    function, inputs = differentiable_tensors(op, arguments)
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize(("op", "arguments"), DIFFERENTIABLE, ids=[op.name for op, _ in DIFFERENTIABLE])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_gradients_are_those_of_the_reference_whatever_runs(op, arguments, backend):
    """Eagerly and compiled, for a loss on every result; in particular on the attention's score."""
    arguments = [a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]
    if (reason := op.unsupported_reason(backend, *arguments)) is not None:
        pytest.skip(reason)

    def gradients(run, wide):
        leaf = (arguments[0].double() if wide else arguments[0]).clone().requires_grad_()
        rest = [a.double() if wide and isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]
        answer = run(leaf, *rest[1:])
        answer = answer if isinstance(answer, tuple) else (answer,)
        results = [r for r in answer[:2] if r.is_floating_point() and r.numel()]
        weights = [torch.linspace(-1, 1, r.numel(), dtype=r.dtype).view(r.shape) for r in results]
        sum((r * w).sum() for r, w in zip(results, weights, strict=True)).backward()
        return leaf.grad

    expected = gradients(op.reference, True).float()
    with ops.use(backend):
        torch.testing.assert_close(gradients(op, False), expected, rtol=1e-4, atol=1e-5)
        compiled = torch.compile(lambda *a: op(*a), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(gradients(compiled, False), expected, rtol=1e-4, atol=1e-5)


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
    out, _, lse = ops.OPS["attention"].backends["native"].run(x, chosen)
    ours = reference.attention_backward(x, chosen, out, lse, of_out, of_score)
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
        return found, best, ops.update_box(found.detach(), box, (10, 10), 2.0, 1.0), scale


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

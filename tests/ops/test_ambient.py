"""What surrounds a call in PyTorch changes no result: exact numbers or a clear error, never a crash."""

from contextlib import contextmanager

import pytest
import torch
from torch import func
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from ostrack_fast import ops
from ostrack_fast.ops import layers

from ..ambient import default_dtype

CPU = torch.device("cpu")
SAMPLES = {
    f"{name}-{index}": (op, arguments)
    for name, op in ops.OPS.items()
    for index, arguments in enumerate(op.samples("small", torch.float32, CPU))
}
# Of the first argument, which is float.
DIFFERENTIABLE = {key: call for key, call in SAMPLES.items() if call[0].gradient is not None}
registered = torch.ops.ostrack_fast


def first(answer):
    return answer[0] if isinstance(answer, tuple) else answer


def in_double(arguments):
    return [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]


def tangent(function, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


def summed(function):
    return lambda x: function(x).sum()


TRANSFORMS = {
    "grad": lambda f, x: func.grad(summed(f))(x),
    "vjp": lambda f, x: func.vjp(f, x)[1](torch.ones_like(f(x)))[0],
    "jvp": lambda f, x: func.jvp(f, (x,), (torch.ones_like(x),))[1],
    "jacrev": lambda f, x: func.jacrev(f)(x),
    "jacfwd": lambda f, x: func.jacfwd(f)(x),
    "hessian": lambda f, x: func.hessian(lambda y: f(y).square().sum())(x),
    "linearize": lambda f, x: func.linearize(f, x)[1](torch.ones_like(x)),
    "vmap": lambda f, x: func.vmap(f)(torch.stack((x, x + 1))),
    "vmap of grad": lambda f, x: func.vmap(func.grad(summed(f)))(torch.stack((x, x + 1))),
    "grad of vmap": lambda f, x: func.grad(lambda y: func.vmap(f)(y).sum())(torch.stack((x, x + 1))),
    "forward mode": tangent,
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("key", DIFFERENTIABLE)
def test_torch_func_sees_the_op_as_it_sees_its_reference(key, transform):
    op, arguments = DIFFERENTIABLE[key]
    x, *rest = in_double(arguments)
    if op.name == "decode":  # its box depends on the other maps
        score_map, x, offset_map, window = (x, *rest)
        ours, spec = (lambda y, f=f: first(f(score_map, y, offset_map, window)) for f in (op, op.reference))
    else:
        ours, spec = (lambda y, f=f: first(f(y, *rest)) for f in (op, op.reference))
    torch.testing.assert_close(TRANSFORMS[transform](ours, x), TRANSFORMS[transform](spec, x))


@pytest.mark.parametrize("trace", ["functionalize", "make_fx", "jit"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("key", SAMPLES)
def test_tracers(key, trace):
    op, (x, *rest) = SAMPLES[key]

    def function(y):
        return first(op(y, *rest))

    traced = {
        "functionalize": func.functionalize,
        "make_fx": lambda f: make_fx(f)(x),
        "jit": lambda f: torch.jit.trace(f, (x,)),
    }[trace](function)
    assert torch.equal(traced(x), function(x))


@pytest.mark.parametrize("key", SAMPLES)
def test_fake_tensors(key):
    op, arguments = SAMPLES[key]
    real = op(*arguments)
    with FakeTensorMode() as mode:
        fake = op(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments))
    for one, other in zip(*(r if isinstance(r, tuple) else (r,) for r in (real, fake)), strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


def test_fake_tensors_are_an_error_where_there_is_no_shape_to_find():
    bound = ops.OPS["decode"].bind(*SAMPLES["decode-0"][1])
    attend = layers.cross_attention(2, 8, torch.float32, CPU)
    q, kv = torch.randn(1, 3, 2, 8), torch.randn(1, 5, 2, 2, 8)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in SAMPLES["decode-0"][1]]
        with pytest.raises(RuntimeError, match="no memory that a compiled kernel could read"):
            bound(*fakes)
        with pytest.raises(RuntimeError, match="no memory that a compiled kernel could read"):
            attend(mode.from_tensor(q), mode.from_tensor(kv))


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("key", SAMPLES)
def test_the_negative_bit(key, bound):
    op, arguments = SAMPLES[key]
    minus = [torch._neg_view(-a) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]
    run = op.bind(*arguments) if bound else op
    for one, other in zip(*(r if isinstance(r, tuple) else (r,) for r in (run(*minus), run(*arguments))), strict=True):
        assert torch.equal(one, other)


def test_the_negative_bit_in_layers():
    x, weight = torch.randn(1, 5, 8), torch.randn(6, 8)
    made = layers.linear(weight, weight[:, 0])
    assert torch.equal(made(torch._neg_view(-x)), made(x))
    attend = layers.cross_attention(2, 8, torch.float32, CPU)
    q, kv = torch.randn(1, 3, 2, 8), torch.randn(1, 5, 2, 2, 8)
    assert torch.equal(attend(torch._neg_view(-q), torch._neg_view(-kv))[0], attend(q, kv)[0])


@contextmanager
def low_precision():
    torch.set_float32_matmul_precision("medium")
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.mkldnn.conv.fp32_precision = "none"


SURROUNDINGS = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "medium float32": low_precision,
}


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("key", SAMPLES)
def test_surroundings_of_an_op(key, backend, surroundings):
    op, arguments = SAMPLES[key]
    if backend == "reference" and surroundings in ("default device", "medium float32"):
        pytest.skip("the reference is plain PyTorch, and follows these where a program sets them")
    with ops.use(backend):
        expected = op(*arguments)
        with SURROUNDINGS[surroundings]():
            found = op(*arguments)
    for one, other in zip(*(r if isinstance(r, tuple) else (r,) for r in (found, expected)), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


def results_of_layers():
    """Results of every layer, built and called here."""
    found = {}
    with torch.no_grad():
        for name, layer in ops.LAYERS.items():
            for index, arguments in enumerate(layer.samples("small", torch.float32, CPU)):
                torch.manual_seed(0)
                with torch.device("cpu"):
                    inputs = [
                        a.float() if a is not None and a.is_floating_point() else a for a in layer.inputs(*arguments)
                    ]
                answer = first(layer.build(*arguments)(*inputs))
                found[f"{name}-{index}"] = answer
    return found


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("surroundings", [name for name in SURROUNDINGS if name != "inference mode"])
def test_surroundings_of_layers(surroundings, backend):
    """The reference's layers too: on many machines they are what a tracker runs."""
    with ops.use(backend):
        expected = results_of_layers()
        with SURROUNDINGS[surroundings]():
            found = results_of_layers()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def test_layers_refuse_derivatives_they_do_not_have():
    weight = torch.randn(6, 8)
    x = torch.randn(1, 5, 8)
    attend = layers.cross_attention(2, 8, torch.float32, CPU)
    q, kv = torch.randn(1, 3, 2, 8), torch.randn(1, 5, 2, 2, 8)
    for backend in ("auto", "reference"):
        with ops.use(backend):
            made = layers.linear(weight, weight[:, 0])
        with pytest.raises(RuntimeError, match="no gradient"):
            made(x.clone().requires_grad_())
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match="no forward-mode derivative"):
            made(forward_ad.make_dual(x, x))
    with pytest.raises(RuntimeError, match="no gradient"):
        attend(q.clone().requires_grad_(), kv)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="no forward-mode derivative"):
        attend(q, forward_ad.make_dual(kv, kv))


@pytest.mark.parametrize("name", ["crop", "update_box", "attention_backward"])
def test_ops_without_a_derivative_say_so(name):
    op, arguments = SAMPLES[f"{name}-0"]
    at = next(i for i, a in enumerate(arguments) if isinstance(a, torch.Tensor) and a.is_floating_point())
    leaves = [a.clone().requires_grad_() if i == at else a for i, a in enumerate(arguments)]
    answer = op(*leaves)
    with pytest.raises(NotImplementedError, match=f"{name} has no derivative"):
        sum(r.sum() for r in (answer if isinstance(answer, tuple) else (answer,))).backward()


def box_of(*values):
    return torch.tensor([values], dtype=torch.float64)


FRAME, IDS = torch.zeros(9, 9, 3, dtype=torch.uint8), torch.arange(2)[None]
NAN = torch.tensor([[0.0, float("nan")]])
BACKWARD = (torch.randn(1, 9, 3, 1, 8), None, torch.randn(1, 8, 8), torch.randn(1, 1, 9), None, None)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("eliminate", (torch.randn(1, 5000, 4), torch.rand(1, 5000), IDS[:, :1], 4000), "ids"),
        ("eliminate", (torch.randn(1, 4, 4), NAN, IDS, 1), "NaN"),
        ("decode", (torch.randn(1, 1, 64, 64), *[torch.randn(1, 2, 2, 2)] * 2, None), "maps"),
        ("crop", (FRAME[..., :1], box_of(1, 1, 1, 1), 2.0, 6, torch.float32), "frame"),
        ("crop", (FRAME, box_of(0, 0, 0, 0), 2.0, 6, torch.float32), "box"),
        ("attention", (torch.randn(1, 9, 2, 1, 8), None), "qkv"),
        ("attention", (torch.randn(1, 9, 3, 1, 8), torch.zeros(3, dtype=torch.bool)), "no row"),
        ("restore", (torch.randn(1, 2, 4), IDS + 3, 2), "ids"),
        ("update_box", (torch.ones(1, 4), torch.ones(2, 4, dtype=torch.float64), (4, 4), 2.0, 1.0), "box"),
        ("attention_backward", BACKWARD, "out"),
    ],
)
def test_registered_ops_check_as_the_public_ones(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(registered, name)(*arguments)


LAYER_CALLS = {
    "bias of another length": (lambda: layers.linear(torch.randn(6, 8), torch.randn(5)), "bias"),
    "weight of three dimensions": (lambda: layers.linear(torch.randn(6, 8, 1), torch.randn(6)), "weight"),
    "empty weight": (lambda: layers.linear(torch.randn(6, 0), torch.randn(6)), "empty"),
    "unknown activation": (lambda: layers.linear(torch.randn(6, 8), torch.randn(6), None, "silu"), "activation"),
    "negative eps": (lambda: layers.linear(torch.randn(6, 8), torch.randn(6), -1.0), "norm_eps"),
    "integer weight": (lambda: layers.conv3x3(torch.ones(6, 8, 3, 3).int(), torch.randn(6)), "weight"),
    "taps": (lambda: layers.conv3x3(torch.randn(6, 8, 3, 1), torch.randn(6)), "weight"),
    "bias of the convolution": (lambda: layers.conv3x3(torch.randn(6, 8, 3, 3), torch.randn(1)), "bias"),
    "groups": (lambda: layers.conv3x3(torch.randn(6, 8, 3, 3), torch.randn(6), 4), "groups"),
    "norm": (
        lambda: layers.restore_conv3x3(
            torch.randn(6, 8, 3, 3), torch.randn(6), (torch.ones(7), torch.ones(8), 1e-6), 2, 3
        ),
        "norm",
    ),
    "more tokens than cells": (
        lambda: layers.restore_conv3x3(
            torch.randn(6, 8, 3, 3), torch.randn(6), (torch.ones(8), torch.ones(8), 1e-6), 10, 3
        ),
        "10 tokens",
    ),
    "x": (lambda: layers.linear(torch.randn(6, 8), torch.randn(6))(torch.randn(3, 7)), "x must be"),
    "x of integers": (lambda: layers.linear(torch.randn(6, 8), torch.randn(6))(torch.ones(3, 8).int()), "x must be"),
    "residual": (
        lambda: layers.linear(torch.randn(6, 8), torch.randn(6))(torch.randn(3, 8), torch.randn(6)),
        "residual must be",
    ),
    "out": (
        lambda: layers.linear(torch.randn(6, 8), torch.randn(6))(torch.randn(3, 8), None, torch.randn(4, 6)),
        "out must be",
    ),
    "map": (lambda: layers.conv3x3(torch.randn(6, 8, 3, 3), torch.randn(6))(torch.randn(1, 2, 3, 8)), "x must be"),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", LAYER_CALLS)
def test_layers_check_their_arguments(name, backend):
    call, message = LAYER_CALLS[name]
    with ops.use(backend), pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out": torch.empty(1, 1, 8)}, "out must be"),
        ({"out": torch.empty(1, 3, 16, dtype=torch.float16)}, "out must be"),
        ({"kv": torch.randn(1, 5, 2, 1, 16)}, "kv must be"),
        ({"kv": torch.randn(1, 5, 2, 2, 8).half()}, "kv must be"),
        ({"kv": torch.randn(2, 5, 2, 2, 8)}, "kv must be"),
        ({"q": torch.randn(1, 3, 2, 7)}, "q must be"),
        ({"template_mask": torch.ones(4, dtype=torch.bool)}, "template_mask must be"),
        ({"template_mask": torch.zeros(3, dtype=torch.bool)}, "no row"),
    ],
)
def test_cross_attention_checks_its_arguments(arguments, message, backend):
    with ops.use(backend):
        attend = layers.cross_attention(2, 8, torch.float32, CPU)
    with pytest.raises(ValueError, match=message):
        attend(**{"q": torch.randn(1, 3, 2, 8), "kv": torch.randn(1, 5, 2, 2, 8), **arguments})


@pytest.mark.parametrize("size", [1e12, 1e20, 1e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_layer_norm_of_any_float32(backend, dtype, size):
    """The square of such tokens is not a float32; their LayerNorm is an ordinary number, and so is its gradient."""
    tokens = (size * torch.randn(1, 4, 70, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)).to(dtype)
    tokens[0, 1] = size  # no variance: the bias alone
    ids, weight, bias = torch.arange(4)[None], torch.linspace(-1, 2, 70), torch.linspace(0, 1, 70)
    normed = torch.nn.functional.layer_norm(tokens.double(), (70,), weight.double(), bias.double(), 1e-6)
    exact = ops.reference.restore(normed, ids, 2)
    weight.requires_grad_()
    with ops.use(backend):
        found = ops.restore(tokens, ids, 2, weight, bias, channels_last=True)
    torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(dtype).eps * 4, atol=torch.finfo(dtype).eps * 4)
    found.sum().backward()
    assert weight.grad.isfinite().all()

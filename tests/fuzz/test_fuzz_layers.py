"""Layers and gradients of any size: the compiled kernel is as accurate as PyTorch, or refuses as the reference does."""

from random import Random

import torch

from ostrack_fast import ops
from ostrack_fast.ops import layers
from ostrack_fast.ops.registry import LAYERS

from .conftest import scenarios
from .test_fuzz_ops import assert_accurate, restride, upto

CALLS = 25  # of a scenario
DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.int8)
DOCUMENTED = (ValueError, TypeError, RuntimeError)


class Numbers:
    """Tensors of normal numbers, from a seed."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape, scale=1.0):
        return scale * torch.randn(shape, generator=self.generator, dtype=torch.float32, device="cpu")

    def cells(self, batch, count, tokens):
        order = [torch.randperm(count, generator=self.generator)[:tokens] for _ in range(batch)]
        return torch.stack(order)


def random_linear(random_, numbers, dtype):
    inputs, outputs = upto(random_, 200), upto(random_, 130)
    batch, rows = random_.randint(1, 3), upto(random_, 40)
    weight, bias = numbers(outputs, inputs, scale=inputs**-0.5), numbers(outputs)
    x = restride(random_, numbers(batch, rows, inputs))
    eps, activation = random_.choice((None, 1e-6)), random_.choice(("none", "gelu", "relu"))
    residual = restride(random_, numbers(batch, rows, outputs)) if random_.random() < 0.4 else None
    return (weight, bias, eps, activation, dtype), (x, residual)


def random_conv3x3(random_, numbers, dtype):
    groups, side = random_.choice((1, 1, 1, 3)), upto(random_, 9)
    inputs, outputs = groups * upto(random_, 70), groups * upto(random_, 40)
    weight = numbers(outputs, inputs // groups, 3, 3, scale=(9 * inputs / groups) ** -0.5)
    x = restride(random_, numbers(random_.randint(1, 3), side, side, inputs))
    return (weight, numbers(outputs), groups, random_.choice(("none", "gelu", "relu")), dtype), (x,)


def random_restore_conv3x3(random_, numbers, dtype):
    channels, outputs, grid = upto(random_, 70), upto(random_, 40), upto(random_, 9)
    batch, tokens = random_.randint(1, 3), upto(random_, grid * grid, 0)
    weight = numbers(outputs, channels, 3, 3, scale=(9 * channels) ** -0.5)
    norm = (numbers(channels), numbers(channels), 1e-6)
    x = restride(random_, numbers(batch, tokens, channels))
    built = weight, numbers(outputs), norm, tokens, grid, dtype
    return built, (x, numbers.cells(batch, grid * grid, tokens))


def random_cross_attention(random_, numbers, dtype):
    heads, width, batch = random_.randint(1, 4), upto(random_, 70), random_.randint(1, 3)
    queries, tokens = upto(random_, 60), upto(random_, 90)
    mask = None
    if random_.random() < 0.6:
        template = upto(random_, min(queries, tokens))
        mask = torch.rand(*random_.choice(((), (batch,))), template, generator=numbers.generator) < 0.5
        mask[..., random_.randrange(template)] = True
    dtype = torch.float32 if dtype == torch.int8 else dtype
    q, kv = numbers(batch, queries, heads, width).to(dtype), numbers(batch, tokens, 2, heads, width).to(dtype)
    return (heads, width, dtype, torch.device("cpu")), (restride(random_, q), restride(random_, kv), mask)


RANDOM = {
    "conv3x3": random_conv3x3,
    "cross_attention": random_cross_attention,
    "linear": random_linear,
    "restore_conv3x3": random_restore_conv3x3,
}


def break_one(random_, inputs):
    """One tensor no longer fits what the layer was built for."""
    inputs = list(inputs)
    at = random_.choice([index for index, value in enumerate(inputs) if value is not None])
    value = inputs[at]
    inputs[at] = random_.choice((
        lambda: value[..., :-1],
        lambda: torch.cat((value, value), -1),
        lambda: value[0],
        lambda: value.to(torch.complex64),
        lambda: value.to("meta"),
        lambda: value[..., None],
    ))()  # fmt: skip
    return inputs


def widened(value):
    """In float64, what is a number; also in tuples."""
    if isinstance(value, tuple):
        return tuple(map(widened, value))
    if isinstance(value, torch.dtype):
        return torch.float64
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def call(name, backend, built, inputs):
    """What the layer gives, a tuple of tensors, or the error."""
    try:
        with ops.use(backend):
            result = LAYERS[name].build(*built)(*inputs)
    except DOCUMENTED as error:
        assert str(error)
        return error
    return tuple(each for each in (result if isinstance(result, tuple) else (result,)) if each is not None)


def compare_layer(name, built, inputs, broken, what):
    ours = call(name, "native", built, inputs)
    if broken:
        in_float32 = tuple(torch.float32 if each is torch.int8 else each for each in built)
        refused = isinstance(call(name, "reference", in_float32, inputs), Exception)
        assert isinstance(ours, DOCUMENTED) or not refused, (what, "only the reference refuses it")
        return "with a broken argument"
    if isinstance(ours, RuntimeError) and "cannot run" in str(ours):
        return "left to the reference"
    assert not isinstance(ours, Exception), (what, ours)
    exact = call(name, "reference", widened(built), [widened(each) for each in inputs])
    if torch.int8 in built:
        for one, other in zip(ours, exact, strict=True):
            assert one.shape == other.shape and one.isfinite().all(), what
            error, size = (one.double() - other).norm(), other.norm() + other.numel() ** 0.5
            assert error <= 0.03 * size, f"{what}: error {error / size:.3g} of the size"
        return "compared, int8"
    plain = call(name, "reference", built, inputs)
    for one, other, true in zip(ours, plain, exact, strict=True):
        assert (one.dtype, one.device) == (other.dtype, other.device), what
        # Results are about 1; one that comes to nothing has terms whose rounding in half precision is luck.
        eps = max(torch.finfo(each).eps for each in built if isinstance(each, torch.dtype))
        assert_accurate(one, other, true, what, max(1.0, eps / torch.finfo(torch.float32).eps / 32))
    return "compared"


def compare_gradient(random_, numbers):
    """The gradient of attention after the compiled forward, against autograd through the formula in float64."""
    batch, heads, width, tokens = random_.randint(1, 2), random_.randint(1, 3), upto(random_, 40), upto(random_, 70)
    dtype = random_.choice((torch.float32, torch.float32, torch.bfloat16))
    qkv = restride(random_, numbers(batch, tokens, 3, heads, width).to(dtype))
    template = upto(random_, tokens)
    mask = None
    if random_.random() < 0.5:
        mask = torch.rand(template, generator=numbers.generator) < 0.5
        mask[random_.randrange(template)] = True
    with_score = mask is not None and random_.random() < 0.5
    what = f"gradient of attention, {dtype}, {tuple(qkv.shape)}, mask {template if mask is not None else None}"

    def gradient(backend):
        leaf = qkv.detach().requires_grad_()
        with ops.use(backend):
            out, score = ops.attention(leaf, mask)
        loss = (out * weights.to(out.dtype)).sum()
        if with_score:
            loss = loss + (score * score_weights.to(score.dtype)).sum()
        return torch.autograd.grad(loss, leaf)[0]

    weights = numbers(batch, tokens, heads * width)
    score_weights = numbers(batch, tokens - template)
    exact = reference_gradient(qkv.double(), mask, weights.double(), score_weights.double() if with_score else None)
    ours, plain = gradient("native"), gradient("reference")
    terms = float(weights.abs().max() * qkv.abs().max().square())  # gradient, value and key
    assert_accurate(ours, plain, exact, what, max(terms, 1.0))
    return "gradient compared"


def reference_gradient(qkv, mask, weights, score_weights):
    """By autograd through softmax itself, without any of the package's formulas for gradients."""
    qkv = qkv.detach().requires_grad_()
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    probability = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
    loss = ((probability @ v).transpose(1, 2).flatten(2) * weights).sum()
    if score_weights is not None:
        loss = loss + (ops.reference.candidate_score(probability, mask) * score_weights).sum()
    return torch.autograd.grad(loss, qkv)[0]


def test_layers(long, counts):
    assert set(RANDOM) == set(LAYERS), "a layer without random sizes"
    assert {each for each in layers.__all__ if each in LAYERS} == set(LAYERS)

    def run(random_):
        random_ = Random(random_.getrandbits(64))
        numbers = Numbers(random_.getrandbits(60))
        for _ in range(CALLS):
            counts["calls"] += 1
            name = random_.choice([*RANDOM, "attention"])
            if name == "attention":
                counts[f"attention {compare_gradient(random_, numbers)}"] += 1
                continue
            built, inputs = RANDOM[name](random_, numbers, random_.choice(DTYPES))
            broken = random_.random() < 0.2
            if broken:
                inputs = break_one(random_, inputs)
            shapes = [tuple(each.shape) for each in inputs if isinstance(each, torch.Tensor)]
            what = f"{name} {[each for each in built if not isinstance(each, (torch.Tensor, tuple))]} on {shapes}"
            with torch.no_grad():
                counts[f"{name} {compare_layer(name, built, inputs, broken, what)}"] += 1

    scenarios(2000 if long else 8, long, run, reduce=False)

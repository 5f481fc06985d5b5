"""Op calls with anything in them: the compiled kernel gives what the reference gives, or the same error."""

import math
from random import Random

import pytest
import torch

from ostrack_fast import ops

from .conftest import scenarios

CALLS = 50  # of a scenario
DTYPES = (torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64)
CPU = torch.device("cpu")
EXACT = ("crop", "decode", "eliminate")  # these copy or count; restore does where it has no LayerNorm
# Of numbers near the largest one order of summation may overflow and another not; GELU's derivative at infinity is its
# limit, where PyTorch's is NaN.
SUMS = ("attention", "gelu", "gelu_backward", "gelu_matmul", "matmul", "matmul_gelu", "matmul_gelu_backward")
SPECIAL = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-42, 3e38, -3e38)


def upto(random_, most, least=1):
    """A size: often the largest or the smallest."""
    return random_.choice((most, most, least, random_.randint(least, most)))


def cut_attention(random_, qkv, mask):
    batch, tokens, heads, width = (upto(random_, qkv.shape[i]) for i in (0, 1, 3, 4))
    if mask is not None:
        mask = (mask[:batch] if mask.dim() == 2 else mask)[..., : upto(random_, min(tokens, mask.shape[-1]))]
    return qkv[:batch, :tokens, :, :heads, :width], mask


def cut_attention_backward(random_, qkv, mask, out, lse, grad_out, grad_score):
    batch, heads = upto(random_, len(qkv)), upto(random_, qkv.shape[3])

    def of_heads(value):
        return None if value is None else value.unflatten(2, (qkv.shape[3], -1))[:batch, :, :heads].flatten(2)

    mask = mask[:batch] if mask is not None and mask.dim() == 2 else mask
    grad_score = None if grad_score is None else grad_score[:batch]
    return qkv[:batch, :, :, :heads], mask, of_heads(out), lse[:batch, :heads], of_heads(grad_out), grad_score


def cut_crop(random_, frame, box, factor, size, dtype):
    height, width, batch = upto(random_, frame.shape[0]), upto(random_, frame.shape[1]), upto(random_, len(box), 0)
    factor = random_.choice((factor, random_.uniform(0.05, 6)))
    return frame[:height, :width], box[:batch], factor, random_.choice((size, random_.randint(1, 70))), dtype


def cut_decode(random_, score, size, offset, window):
    batch, grid = upto(random_, score.shape[0], 0), upto(random_, score.shape[-1])
    maps = (each[:batch, :, :grid, -grid:] for each in (score, size, offset))
    return *maps, None if window is None else window[:grid, :grid]


def cut_eliminate(random_, tokens, score, ids, keep):
    batch, search, channels = (
        upto(random_, len(tokens), 0),
        upto(random_, score.shape[1]),
        upto(random_, tokens.shape[2]),
    )
    total = tokens.shape[1] - score.shape[1] + search
    return tokens[:batch, :total, :channels], score[:batch, :search], ids[:batch, -search:], upto(random_, search)


def cut_gelu(random_, x):
    return (x[: upto(random_, len(x), 0)],)


def cut_gelu_backward(random_, grad, x):
    count = upto(random_, len(x), 0)
    return grad[:count], x[-count:] if count else x[:0]


def cut_matmul_gelu(random_, a, b):
    return cut_matmul(random_, a, b, None)[:2]


def cut_matmul_gelu_backward(random_, a, b, x):
    a, b = cut_matmul_gelu(random_, a, b)
    return a, b, x[: len(a), : b.shape[1]]


def cut_matmul(random_, a, b, bias):
    rows, inputs, outputs = upto(random_, len(a), 0), upto(random_, len(b)), upto(random_, b.shape[1], 0)
    return a[:rows, :inputs], b[-inputs:, :outputs], None if bias is None else bias[:outputs]


def cut_restore(random_, tokens, ids, grid, weight, bias, eps, channels_last, dtype):
    batch, kept, channels = (
        upto(random_, len(tokens), 0),
        upto(random_, tokens.shape[1], 0),
        upto(random_, tokens.shape[2]),
    )
    norm = (each if each is None else each[-channels:] for each in (weight, bias))
    dtype = random_.choice((dtype, torch.float32, torch.bfloat16))
    return tokens[:batch, :kept, :channels], ids[:batch, :kept], grid + random_.choice((0, 0, 1, 5)), *norm, eps, (
        channels_last
    ), dtype  # fmt: skip


def cut_update_box(random_, found, box, frame_size, factor, margin):
    batch = upto(random_, len(box), 0)
    size = (random_.randint(1, 2000), random_.randint(1, 2000))
    return found[:batch], box[:batch], size, random_.uniform(0.1, 9), random_.choice((0.0, margin, 700.0))


cut_gelu_matmul = cut_matmul
CUTS = {name.removeprefix("cut_"): cut for name, cut in list(globals().items()) if name.startswith("cut_")}


def restride(random_, value):
    """The same numbers, lying differently in memory."""
    kind = random_.randrange(6)
    if not isinstance(value, torch.Tensor) or kind > 4 or value.dim() == 0:
        return value
    if kind == 0:
        order = random_.sample(range(value.dim()), value.dim())
        return value.permute(order).contiguous().permute([order.index(i) for i in range(value.dim())])
    if kind == 1:
        return value.repeat_interleave(2, -1)[..., ::2]
    if kind == 2:  # as a slice of something larger, aligned to no more than an element
        return torch.cat((value.new_zeros(1), value.flatten()))[1:].view(value.shape)
    if kind == 3 and len(value):
        return value[:1].expand_as(value)
    if kind == 4 and value.is_floating_point():
        return torch._neg_view(-value)
    return value


def sprinkle(random_, value):
    """With a few special numbers among the others."""
    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
        value = value.clone()
        for _ in range(random_.randint(1, 3)):
            index = tuple(random_.randrange(length) for length in value.shape)
            value[index] = random_.choice(SPECIAL)
    return value


def break_one(random_, arguments):
    """One argument is not what it should be, or no longer fits the others; sometimes the call remains a right one."""
    arguments = list(arguments)
    at = random_.randrange(len(arguments))
    value = arguments[at]
    if not isinstance(value, torch.Tensor):
        others = (None, -1, 0, 10**30, math.nan, -math.inf, "3", (), torch.int64, torch.zeros(2), True, 1.5)
        arguments[at] = random_.choice(others)
        return arguments
    dimension = random_.randrange(value.dim())
    arguments[at] = random_.choice((
        lambda: None,
        lambda: 3,
        lambda: value[..., None],
        lambda: value.flatten(),
        lambda: value.narrow(dimension, 0, max(value.shape[dimension] - 1, 0)),
        lambda: value.narrow(dimension, 0, 0),
        lambda: torch.cat((value, value), dimension),
        lambda: value.to(random_.choice((torch.int32, torch.int64, torch.bool, torch.complex64, torch.float64))),
        lambda: value.to("meta"),
        lambda: value.to_sparse() if value.numel() else value,
        lambda: value if value.dtype == torch.bool else -value,
        lambda: value.new_zeros(value.shape),
    ))()  # fmt: skip
    return arguments


def outcome(backend, op, arguments):
    """What a call gives: a tuple of tensors, or the error, which must be one that is documented or PyTorch's own."""
    with ops.use(backend):
        try:
            result = op(*arguments)
        except (ValueError, TypeError, RuntimeError) as error:
            assert str(error)
            return error
    return result if isinstance(result, tuple) else (result,)


def told(op, arguments):
    parts = (
        f"{value.dtype} {tuple(value.shape)} strides {value.stride() if value.layout == torch.strided else 'none'}"
        if isinstance(value, torch.Tensor)
        else repr(value)
        for value in arguments
    )
    return f"{op.name}({', '.join(parts)})"


def assert_accurate(ours, plain, exact, what, terms=1.0):
    """At most twice the error of PyTorch at the same dtype, or rounding errors of the largest value.

    `terms`: how large the terms of the sums are, which may come to nothing.
    """
    assert ours.shape == exact.shape, what
    if not exact.numel() or not plain.isfinite().all():  # half precision overflows in PyTorch's steps, not in ours
        return
    error, allowed = ((value.double() - exact).abs().max() for value in (ours, plain))
    unit = max(torch.finfo(plain.dtype).eps, torch.finfo(ours.dtype).eps) * exact.abs().max()
    rounding = 16 * torch.finfo(torch.float32).eps * terms
    assert error <= 2 * allowed + 2 * unit + rounding, f"{what}: error {error:.3g}, PyTorch's {allowed:.3g}"


def compare(op, arguments, special, what):
    ours, plain = (outcome(backend, op, arguments) for backend in ("native", "reference"))
    if isinstance(plain, Exception):
        # PyTorch's own errors may differ; those of the checks do not.
        alike = type(plain) if isinstance(plain, (ValueError, TypeError)) else RuntimeError
        assert isinstance(ours, alike), (what, plain, ours)
        return "refused"
    if isinstance(ours, Exception):
        # What the kernel says it cannot do, and leaves to the reference.
        assert isinstance(ours, RuntimeError) and "cannot run" in str(ours), (what, ours)
        return "left to the reference"
    assert [(each.shape, each.dtype, each.device) for each in ours] == [
        (each.shape, each.dtype, each.device) for each in plain
    ], what
    # With results of a forward pass that do not belong to its inputs, the gradient is whatever an implementation reads.
    if any(each.is_meta for each in ours) or (special and op.name == "attention_backward"):
        return "shapes alone"
    exactly = op.name in EXACT or (op.name == "restore" and arguments[3] is None)
    if exactly or op.name == "update_box" or (special and op.name not in SUMS):
        for one, other in zip(ours, plain, strict=True):
            tolerance = {} if op.name in ("crop", "restore") else {"rtol": 1e-6, "atol": 1e-9}
            tolerance = {"rtol": 0, "atol": 0} if op.name == "eliminate" else tolerance
            torch.testing.assert_close(one, other, equal_nan=True, **tolerance, msg=lambda text: f"{what}: {text}")
        return "compared"
    wide = [
        each.double() if isinstance(each, torch.Tensor) and each.is_floating_point() else each for each in arguments
    ]
    if op.name == "restore":
        wide[-1] = torch.float64
    for one, other, exact in zip(ours, plain, op.reference(*wide), strict=True) if len(ours) > 1 else (
        (ours[0], plain[0], op.reference(*wide)),
    ):  # fmt: skip
        assert_accurate(one, other, exact, what)
    return "compared"


@pytest.fixture(scope="module")
def samples():
    found = {}
    for name, op in ops.OPS.items():
        if "native" in op.backends:
            for dtype in set(DTYPES):
                calls = [*op.samples("small", dtype, CPU), *op.samples("edge", dtype, CPU)]
                # Large ones cost much and show no more.
                found[name, dtype] = [c for c in calls if c[0].numel() < 200_000]
    return found


@torch.no_grad()
def test_ops(samples, long, counts):
    assert set(CUTS) == {name for name, _ in samples}, "an op without random sizes"

    def run(random_):
        random_ = Random(random_.getrandbits(64))
        for _ in range(CALLS):
            name, dtype = random_.choice(list(CUTS)), random_.choice(DTYPES)
            op = ops.OPS[name]
            arguments = CUTS[name](random_, *random_.choice(samples[name, dtype]))
            special = name not in SUMS and random_.random() < 0.15
            if special:
                at = random_.randrange(len(arguments))
                arguments = [*arguments[:at], sprinkle(random_, arguments[at]), *arguments[at + 1 :]]
            arguments = [restride(random_, value) for value in arguments]
            if name == "attention_backward" and not special:
                arguments[2], _, arguments[3] = ops.OPS["attention"].reference(*arguments[:2])
            broken = random_.random() < 0.3
            if broken:
                arguments = break_one(random_, arguments)
            what = told(op, arguments)
            counts[f"{name} {compare(op, arguments, special or broken, what)}"] += 1
            counts["calls"] += 1

    scenarios(20_000 if long else 40, long, run, reduce=False)

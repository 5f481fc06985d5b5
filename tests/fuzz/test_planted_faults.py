"""What the fuzz tests must find: each compiled kernel replaced by one that is slightly wrong fails its comparison."""

from collections import Counter
from random import Random

import pytest
import torch

from ostrack_fast.ops import OPS
from ostrack_fast.ops.registry import LAYERS, Backend

from .test_fuzz_layers import RANDOM, Numbers, compare_gradient, compare_layer
from .test_fuzz_ops import CUTS, compare, samples, told

__all__ = ["samples"]
TRIES = 60


def kept_off_by_one(run):
    """Each kept candidate is the one after the right one."""

    def eliminate(tokens, score, ids, keep):
        out, kept, removed = run(tokens, score, ids, keep)
        template = tokens.shape[1] - score.shape[1]
        return torch.cat((out[:, :template], out[:, template:].roll(1, 1)), 1), kept.roll(1, 1), removed

    return eliminate


def ids_alone_off_by_one(run):
    def eliminate(*arguments):
        out, kept, removed = run(*arguments)
        return out, kept.roll(1, 1), removed

    return eliminate


def wrong_scale(run):
    """The softmax of logits that are 1% too large."""

    def attention(qkv, mask):
        scaled = qkv.clone()
        scaled[:, :, 0] *= 1.01
        return run(scaled, mask)

    return attention


def score_of_one_row_more(run):
    def attention(qkv, mask):
        if mask is not None:
            mask = mask.clone()
            mask[..., 0] = ~mask[..., 0]
        return run(qkv, mask)

    return attention


def zero_in_a_wrong_row(run):
    def restore(tokens, ids, grid, *rest):
        out = run(tokens, ids, grid, *rest).clone()
        if ids.numel():
            cell = int(ids[0, 0])
            out[0, :, cell // grid, cell % grid] = 0
        return out

    return restore


def scaled_by(factor):
    def fault(run):
        def op(*arguments):
            result = run(*arguments)
            first = result[0] if isinstance(result, tuple) else result
            first = first * factor
            return (first, *result[1:]) if isinstance(result, tuple) else first

        return op

    return fault


def one_pixel_to_the_right(run):
    def crop(frame, box, *rest):
        moved = box.clone()
        moved[:, 0] += 1
        return run(frame, moved, *rest)

    return crop


FAULTS = [
    ("eliminate", kept_off_by_one), ("eliminate", ids_alone_off_by_one), ("attention", wrong_scale),
    ("attention", score_of_one_row_more), ("restore", zero_in_a_wrong_row), ("decode", scaled_by(1.001)),
    ("update_box", scaled_by(1.001)), ("crop", one_pixel_to_the_right),
]  # fmt: skip


def call_until_found(op, samples):
    """Random calls; raises the AssertionError of the first that shows the fault."""
    random_ = Random(0)
    for _ in range(TRIES):
        dtype = random_.choice((torch.float32, torch.float32, torch.bfloat16))
        arguments = list(CUTS[op.name](random_, *random_.choice(samples[op.name, dtype])))
        compare(op, arguments, False, told(op, arguments))


@pytest.mark.parametrize(("name", "fault"), FAULTS, ids=lambda value: getattr(value, "__name__", value))
@torch.no_grad()
def test_a_wrong_kernel_of_an_op_is_found(samples, monkeypatch, name, fault):
    op = OPS[name]
    call_until_found(op, samples)
    run, unless = op.backends["native"]
    monkeypatch.setitem(op.backends, "native", Backend(fault(run), unless))
    with pytest.raises(AssertionError):
        call_until_found(op, samples)


def without_the_last_input(build):
    """A layer that leaves out one of its weights."""

    def faulty(weight, *rest):
        weight = weight.clone()
        weight[(-1,) * weight.dim()] = 0
        return build(weight, *rest)

    return faulty


def without_the_bias_of_the_last_output(build):
    def faulty(weight, bias, *rest):
        bias = bias.clone()
        bias[-1] = 0
        return build(weight, bias, *rest)

    return faulty


def one_key_less(build):
    def faulty(*arguments):
        layer = build(*arguments)

        def call(q, kv, mask=None, out=None):
            kv = kv.clone()
            kv[:, -1] = 0
            return layer(q, kv, mask, out)

        return call

    return faulty


LAYER_FAULTS = [
    (name, fault)
    for name in sorted(set(LAYERS) - {"cross_attention"})
    for fault in (without_the_last_input, without_the_bias_of_the_last_output)
] + [("cross_attention", one_key_less)]


def build_until_found(name):
    random_, counts = Random(1), Counter()
    for _ in range(TRIES):
        built, inputs = RANDOM[name](random_, Numbers(random_.getrandbits(30)), torch.float32)
        counts[compare_layer(name, built, inputs, False, name)] += 1
    return counts


@pytest.mark.parametrize(("name", "fault"), LAYER_FAULTS, ids=lambda value: getattr(value, "__name__", value))
@torch.no_grad()
def test_a_wrong_kernel_of_a_layer_is_found(monkeypatch, name, fault):
    op = LAYERS[name]
    if not build_until_found(name)["compared"]:
        pytest.skip(f"no compiled {name} on this processor: it needs AVX2")
    build, unless = op.backends["native"]
    monkeypatch.setitem(op.backends, "native", Backend(fault(build), unless))
    with pytest.raises(AssertionError):
        build_until_found(name)


def test_a_wrong_logarithm_in_the_forward_is_found_by_the_gradient(monkeypatch):
    """The backward pass takes it from the forward, whose own results stay right."""
    op = OPS["attention"]
    run, unless = op.backends["native"]

    def faulty(*arguments):
        out, score, lse = run(*arguments)
        return out, score, lse + 0.001

    def compare_some():
        random_ = Random(2)
        for _ in range(TRIES):
            compare_gradient(random_, Numbers(random_.getrandbits(30)))

    compare_some()
    monkeypatch.setitem(op.backends, "native", Backend(faulty, unless))
    with pytest.raises(AssertionError):
        compare_some()

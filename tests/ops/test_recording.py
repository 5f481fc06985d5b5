"""Kernels on the CPU that are called again: the same results, in memory that stays."""

from itertools import pairwise

import pytest
import torch

from ostrack_fast import ops
from ostrack_fast.ops.recording import NotRecordable, Recording


def layer(seed):
    torch.manual_seed(seed)
    with ops.use("native"):
        return ops.layers.linear(torch.randn(48, 48), torch.randn(48))


@pytest.fixture
def layers():
    if ops.LAYERS["linear"].unsupported_reason("native", torch.ones(1, 1), torch.ones(1)):
        pytest.skip("no compiled linear layer here")
    return [layer(seed) for seed in range(5)]


def chain(layers, x):
    """Each result is needed for the next two, then no longer."""
    older, newer = layers[0](x), layers[1](x)
    for each in layers[2:]:
        older, newer = newer, each(older.view(3, 16, 48).flatten(0, 1), residual=newer)
    return older, newer


def test_a_replay_computes_the_same(layers):
    values = [torch.randn(48, 48) for _ in range(3)]
    expected = [chain(layers, x) for x in values]
    recording = Recording(lambda x: chain(layers, x), torch.randn(48, 48))
    for x, both in zip(values, expected, strict=True):
        for found, right in zip(recording.replay(x), both, strict=True):
            assert torch.equal(found, right)


def test_memory_is_used_again_but_not_while_it_is_needed(layers):
    places = []

    def function(x):
        results = []
        for each in layers:
            results = [*results[-1:], each(x)]
            places.append(results[-1].data_ptr())
        return tuple(results)

    first, second = Recording(function, torch.randn(48, 48)).replay(torch.randn(48, 48))
    assert len(set(places)) == 3 and all(a != b for a, b in pairwise(places))
    assert (first.data_ptr(), second.data_ptr()) == tuple(places[-2:])


@pytest.mark.parametrize(
    "function",
    [
        lambda first, second, x: (second(first(x).relu()),),
        lambda first, second, x: (first(x), second(x).relu()),
        lambda first, second, x: (first(x), second(x).relu_()),
        lambda first, second, x: (second(first(x).add_(1)),),
        lambda first, second, x: (second(first(x).t()),),  # a copy: rows must be dense
    ],
)
def test_what_pytorch_computes_is_not_recorded(layers, function):
    with pytest.raises(NotRecordable):
        Recording(lambda x: function(*layers[:2], x), torch.randn(48, 48))


def test_checks_are_no_computation(layers):
    """What looks at values and gives none to a kernel is left out."""

    def function(x):
        y = layers[0](x)
        assert y.max().item() == y.max().item()
        return (layers[1](y),)

    x = torch.randn(48, 48)
    assert torch.equal(Recording(function, torch.randn(48, 48)).replay(x)[0], layers[1](layers[0](x)))

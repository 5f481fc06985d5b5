"""What a profiler and a tuner see of the frozen network: its layers, and the named stages of a frame."""

from collections import Counter

import numpy as np
import pytest
import torch

from ostrack_fast import Engine, build_ostrack, ops

BATCH = 2


def frozen(backend, elimination=True):
    with ops.use(backend):
        engine = Engine(build_ostrack("small"), "cpu", "float32", candidate_elimination=elimination)
        for _ in range(BATCH):
            engine.add(np.zeros((60, 80, 3), np.uint8), (20, 20, 20, 20))
    return engine


@pytest.mark.parametrize("elimination", [True, False])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_the_layers_are_those_that_run_on_the_rows_they_get(monkeypatch, backend, elimination):
    engine = frozen(backend, elimination)
    names, expected, seen = {}, Counter(), Counter()
    for name, layer, rows in engine.network.layers():
        names[id(layer)] = name
        # A CPU knows the template's part of the first block's qkv already.
        known = engine.cfg.template_grid**2 if name == "qkv" and "qkv" not in [each for each, _ in expected] else 0
        expected[name, (BATCH * (rows - known), layer.inputs)] += 1
    for kind in {type(layer) for _, layer, _ in engine.network.layers()}:

        def recorded(self, x, *others, call=kind.__call__, **options):
            seen[names[id(self)], (x.numel() // x.shape[-1], x.shape[-1])] += 1
            return call(self, x, *others, **options)

        monkeypatch.setattr(kind, "__call__", recorded)
    with ops.use(backend):
        engine.step(np.zeros((60, 80, 3), np.uint8))
    assert seen == expected
    assert {"patch embedding", "qkv", "proj", "fc1", "fc2", "conv2", "conv5"} <= set(names.values())
    assert {"conv1", "taps"} & set(names.values())


def test_a_trace_names_the_stages_of_a_frame():
    engine = frozen("auto")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
        engine.step(np.zeros((60, 80, 3), np.uint8))
    calls = Counter(event.name for event in trace.events())
    depth, eliminating = engine.cfg.depth, len(engine.cfg.ce_layers)
    assert calls["crop"] == calls["decode"] == calls["box update"] == calls["patch embedding"] == 1
    assert calls["elimination"] == eliminating > 0
    assert calls["fc2, residual"] == calls["norm, fc1, gelu"] == calls["projection, residual"] == depth
    assert calls["attention and score"] >= depth and calls["norm, qkv"] >= depth
    assert calls["norm, restoration, head"] == 1


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_frame_leaves_the_template_as_it_was(backend):
    """The template's tokens lie in front of the search region's, in memory that every frame uses."""
    engine = frozen(backend)
    template, size = engine._targets.tokens[:, : engine.cfg.template_grid**2], engine.cfg.search_size
    kept = template.clone()
    searches = [torch.randn(BATCH, 3, size, size) for _ in range(2)]
    first, _, again = (engine(searches[which]) for which in (0, 1, 0))
    assert torch.equal(template, kept)
    assert all(torch.equal(first[name], again[name]) for name in first)

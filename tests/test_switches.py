"""Every GPU speed-up that can be switched finds what the network finds without it: the shipped video on a real GPU."""

import json
import os
from functools import cache
from importlib import resources
from itertools import islice

import numpy as np
import pytest
import torch

from ostrack_fast import Engine, OSTrack, ops
from ostrack_fast.switches import DEFAULTS, VARIABLE
from ostrack_fast.video import open_source

ASSETS = resources.files("ostrack_fast") / "assets"
EVERY = ",".join(f"{name}=on" for name in DEFAULTS)


@cache
def frames():
    with resources.as_file(ASSETS / "demo.mp4") as path:
        return list(islice(open_source(path), 5))


def found(device, dtype, around=None):
    """Rows (x, y, width, height, score) in each frame after the first, each searched around `around`, or the last."""
    engine = Engine(OSTrack.from_pretrained("small"), device, dtype)
    engine.add(frames()[0], tuple(json.loads((ASSETS / "demo.json").read_text(encoding="utf-8"))["box"]))
    rows = []
    for index, frame in enumerate(frames()[1:]):
        if around is not None and index:
            engine.place([around[index - 1][:4].tolist()])
        rows += engine.step(frame)
    return np.array(rows)


@cache
def exact():
    return found("cpu", "float32")


def assert_as_without(monkeypatch, device, dtype, switches, backend="auto"):
    """At most twice the error that the dtype alone makes, and 0.1 pixels or 0.001 of the score."""
    allowed = np.abs(found(device, dtype, exact()) - exact()).max(0)
    monkeypatch.setenv(VARIABLE, switches)
    with ops.use(backend):
        error = np.abs(found(device, dtype, exact()) - exact()).max(0)
    assert (error <= 2 * allowed + [0.1, 0.1, 0.1, 0.1, 0.001]).all(), f"{switches}: {error}, without {allowed}"


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("switches", [*(f"{name}={'off' if on else 'on'}" for name, on in DEFAULTS.items()), EVERY])
def test_on_a_gpu(switches, backend, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert_as_without(monkeypatch, "cuda", "float16", switches, backend)


def test_a_difference_is_seen(monkeypatch):
    """What the comparison above would say of a switch that moves boxes by half a pixel."""
    assert_as_without(monkeypatch, "cpu", "float32", EVERY)
    stock = Engine.step

    def half_a_pixel_off(self, frame):
        return [[row[0] + 0.5 * (VARIABLE in os.environ), *row[1:]] for row in stock(self, frame)]

    monkeypatch.setattr(Engine, "step", half_a_pixel_off)
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(AssertionError, match="without"):
        assert_as_without(monkeypatch, "cpu", "float32", EVERY)

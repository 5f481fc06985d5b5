"""The shipped video on a real GPU: the boxes of the CPU. Alone, the CUDA kernels are not a whole network."""

import json
from functools import cache
from importlib import resources
from itertools import islice

import numpy as np
import pytest
import torch

from ostrack_fast import Engine, OSTrack, ops
from ostrack_fast.video import open_source

ASSETS = resources.files("ostrack_fast") / "assets"


@cache
def frames():
    with resources.as_file(ASSETS / "demo.mp4") as path:
        return list(islice(open_source(path), 5))


@cache
def found(device, dtype, backend):
    """Rows (x, y, width, height, score) in each frame after the first, each searched around the CPU's last box."""
    around = None if device == "cpu" else found("cpu", "float32", "auto")
    with ops.use(backend):
        engine = Engine(OSTrack.from_pretrained("small"), device, dtype)
        engine.add(frames()[0], tuple(json.loads((ASSETS / "demo.json").read_text(encoding="utf-8"))["box"]))
        rows = []
        for index, frame in enumerate(frames()[1:]):
            if around is not None and index:
                engine.place([around[index - 1][:4].tolist()])
            rows += engine.step(frame)
    return np.array(rows)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_boxes(dtype, backend, no_tf32):
    """At most twice the error of PyTorch's own kernels in that dtype, and 0.1 pixels or 0.001 of the score."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    exact = found("cpu", "float32", "auto")
    error, allowed = (np.abs(found("cuda", dtype, each) - exact).max(0) for each in (backend, "reference"))
    assert (error <= 2 * allowed + [0.1, 0.1, 0.1, 0.1, 0.001]).all(), f"{error}, PyTorch's {allowed}"

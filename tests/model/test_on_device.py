"""The frozen network and half precision on every device, against the published code's outputs in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ostrack_fast import Engine, OSTrack, ops
from ostrack_fast.config import get_config
from ostrack_fast.model import template_mask

from ..margins import decided_images
from .test_golden_model import CASES, GOLDEN, relative_error, seeded_images, seeded_model

MAPS = ("score_map", "size_map", "offset_map")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def where(request, no_tf32):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


def some(*names):
    """The shipped network, and published ones, which take longer."""
    return pytest.mark.parametrize("case", ["small", *(pytest.param(name, marks=pytest.mark.slow) for name in names)])


def network(case, keep_rate=None):
    """Model in float32, images and the maps in float64."""
    if case == "small":
        model = OSTrack.from_pretrained("small")
        images = decided_images(model, 2)
        with torch.inference_mode():
            exact = OSTrack.from_pretrained("small").double()
            mask = template_mask(model.cfg)  # as the engine without a box has it
            out = exact(*(image.double() for image in images), mask, ce_keep_rate=keep_rate)
        return model, images, {name: out[name].numpy() for name in MAPS}
    preset, changes, _ = CASES[case]
    cfg = replace(get_config(preset), **changes)
    expected = np.load(GOLDEN / f"{case}.npz")
    return seeded_model(cfg, torch.float32), seeded_images(cfg, int(expected["batch"]), torch.float32), expected


def by_engine(model, images, where, dtype, **how):
    engine = Engine(model, where, dtype, **how)
    engine.set_template(images[0])
    return engine.forward(images[1])


@some("ostrack256", "ostrack256_ce", "ostrack384_ce")
def test_engine_in_float32(case, where):
    model, images, expected = network(case)
    out = by_engine(model, images, where, "float32")
    for name in MAPS:
        assert relative_error(out[name], expected[name]) < 5e-5, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@some("ostrack256", "ostrack384")
def test_half_precision_is_at_most_twice_as_wrong_as_pytorch(case, where, dtype):
    """Root of the mean squared error. With all candidates: which of them are kept is a matter of the last bit."""
    model, images, expected = network(case, keep_rate=1.0)
    frozen = by_engine(model, images, where, dtype, candidate_elimination=False)
    half = [image.to(where, dtype) for image in images]
    model = model.to(where, dtype)
    with torch.inference_mode():
        ours = model(*half, ce_keep_rate=1.0)
        with ops.use("reference"):
            pytorch = model(*half, ce_keep_rate=1.0)
    for name in MAPS:
        of_pytorch = rms(pytorch[name], expected[name])
        assert rms(ours[name], expected[name]) <= 2 * of_pytorch, name
        assert rms(frozen[name], expected[name]) <= 2 * of_pytorch, f"{name} of the engine"


def rms(found, expected):
    return np.sqrt(np.square(found.double().cpu().numpy() - expected).mean())

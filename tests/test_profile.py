"""Where a frame's time goes: every stage is seen, and the arithmetic is that of the paper's table."""

import numpy as np
import pytest
import torch

from ostrack_fast import Engine, build_ostrack, ops
from ostrack_fast.benchmark.profile import profile, stage_flops
from ostrack_fast.config import get_config

STAGES = {
    "crop", "patch embedding", "norm, qkv", "attention and score", "projection, residual", "elimination",
    "norm, fc1, gelu", "fc2, residual", "norm, restoration, head", "decode", "box update",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "elimination", "macs"),
    [("ostrack_256_ce", True, 22.6), ("ostrack_256", False, 30.9), ("ostrack_384_ce", True, 54.1)],
)
def test_the_papers_multiply_adds(name, elimination, macs):
    """The published counts include the template's embedding, which a tracker does once."""
    cfg = get_config(name)
    template = cfg.template_grid**2 * 3 * cfg.patch_size**2 * cfg.embed_dim
    total = sum(stage_flops(cfg, elimination).values()) / 2 + template
    assert total / 1e9 == pytest.approx(macs, rel=0.02)


def test_every_stage_is_timed_and_nothing_stays_patched():
    torch.manual_seed(0)
    engine = Engine(build_ostrack("small"), "cpu", "float32")
    before, network = ops.attention, engine.network
    frame = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    found = profile(engine, frame, (50, 40, 30, 30), frames=3)
    assert ops.attention is before and engine.network is network
    stages = {stage.name: stage for stage in found.stages}
    assert set(stages) == STAGES
    assert stages["attention and score"].calls == 8 + 2  # eliminating blocks ask twice: see FrozenOSTrack
    assert stages["elimination"].calls == 2
    assert stages["crop"].calls == stages["norm, restoration, head"].calls == 1
    assert all(stage.seconds > 0 for stage in found.stages) and found.floor > 0 and found.kernels is None
    assert found.bound in ("compute", "memory")

"""Where a frame's time goes: every stage is seen, and the arithmetic is that of the paper's table."""

import time

import numpy as np
import pytest
import torch
from torch.autograd import DeviceType

from ostrack_fast import Engine, build_ostrack
from ostrack_fast.config import get_config
from ostrack_fast.model.cost import stage_flops
from ostrack_fast.profiling import nodes, profile

STAGES = {
    "crop", "patch embedding", "norm, qkv", "attention and score", "projection, residual", "elimination",
    "norm, fc1, gelu", "fc2, residual", "norm, restoration, head", "maps", "decode", "box update",
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


def test_every_stage_is_timed():
    torch.manual_seed(0)
    engine = Engine(build_ostrack("small"), "cpu", "float32")
    frame = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    found = profile(engine, frame, (50, 40, 30, 30), frames=3)
    stages = {stage.name: stage for stage in found.stages}
    assert set(stages) == STAGES
    assert stages["attention and score"].calls == 8 + 2  # eliminating blocks ask twice: see FrozenOSTrack
    assert stages["elimination"].calls == 2
    assert stages["crop"].calls == stages["norm, restoration, head"].calls == 1
    assert all(stage.seconds > 0 for stage in found.stages) and found.roofline > 0 and not found.nodes
    assert sum(stage.seconds for stage in found.stages) < 3 * found.seconds
    assert found.bound in ("compute", "memory")


def test_nodes_are_laid_over_each_other_run_by_run():
    """On the CPU, whose profiler reports the same way: each op of a run, in order, with the idle time before it."""
    x = torch.zeros(100)

    def run():
        x.mul_(x)
        time.sleep(0.02)
        x.add_(x)

    first, second = nodes(run, times=5, device=DeviceType.CPU)
    assert (first.name, second.name) == ("aten::mul_", "aten::add_")
    assert first.gap == 0 and 0.02 <= second.gap < 1
    assert 0 < first.seconds < 0.02 and 0 < second.seconds < 0.02
    calls = iter(range(100))
    with pytest.raises(RuntimeError, match="every run must launch the same"):
        nodes(lambda: x.mul_(x) if next(calls) % 2 else x.add_(x), times=4, device=DeviceType.CPU)
    with pytest.raises(RuntimeError, match="0 nodes in 4 runs"):
        nodes(lambda: None, times=4, device=DeviceType.CPU)

"""A tiny network, random frames, and the promise that many targets are tracked as each alone: for trackers' options."""

import numpy as np
import pytest
import torch

from ostrack_fast import MultiTracker, Tracker, build_ostrack
from ostrack_fast.config import ModelConfig

TINY = ModelConfig(
    template_size=32, search_size=64, embed_dim=32, depth=2, num_heads=1, head_channels=8,
    ce_layers=(1,), ce_keep_ratio=(0.7,),
)  # fmt: skip
BOX = (100.0, 80.0, 40.0, 20.0)


def tiny_model():
    """Random weights whose candidates score differently."""
    torch.manual_seed(0)
    model = build_ostrack(TINY)
    for block in model.backbone.blocks:
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.3)
    return model


def frames(count):
    return [np.random.default_rng(seed).integers(0, 256, (200, 300, 3), dtype=np.uint8) for seed in range(count)]


def assert_many_as_each_alone(model, **options):
    """In one frame for all and in a frame for each; a target that is dropped leaves the others alone."""
    boxes = [BOX, (50.0, 60.0, 20.0, 60.0), (150.0, 30.0, 30.0, 30.0)]
    first, *rest = frames(4)
    many = MultiTracker(model, "cpu", "float32", **options)
    for box in boxes:
        many.add(first, box)
    many.drop(0)
    alone = [Tracker(model, "cpu", "float32", **options) for _ in boxes[1:]]
    for tracker, box in zip(alone, boxes[1:], strict=True):
        tracker.initialize(first, box)
    for index, frame in enumerate(rest):
        found = many.track_each({1: frame, 2: frame}) if index % 2 else many.track(frame)
        for target, tracker in zip((1, 2), alone, strict=True):
            assert found[target].box == pytest.approx(tracker.track(frame).box, abs=1e-3)

"""A small video of a moving texture, and a network small enough to follow it at once."""

import cv2
import numpy as np
import pytest
import torch

from ostrack_fast import build_ostrack
from ostrack_fast.config import ModelConfig
from ostrack_fast.model.checkpoint import save_weights

TINY = ModelConfig(
    template_size=64, search_size=128, embed_dim=24, depth=2, num_heads=2, head_channels=16,
    ce_layers=(1,), ce_keep_ratio=(0.7,),
)  # fmt: skip
BOX = (50.0, 30.5, 20.0, 28.0)
SECOND_BOX = (70.0, 20.0, 26.0, 22.0)


@pytest.fixture(scope="session")
def model():
    torch.manual_seed(0)
    model = build_ostrack(TINY)
    for table in (model.backbone.pos_embed_z, model.backbone.pos_embed_x):
        torch.nn.init.normal_(table)
    return model


@pytest.fixture(scope="session")
def weights(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(model.state_dict(), TINY, path)
    return path


@pytest.fixture(scope="session")
def frames():
    """Four frames (96,128,3) uint8 RGB."""
    coarse = np.random.default_rng(0).integers(0, 256, (4, 12, 16, 3), dtype=np.uint8)
    return [cv2.resize(image, (128, 96), interpolation=cv2.INTER_CUBIC) for image in coarse]


@pytest.fixture
def files(frames, tmp_path):
    """The frames as image files without loss."""
    paths = [tmp_path / f"{index:08d}.png" for index in range(len(frames))]
    for path, frame in zip(paths, frames, strict=True):
        assert cv2.imwrite(str(path), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    return [str(path) for path in paths]

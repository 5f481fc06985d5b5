"""Exported files, made once for all tests that read them."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from ostrack_fast import build_ostrack
from ostrack_fast.config import ModelConfig
from ostrack_fast.model import template_mask

from ..margins import decided_images

# The geometry that cv2.TrackerVit has built in, which is OSTrack-256's.
TINY = ModelConfig(embed_dim=48, depth=2, num_heads=2, head_channels=16, ce_layers=(0,), ce_keep_ratio=(0.7,))


def tiny(cfg=TINY):
    torch.manual_seed(0)
    model = build_ostrack(cfg)
    # Position tables start at zero, and weights so small that all candidates would score nearly alike.
    for table in (model.backbone.pos_embed_z, model.backbone.pos_embed_x):
        torch.nn.init.normal_(table)
    for block in model.backbone.blocks:
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.3)
    return model


def boxed():
    """A network that is told its target's box, and listens."""
    model = tiny(replace(TINY, template_box=True))
    torch.nn.init.normal_(model.backbone.box_embed)
    return model


def decided(model, count):
    """Images whose choices have a margin when the configured template tokens rank the candidates."""
    return decided_images(model, count, mask=template_mask(model.cfg))


@torch.no_grad()
def run_model(model, images, box=None):
    """What the tracker computes of a template and a search crop: score, size and offset map."""
    out = model(*images, template_mask(model.cfg), template_box=box)
    return [out[name] for name in ("score_map", "size_map", "offset_map")]


@pytest.fixture(scope="session")
def model():
    return tiny()


@pytest.fixture(scope="session")
def exported(model, tmp_path_factory):
    """`exported(format="onnx", ...)`: the path of the tiny model's file, whose arguments are `export_model`'s."""
    pytest.importorskip("onnxscript", reason="needs the packages of the extra export")
    pytest.importorskip("onnxruntime", reason="needs the packages of the extra export")
    from ostrack_fast.export import FORMATS, export_model

    folder = tmp_path_factory.mktemp("exported")

    @cache
    def make(format="onnx", **choices):
        name = "-".join([format, *(f"{key}={value}" for key, value in choices.items())])
        path = folder / (name + FORMATS[format].suffix)
        export_model(model, path, format, **choices)
        return path

    return make

"""The plain PyTorch path names no device: it runs on `meta`, which has shapes but no memory, and so on mps, xpu, ROCm.

A tensor made on the CPU in the middle of the network would meet one on `meta` and raise.
"""

import pytest
import torch

from ostrack_fast import build_ostrack, ops
from ostrack_fast.config import ModelConfig
from ostrack_fast.export import ExportNetwork
from ostrack_fast.ops import reference

META = torch.device("meta")
CFG = ModelConfig(embed_dim=48, depth=3, num_heads=2, head_channels=16, ce_layers=(0, 1), ce_keep_ratio=(0.7, 0.7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_runs_on_any_device(dtype):
    model = build_ostrack(CFG).to(META, dtype)
    images = (torch.empty(2, 3, side, side, device=META, dtype=dtype) for side in (128, 256))
    with ops.use("reference"):
        out = model(*images)
    shapes = {"pred_boxes": (2, 1, 4), "score_map": (2, 1, 16, 16), "size_map": (2, 2, 16, 16)}
    for name, shape in shapes.items():
        assert (out[name].shape, out[name].device) == (shape, META)
    assert [each.shape for each in out["removed_indexes_s"]] == [(2, 76), (2, 54)]


def test_gradients_flow_on_any_device():
    model = build_ostrack(CFG, training=True).to(META)
    images = (torch.empty(2, 3, side, side, device=META) for side in (128, 256))
    with ops.use("reference"):
        out = model(*images)
    (out["score_map"].sum() + out["size_map"].sum() + out["offset_map"].sum()).backward()
    unused = ("backbone.cls_token", "backbone.pos_embed")
    for name, parameter in model.named_parameters():
        if name not in unused:
            assert parameter.grad is not None and parameter.grad.device == META, name


def test_the_exported_network_runs_on_any_device():
    network = ExportNetwork(build_ostrack(CFG), torch.float16).to(META)
    maps = network(*(torch.empty(2, 3, side, side, device=META) for side in (128, 256)))
    assert [(each.shape, each.device, each.dtype) for each in maps] == [
        ((2, count, 16, 16), META, torch.float32) for count in (1, 2, 2)
    ]


def test_the_reference_of_every_tensor_op_runs_on_any_device():
    qkv = torch.empty(2, 80, 3, 2, 16, device=META)
    mask = torch.empty(16, dtype=torch.bool, device=META)
    out, score = reference.attention(qkv, mask)
    tokens, ids, removed = reference.eliminate(out, score, torch.empty(2, 64, dtype=torch.int64, device=META), 45)
    restored = reference.restore(tokens[:, 16:], ids, 8)
    box, best = reference.decode(restored[:, :1], restored[:, 1:3], restored[:, 3:5])
    shapes = [(2, 80, 32), (2, 64), (2, 61, 32), (2, 45), (2, 19), (2, 32, 8, 8), (2, 4), (2,)]
    found = (out, score, tokens, ids, removed, restored, box, best)
    assert [(each.shape, each.device) for each in found] == [(shape, META) for shape in shapes]

"""Networks beside OSTrack: shapes and gradients, one run of the training loop, and a tracker on a clip."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ostrack_fast import Tracker
from ostrack_fast.baselines import NETWORKS, TwoStream
from ostrack_fast.baselines.embeddings import relative_index
from ostrack_fast.config import ModelConfig, get_config
from ostrack_fast.export.network import ExportNetwork
from ostrack_fast.model import FrozenOSTrack, OSTrack
from ostrack_fast.model.checkpoint import CheckpointError
from ostrack_fast.model.vit import VisionTransformer
from ostrack_fast.training.losses import LossConfig
from ostrack_fast.training.pretrained import load_backbone
from ostrack_fast.training.trainer import WEIGHTS, Trainer
from tests.training.conftest import config, square  # noqa: F401 - fixtures

CFG = ModelConfig(template_size=32, search_size=64, embed_dim=48, depth=3, num_heads=2, head_channels=16, drop_path=0.0)
VARIANTS = [name for name in NETWORKS if name != "ostrack"]


def images(batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, 3, size, size, generator=generator) for size in (32, 64))


def network(name, seed=0):
    torch.manual_seed(seed)
    return NETWORKS[name](CFG).eval()


@pytest.mark.parametrize("name", VARIANTS)
def test_outputs_are_those_of_ostrack_and_every_parameter_is_trained(name):
    model = network(name)
    template, search = images()
    out, like = model(template, search), OSTrack(CFG).eval()(template, search)
    assert out.keys() == like.keys()
    for key in ("pred_boxes", "score_map", "size_map", "offset_map"):
        assert out[key].shape == like[key].shape
    assert out["backbone_feat"].shape[:2] == like["backbone_feat"].shape[:2]
    sum(out[key].square().sum() for key in ("score_map", "size_map", "offset_map")).backward()
    without = {key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()}
    assert without == {"backbone.cls_token", "backbone.pos_embed"}


@pytest.mark.parametrize("name", ["stark-aligned", "swintrack-aligned"])
def test_streams_do_not_see_each_other_but_the_result_depends_on_both(name):
    model = network(name)
    template, search = images(1)
    other, _ = images(1, seed=1)
    assert isinstance(model, TwoStream)
    with torch.no_grad():
        kept, searched = model.embed_template(template), model.stream_search(search)
        assert torch.equal(model.stream_search(search), searched)
        assert not torch.allclose(model.embed_template(other), kept)
        maps = [model.forward_tokens(model.embed_template(each), search)[2][0] for each in (template, other)]
        whole = model(template, search)["score_map"]
    assert torch.allclose(maps[0], whole, atol=1e-6) and not torch.allclose(maps[0], maps[1], atol=1e-7)


def test_the_fusion_behind_a_vit_b_has_the_sizes_of_the_papers():
    with torch.device("meta"):
        stark, swin = (NETWORKS[name](get_config("ostrack_256")) for name in ("stark-aligned", "swintrack-aligned"))
    assert (stark.bottleneck.out_features, len(stark.encoder), len(stark.decoder)) == (256, 6, 6)
    assert (stark.encoder[0].attn.num_heads, stark.encoder[0].mlp.fc1.out_features) == (8, 2048)
    assert (swin.bottleneck.out_features, len(swin.encoder), swin.encoder[0].attn.num_heads) == (512, 8, 8)


def test_relative_positions_are_one_number_for_each_distance():
    index = relative_index(2, 3)
    assert index.shape == (13, 13) and index.max() == 9 + 25 + 1 and len(index.unique()) == 36
    assert index[0, 1] == index[2, 3] != index[1, 0]  # a column to the right, in both rows of the template
    assert index[4, 8] == index[8, 12] and (index[:4, 4:] == 34).all() and (index[4:, :4] == 35).all()


def test_zero_embeddings_change_nothing():
    template, search = images(1)
    plain = OSTrack(CFG).eval()
    for name in ("identity", "relative"):
        model = network(name)
        model.load_state_dict(plain.state_dict(), strict=False)
        for key, value in model.named_parameters():
            if key not in plain.state_dict():
                value.data.zero_()
        with torch.no_grad():
            same = model(template, search)["size_map"], plain(template, search)["size_map"]
            assert torch.allclose(*same, atol=1e-5)
            next(value for key, value in model.named_parameters() if key not in plain.state_dict()).data.normal_()
            assert not torch.allclose(model(template, search)["size_map"], same[1], atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "stark-aligned",
        "relative",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("swintrack-aligned", "identity")),
    ],
)
def test_training_and_a_tracker_on_a_clip(name, config, tmp_path):  # noqa: F811
    cfg = replace(
        config, network=name, model=CFG, loss=LossConfig(box_cells="target"), epochs=0.5, output=str(tmp_path / "run")
    )
    before = {key: value.clone() for key, value in Trainer(cfg).model.state_dict().items()}
    trainer = Trainer(cfg)
    trainer.run(progress=False)
    after = trainer.model.state_dict()
    assert all(not torch.equal(after[key], before[key]) for key in before if key.endswith(("qkv.weight", "kv.weight")))
    model = NETWORKS[name].from_pretrained(tmp_path / "run" / WEIGHTS)
    tracker = Tracker(model, "cpu", "float32")
    frames = np.random.default_rng(0).integers(0, 255, (3, 96, 128, 3), np.uint8)
    tracker.initialize(frames[0], (40, 30, 24, 20))
    boxes = [tracker.track(frame).box for frame in frames[1:]]
    assert np.isfinite(boxes).all() and boxes[0] != boxes[1]
    with pytest.raises(CheckpointError, match="does not fit"):
        OSTrack.from_pretrained(tmp_path / "run" / WEIGHTS)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_starts_from_a_pretrained_vit(name, tmp_path):
    torch.manual_seed(1)
    source = {key: torch.randn_like(value) for key, value in VisionTransformer(CFG).state_dict().items()}
    save_file(source, tmp_path / "vit.safetensors")
    model = network(name)
    own = {key: value.clone() for key, value in model.state_dict().items()}
    load_backbone(model.backbone, tmp_path / "vit.safetensors")
    loaded = model.state_dict()
    assert torch.equal(loaded["backbone.blocks.2.attn.qkv.weight"], source["blocks.2.attn.qkv.weight"])
    added = [key for key in own if key not in OSTrack(CFG).state_dict()]
    assert all(torch.equal(loaded[key], own[key]) for key in added) and bool(added) == (name != "ostrack")


def test_the_tracker_computes_what_the_network_does():
    model = network("swintrack-aligned")
    engine = Tracker(model, "cpu", "float32").engine
    template, search = images(1)
    engine.set_template(template)
    with torch.no_grad():
        expected = model(template, search)
    for key, value in engine(search).items():
        assert torch.allclose(value, expected[key], atol=1e-6)


def test_what_cannot_be_is_refused(config):  # noqa: F811
    with pytest.raises(ValueError, match="eliminates no candidates"):
        NETWORKS["stark-aligned"](get_config("ostrack_256_ce"))
    with pytest.raises(ValueError, match="no int8"):
        Tracker(network("identity"), "cpu", "int8")
    with pytest.raises(ValueError, match="does not compute"):
        FrozenOSTrack(network("identity"), torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match="exported file would lack"):
        ExportNetwork(network("identity"))
    with pytest.raises(ValueError, match="network='none' must be one of ostrack"):
        replace(config, network="none")

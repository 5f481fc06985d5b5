"""Backbones to start from: timm's, from a stand-in for the Hugging Face Hub and from files."""

import os
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from importlib import resources

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save, save_file

from ostrack_fast.config import ModelConfig, get_config
from ostrack_fast.model.vit import VisionTransformer
from ostrack_fast.training.pretrained import PRETRAINED, load_backbone, resize_positions

from ..test_convert import Hub

# Choices of the paper in a size for tests; both have 192 channels, 12 blocks and 3 heads.
TINY = {"augreg": "vit_tiny_patch16_224.augreg_in21k", "deit": "deit_tiny_patch16_224.fb_in1k"}
LOAD = """
import sys, torch
from ostrack_fast.config import ModelConfig
from ostrack_fast.model.vit import VisionTransformer
from ostrack_fast.training import pretrained
name, path = sys.argv[1:]
pretrained.PRETRAINED["it"] = f"timm:{name}"
vit = VisionTransformer(ModelConfig(embed_dim=192, depth=12, num_heads=3))
pretrained.load_backbone(vit, "it")
torch.save(vit.state_dict(), path)
"""


def made(name, seed=0):
    torch.manual_seed(seed)
    model = timm.create_model(name, pretrained=False)
    for value in model.parameters():
        value.data = torch.randn_like(value) * 0.02
    return {key: value.contiguous() for key, value in model.state_dict().items()}


def check(state, source):
    """Every weight is the source's, and the tables are its, resized."""
    for name in ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.5.mlp.fc2.bias", "norm.weight"):
        assert torch.equal(state[name], source[name]), name
    table = source["pos_embed"][:, 1:]
    torch.testing.assert_close(state["pos_embed_x"], resize_positions(table, 16))
    torch.testing.assert_close(state["pos_embed_z"], resize_positions(table, 8))


@pytest.mark.parametrize("choice", ["deit", "augreg"])
def test_from_the_hub_through_timm(choice, tmp_path):
    pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")
    name, source = TINY[choice], made(TINY[choice])
    save_file(source, tmp_path / "model.safetensors")
    files = {"model.safetensors": (tmp_path / "model.safetensors").read_bytes()}
    handler = type("OneModel", (Hub,), {"repositories": {f"timm/{name}": files}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", LOAD, name, str(tmp_path / "out.pt")],
            env={**os.environ, **where}, cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        server.shutdown()
    assert done.returncode == 0, done.stderr
    check(torch.load(tmp_path / "out.pt", weights_only=True), source)


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_from_a_file(ending, tmp_path):
    source, path = made(TINY["deit"]), tmp_path / f"w.{ending}"
    # MAE's own file wraps the weights, and has a decoder besides.
    save_file(source, path) if ending == "safetensors" else torch.save({"model": source}, path)
    vit = VisionTransformer(ModelConfig(embed_dim=192, depth=12, num_heads=3))
    load_backbone(vit, path)
    check(vit.state_dict(), source)
    # Another patch size: the kernel is resized.
    vit = VisionTransformer(ModelConfig(112, 224, patch_size=14, embed_dim=192, depth=12, num_heads=3))
    load_backbone(vit, path)
    kernel = vit.state_dict()["patch_embed.proj.weight"]
    assert kernel.shape == (192, 3, 14, 14) and kernel.abs().sum() > 0
    wide = VisionTransformer(ModelConfig(embed_dim=384, depth=12, num_heads=6))
    with pytest.raises(ValueError, match="does not fit the backbone"):
        load_backbone(wide, path)


@pytest.mark.parametrize("choice", ["mae", "augreg", "deit"])
def test_the_papers_choices_are_timms_and_fit(choice, tmp_path):
    """Built by timm, without memory: names and shapes of all that the paper's ViT-B takes, and a Hub to come from."""
    from timm.models import get_pretrained_cfg

    assert set(PRETRAINED) == {"mae", "augreg", "deit"}
    name = PRETRAINED[choice].removeprefix("timm:")
    known = get_pretrained_cfg(name)
    assert known is not None and known.hf_hub_id
    with torch.device("meta"):
        theirs = timm.create_model(name, pretrained=False, num_classes=0).state_dict()
        ours = VisionTransformer(get_config("ostrack_256_ce")).state_dict()
    tables = ("pos_embed_z", "pos_embed_x")
    assert {key: value.shape for key, value in ours.items() if key not in tables} == {
        key: value.shape for key, value in theirs.items()
    }
    # A small file of the same keys is taken whole.
    small = {key: torch.randn(_narrow(value.shape)) for key, value in theirs.items() if int(_block(key)) < 2}
    save_file(small, tmp_path / "small.safetensors")
    vit = VisionTransformer(ModelConfig(embed_dim=64, depth=2, num_heads=1))
    load_backbone(vit, tmp_path / "small.safetensors")
    check_all(vit.state_dict(), small)


def _block(key):
    return key.split(".")[1] if key.startswith("blocks.") else 0


def _narrow(shape):
    """Of a ViT twelve times as narrow."""
    return [side // 12 if side % 768 == 0 and side > 3 else side for side in shape]


def check_all(state, source):
    for name, value in source.items():
        if name not in ("cls_token", "pos_embed"):
            assert torch.equal(state[name], value), name
    torch.testing.assert_close(state["pos_embed_x"], resize_positions(source["pos_embed"][:, 1:], 16))


def test_files_that_are_no_backbone(tmp_path):
    vit = VisionTransformer(ModelConfig(embed_dim=64, depth=2, num_heads=1))
    before = {key: value.clone() for key, value in vit.state_dict().items()}
    source = {key: torch.randn_like(value) for key, value in before.items()}
    source |= {"pos_embed": torch.randn(1, 197, 64), "cls_token": torch.randn(1, 1, 64)}
    shipped = resources.files("ostrack_fast") / "weights" / "small.safetensors"
    cases = {
        "text.pth": (b"hello", "is text, not a checkpoint"),
        "text.npz": (b"hello", "is damaged or cut off"),
        "tracker.safetensors": (shipped.read_bytes(), "is no ViT in timm's names"),
        "flat.safetensors": (save({**source, "pos_embed": torch.randn(64)}), "flat.safetensors: is damaged"),
        "nan.safetensors": (save({**source, "norm.bias": torch.full((64,), torch.nan)}), "not finite"),
        "narrow.safetensors": (save({**source, "pos_embed": torch.randn(1, 197, 32)}), "does not fit the backbone"),
    }
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(1 << 24, np.uint8))
    cases["bomb.npz"] = (tmp_path / "bomb.npz").read_bytes(), "arrays more than 8 times as large as the file"
    np.savez(tmp_path / "other.npz", a=np.zeros(5))
    cases["other.npz"] = (tmp_path / "other.npz").read_bytes(), "is no ViT in timm's names, or in a .npz DINOv2's"
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=message) as told:
            load_backbone(vit, tmp_path / name)
        assert name in str(told.value)
    with pytest.raises(FileNotFoundError):
        load_backbone(vit, tmp_path / "absent.pth")
    with pytest.raises(ValueError, match=r"timm:nope: timm cannot give these weights \(RuntimeError: Unknown model"):
        load_backbone(vit, "timm:nope")
    assert all(torch.equal(value, before[key]) for key, value in vit.state_dict().items())

"""Weights in and out: our safetensors, the published pickles, and files that are neither."""

import argparse
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch

from ostrack_fast.model import OSTrack, build_ostrack
from ostrack_fast.model.checkpoint import load_pretrained, read_state, save_weights

from .test_ostrack import TINY


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_ostrack(TINY)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def test_safetensors_round_trip_carries_the_configuration(model, tmp_path):
    save_weights(model.state_dict(), TINY, tmp_path / "w.safetensors", recipe="none")
    loaded = OSTrack.from_pretrained(tmp_path / "w.safetensors")
    assert loaded.cfg == TINY and not loaded.training
    assert_same(loaded.state_dict(), model.state_dict())


def test_half_precision_files_load_as_float32(model, tmp_path):
    save_weights(model.state_dict(), TINY, tmp_path / "w.safetensors", torch.float16)
    state = OSTrack.from_pretrained(tmp_path / "w.safetensors").state_dict()
    assert {v.dtype for v in state.values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(
        state["backbone.blocks.0.mlp.fc1.weight"], model.backbone.blocks[0].mlp.fc1.weight, atol=1e-3, rtol=0
    )


class Settings:
    """Stands for the training code's objects, which published checkpoints pickle beside the tensors."""

    def __init__(self):
        self.env = argparse.Namespace(workspace="x")
        self.callback = print


def published(model):
    return {
        "epoch": 300,
        "actor_type": "OSTrackActor",
        "net_type": "OSTrack",
        "net": OrderedDict(model.state_dict()),
        "net_info": None,
        "constructor": Settings(),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]},
        "stats": OrderedDict(train=[Settings()]),
        "settings": Settings(),
    }


def test_published_checkpoint_loads_without_its_code(model, tmp_path):
    path = tmp_path / "OSTrack_ep0300.pth.tar"
    torch.save(published(model), path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert_same(OSTrack.from_pretrained(path, TINY).state_dict(), model.state_dict())


def test_shared_and_strided_tensors_are_read_as_they_were(tmp_path):
    base = torch.arange(24.0)
    saved = {
        "a": base[4:16].view(3, 4).t(),
        "b": base[::5],
        "c": torch.nn.Parameter(torch.ones(2)),
        "d": torch.tensor(7),
    }
    torch.save(saved, tmp_path / "x.pth")
    state, cfg = read_state(tmp_path / "x.pth")
    assert cfg is None
    assert_same(state, {key: value.detach() for key, value in saved.items()})


class Attack:
    """Would create a file when unpickled the ordinary way."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_nothing_in_a_checkpoint_is_executed(model, tmp_path):
    torch.save({**published(model), "settings": Attack(tmp_path / "owned")}, tmp_path / "evil.pth.tar")
    assert_same(OSTrack.from_pretrained(tmp_path / "evil.pth.tar", TINY).state_dict(), model.state_dict())
    assert not (tmp_path / "owned").exists()


def test_a_tensor_that_reaches_outside_its_storage_is_refused(tmp_path):
    torch.save({"net": {"a": torch.arange(4.0)}}, tmp_path / "good.pth")
    with zipfile.ZipFile(tmp_path / "good.pth") as good, zipfile.ZipFile(tmp_path / "bad.pth", "w") as bad:
        for name in good.namelist():
            data = good.read(name)
            bad.writestr(name, data[:8] if name.endswith("/data/0") else data)
    with pytest.raises(ValueError, match="outside its storage"):
        read_state(tmp_path / "bad.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "neither safetensors nor"), (b"PK\x03\x04 cut", "neither safetensors nor"), (b"text", "neither")],
)
def test_files_of_another_kind_are_named(tmp_path, content, message):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_state(tmp_path / "x.pth")


def test_cut_off_files_are_named(model, tmp_path):
    save_weights(model.state_dict(), TINY, tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut off"):
        read_state(tmp_path / "cut.safetensors")


def test_a_file_that_does_not_fit_says_where(model, tmp_path):
    state = model.state_dict()
    state["extra"] = torch.zeros(1)
    del state["backbone.norm.bias"]
    state["box_head.conv5_ctr.bias"] = torch.zeros(3)
    save_weights(state, TINY, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"missing 1 \(backbone.norm.bias\).*unexpected 1 \(extra\).*wrong shape 1"):
        load_pretrained(tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="pass cfg="):
        torch.save({"net": {"x": torch.zeros(1)}}, tmp_path / "y.pth")
        load_pretrained(tmp_path / "y.pth")


def test_missing_weights_list_what_ships():
    with pytest.raises(FileNotFoundError, match="neither a file nor a name that ships"):
        OSTrack.from_pretrained("no_such_weights")

"""Weights in and out: our safetensors, the published pickles, and files that are neither."""

import argparse
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ostrack_fast.config import PUBLISHED_NAMES, get_config
from ostrack_fast.model import OSTrack, build_ostrack
from ostrack_fast.model.checkpoint import CheckpointError, load_pretrained, read_state, save_published, save_weights

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


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (bytes(5000), "nothing but zeros"),
        (b"PK\x03\x04 cut", "cut off"),
        (b"text and more text", "is text"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b'{"error": "not found"}', "is JSON text"),
        (b"\x93NUMPY\x01\x00", "NumPy"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00}\x94.", "is a pickle, but no checkpoint"),
        (b"sys_info".ljust(257, b"\0") + b"ustar\x0000", "before 0.2"),
        (b"OSTrack/".ljust(257, b"\0") + b"ustar\x0000", "is a tar archive"),
        (b"\xffQ" * 100, "of no known format"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, content, message, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as raised:
        read_state(path)
    assert str(path) in str(raised.value) and "torch.load" not in str(raised.value)


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


def test_a_broken_link_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ostrack_fast.model.hub._from_hub", lambda name: pytest.fail(f"asked the Hub for {name}"))
    (tmp_path / "runs").mkdir()
    for name, target in (("runs/gone", "absent"), ("runs/circle", "circle")):
        os.symlink(target, name)
        with pytest.raises(OSError, match=r"No such file|symbolic links"):
            OSTrack.from_pretrained(name)


def test_missing_weights_list_what_ships():
    for name in ("no_such_weights", "folder/no_such.pth.tar"):
        with pytest.raises(FileNotFoundError, match=r"neither a file, nor a folder, nor a name that ships \(small"):
            OSTrack.from_pretrained(name)


def carried(state, prefix):
    return {prefix + name: value for name, value in state.items()}


LAYOUTS = {
    "module": lambda state: {"net": carried(state, "module.")},
    "module twice": lambda state: {"net": carried(state, "module.module.")},
    "compiled": lambda state: {"net": carried(state, "_orig_mod.")},
    "compiled parts": lambda state: {
        "net": {k.replace("backbone.", "backbone._orig_mod."): v for k, v in state.items()}
    },
    "net.": lambda state: carried(state, "net."),
    "model.": lambda state: {"state_dict": carried(state, "model.")},
    "all of them": lambda state: carried(state, "module.net._orig_mod.model."),
    "top level": lambda state: dict(state),
    "net_ema": lambda state: {"net_ema": dict(state)},
    "model_ema": lambda state: {"model_ema": carried(state, "module."), "epoch": 3},
    "ema.module": lambda state: {"ema": {"module": dict(state), "decay": 0.9}},
    "averaged": lambda state: {"model_ema": {"n_averaged": torch.tensor(3), **carried(state, "module.")}},
    "both": lambda state: {"net_ema": {k: v * 0 for k, v in state.items()}, "net": dict(state)},
    "both by prefix": lambda state: {
        **carried({k: v * 0 for k, v in state.items()}, "ema."),
        **carried(state, "model."),
    },
    "deeper": lambda state: {"checkpoint": {"weights": {"model": dict(state)}}},
    "unknown key": lambda state: {"tracker": dict(state)},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(model, tmp_path, layout, legacy):
    content = LAYOUTS[layout](model.state_dict())
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    assert_same(OSTrack.from_pretrained(tmp_path / "x.pth", TINY).state_dict(), model.state_dict())


@pytest.mark.parametrize("beside", [False, True])
def test_two_networks_of_the_same_claim_are_refused(model, tmp_path, beside):
    """None of them is taken at random: a checkpoint of a teacher and its student, each as trainers store them."""
    state = model.state_dict()
    other = {k: v * 0 for k, v in state.items()}
    both = {"pupil": state, "teacher": other} if beside else {**carried(state, "pupil."), **carried(other, "teacher.")}
    torch.save(both, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"several networks \(pupil, teacher\): save the one you want alone"):
        OSTrack.from_pretrained(tmp_path / "x.pth", TINY)
    torch.save({"one": dict(state), "two": dict(state)}, tmp_path / "x.pth")
    assert_same(OSTrack.from_pretrained(tmp_path / "x.pth", TINY).state_dict(), state)


def test_a_whole_pickled_network(model, tmp_path):
    torch.save(model, tmp_path / "x.pth")
    assert_same(OSTrack.from_pretrained(tmp_path / "x.pth", TINY).state_dict(), model.state_dict())


def test_what_no_inference_reads_may_be_missing(model, tmp_path):
    state = {k: v for k, v in model.state_dict().items() if "num_batches" not in k and "cls_token" not in k}
    del state["backbone.pos_embed"]
    torch.save({"net": state}, tmp_path / "x.pth")
    loaded = OSTrack.from_pretrained(tmp_path / "x.pth", TINY)
    assert_same({k: loaded.state_dict()[k] for k in state}, state)
    del state["box_head.conv1_ctr.1.running_mean"]
    torch.save({"net": state}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"missing 1 \(box_head.conv1_ctr.1.running_mean"):
        OSTrack.from_pretrained(tmp_path / "x.pth", TINY)


def test_constant_tables_of_forks_are_added(model, tmp_path):
    state = model.state_dict()
    tables = {"temporal_pos_embed_z": (1, 16, 64), "search_segment_pos_embed": (1, 1, 64)}
    extra = {f"backbone.{name}": torch.randn(shape) for name, shape in tables.items()}
    torch.save({"net": {**state, **extra}}, tmp_path / "x.pth")
    loaded = OSTrack.from_pretrained(tmp_path / "x.pth", TINY).backbone
    for table, name in (("pos_embed_z", "temporal_pos_embed_z"), ("pos_embed_x", "search_segment_pos_embed")):
        expected = state[f"backbone.{table}"] + extra[f"backbone.{name}"]
        assert torch.equal(getattr(loaded, table), expected)
    torch.save({"net": {**state, "backbone.temporal_pos_embed_z": torch.zeros(1, 9, 64)}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="wrong shape 1"):
        OSTrack.from_pretrained(tmp_path / "x.pth", TINY)


class FromAMethod:
    @classmethod
    def make(cls, number):
        return cls()

    def __reduce__(self):
        return (FromAMethod.make, (1,))


class Mapping(dict):
    """A foreign kind of dictionary, such as EasyDict."""


BYSTANDERS = {
    "class method": lambda: FromAMethod(),
    "complex": lambda: torch.ones(2, dtype=torch.complex64),
    "uint16": lambda: torch.ones(2).to(torch.uint16),
    "float8": lambda: torch.ones(2).to(torch.float8_e4m3fn),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "meta": lambda: torch.ones(2, device="meta"),
    "function": lambda: torch.empty,
    "set": lambda: {1, "a", (2, 3)},
    "tuple keys": lambda: {(1, 2): 3, frozenset([4]): 5},
    "mapping": lambda: Mapping(a=Mapping(b=1)),
    "generator": lambda: torch.get_rng_state(),
    "numbers": lambda: [2**70, -1, 1e300, float("nan"), None, True, b"x", bytearray(b"y"), "\ud800"],
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", BYSTANDERS)
def test_no_bystander_spoils_a_good_network(model, tmp_path, name, legacy):
    content = {"before": BYSTANDERS[name](), **published(model), "stats": [BYSTANDERS[name]()]}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    assert_same(OSTrack.from_pretrained(tmp_path / "x.pth", TINY).state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.to(torch.float8_e4m3fn), "float8_e4m3fn, which is not supported"),
        (lambda v: v.to(torch.complex64), "Complex"),
        (lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8), "_rebuild_qtensor"),
        (lambda v: v.to_sparse(), "_rebuild_sparse_tensor"),
        (lambda v: v.to(torch.int32), "wrong type 1"),
        (lambda v: v > 0, "wrong type 1"),
        (lambda v: v[:1].clone().expand_as(v), "repeats its numbers"),
        (lambda v: v * float("nan"), r"holds \d+ numbers that are not finite"),
    ],
)
def test_weights_of_a_wrong_kind_are_named(model, tmp_path, change, message):
    name = "backbone.blocks.1.attn.proj.weight"
    state = model.state_dict()
    torch.save({"net": {**state, name: change(state[name])}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=message) as raised:
        OSTrack.from_pretrained(tmp_path / "x.pth", TINY)
    assert name in str(raised.value) and str(tmp_path) in str(raised.value)


def rewritten(path, target, change, compression=zipfile.ZIP_STORED):
    """Copies a zip file; `change(name, data)` gives the new bytes of a record."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def test_byte_order(model, tmp_path):
    state = {"net": {**model.state_dict(), "backbone.norm.bias": model.backbone.norm.bias.detach().double()}}
    torch.save(state, tmp_path / "little.pth")

    def swapped(name, data):
        if name.endswith("/byteorder"):
            return b"big"
        if "/data/" not in name:
            return data
        size = 8 if len(data) == 512 else 4  # the one table in float64; the counters are 0
        return np.frombuffer(data, f"<u{size}").byteswap().tobytes()

    big = rewritten(tmp_path / "little.pth", tmp_path / "big.pth", swapped)
    expected = torch.load(big, weights_only=True)["net"]
    assert torch.equal(expected["backbone.norm.bias"], state["net"]["backbone.norm.bias"])
    assert_same(OSTrack.from_pretrained(big, TINY).state_dict(), model.state_dict())
    odd = rewritten(big, tmp_path / "odd.pth", lambda n, d: b"middle" if n.endswith("byteorder") else d)
    with pytest.raises(CheckpointError, match="neither little nor big"):
        read_state(odd)


def test_compressed_and_damaged_records(model, tmp_path):
    torch.save({"net": model.state_dict()}, tmp_path / "x.pth")
    small = rewritten(tmp_path / "x.pth", tmp_path / "small.pth", lambda n, d: d, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed"):
        read_state(small)
    data = bytearray((tmp_path / "x.pth").read_bytes())
    weight = model.backbone.blocks[2].mlp.fc1.weight.detach().numpy().tobytes()
    data[data.index(weight) + 100] ^= 1
    (tmp_path / "flipped.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match="CRC"):
        read_state(tmp_path / "flipped.pth")
    torch.save({"net": model.state_dict()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("x.pth", "old.pth"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / "cut.pth").write_bytes(whole[: len(whole) * 9 // 10])
        with pytest.raises(CheckpointError, match="cut off"):
            read_state(tmp_path / "cut.pth")


def test_storages_are_read_lazily_and_once(tmp_path):
    """A small tensor of a large storage is no reason to hold the storage; a storage shared 2000 times is refused."""
    large = torch.zeros(3_000_000)
    torch.save({"net": {"a": large[:10], "b": large[-5:]}}, tmp_path / "x.pth")
    state, _ = read_state(tmp_path / "x.pth")
    assert state["a"].untyped_storage().nbytes() == 40 and state["b"].untyped_storage().nbytes() == 20
    torch.save({"net": {"a": large.view(3, -1)[:, :1]}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"after \.clone"):
        read_state(tmp_path / "x.pth")
    torch.save({"net": {str(i): large for i in range(5)}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"after \.clone"):
        read_state(tmp_path / "x.pth")


def test_memory_stays_within_twice_what_is_needed(tmp_path):
    """A child process measures its peak while it loads 24 MB of weights beside 200 MB of an optimizer's."""
    cfg = replace(TINY, embed_dim=256, depth=8)
    model = build_ostrack(cfg)
    needed = sum(v.nbytes for v in model.state_dict().values())
    optimizer = {"state": {i: {"exp_avg": torch.zeros(25_000_000)} for i in range(2)}}
    torch.save({"optimizer": optimizer, "net": model.state_dict()}, tmp_path / "x.pth")
    code = """
import resource, sys
from ostrack_fast.config import ModelConfig
from ostrack_fast.model import OSTrack
from ostrack_fast.model.checkpoint import load_pretrained
cfg = ModelConfig.from_dict(json.loads(sys.argv[2]))
load_pretrained("small")
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
kept = OSTrack.from_pretrained(sys.argv[1], cfg)
print(peak() - before)
"""
    arguments = [sys.executable, "-c", "import json" + code, str(tmp_path / "x.pth"), json.dumps(cfg.to_dict())]
    grown = int(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)
    assert grown < 2 * needed + (16 << 20), (grown, needed)


class PublishedSettings:
    """As the published trainer's: a plain object, some of whose attributes say what was trained."""

    def __init__(self, name, script="ostrack", search=4.0):
        self.script_name, self.config_name = script, name
        self.project_path = f"train/{script}/{name}"
        self.search_area_factor = {"template": 2.0, "search": search}
        self.env = argparse.Namespace(workspace_dir="x")


@pytest.fixture(scope="module")
def base():
    """A state dict of the sizes of the published networks, of zeros."""
    with torch.device("meta"):
        shapes = {name: OSTrack.from_preset(name).state_dict() for name in ("ostrack_256_ce", "ostrack_384_ce")}
    return {name: {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in s.items()} for name, s in shapes.items()}


@pytest.mark.slow
def test_the_configuration_is_what_the_file_says(base, tmp_path):
    """Not the folder it lies in: the name of the yaml file in the trainer's settings."""
    folder = tmp_path / "vitb_256_mae_ce_32x4_ep300"
    folder.mkdir()
    path = folder / "OSTrack_ep0300.pth.tar"
    torch.save({"net": base["ostrack_256_ce"], "settings": PublishedSettings("vitb_256_mae_32x4_ep300")}, path)
    assert load_pretrained(path)[0] == get_config("ostrack_256")
    only_path = PublishedSettings("vitb_256_mae_32x4_ep300")
    del only_path.config_name
    torch.save({"net": base["ostrack_256_ce"], "settings": only_path}, path)
    assert load_pretrained(path)[0] == get_config("ostrack_256")
    torch.save({"net": base["ostrack_256_ce"]}, path)
    assert load_pretrained(path)[0] == get_config("ostrack_256_ce")
    torch.save(
        {"net": base["ostrack_384_ce"], "settings": PublishedSettings("vitb_384_mae_ce_32x4_ep300", search=5.0)}, path
    )
    assert load_pretrained(path)[0] == get_config("ostrack_384_ce")


@pytest.mark.slow
def test_a_forks_crops_and_names_are_no_reason_to_guess(base, tmp_path):
    path = tmp_path / "x.pth"
    for settings, message in (
        (PublishedSettings("zoom", search=5.0), "trained as 'ostrack/zoom'.*--config"),
        (
            PublishedSettings("vitb_256_mae_ce_32x4_ep300", search=5.0),
            "crops of the search 5.0 times.*usually takes 4.0",
        ),
        (PublishedSettings("vitb_256_mae_ce_32x4_ep300", script="vipt"), "trained as 'vipt/vitb"),
    ):
        torch.save({"net": base["ostrack_256_ce"], "settings": settings}, path)
        with pytest.raises(CheckpointError, match=message):
            load_pretrained(path)
        assert load_pretrained(path, "ostrack_256")[0] == get_config("ostrack_256")


def test_other_trackers_are_named(model, tmp_path):
    torch.save({"net": {f"encoder.blocks.{i}.norm.weight": torch.zeros(1) for i in range(9)}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"not an OSTrack checkpoint.*9 tensors have names like encoder.blocks.0"):
        load_pretrained(tmp_path / "x.pth", TINY)
    torch.save({"net": model.state_dict()}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"width 64, template tokens 16, .*blocks 4,.* fit no preset: pass cfg="):
        load_pretrained(tmp_path / "x.pth")
    torch.save({"epoch": 3, "optimizer": [1, 2]}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="at its top level are epoch, optimizer"):
        load_pretrained(tmp_path / "x.pth", TINY)
    torch.save(torch.zeros(3), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="single tensor"):
        load_pretrained(tmp_path / "x.pth", TINY)
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="TorchScript"):
        load_pretrained(tmp_path / "x.pth", TINY)


@pytest.mark.parametrize(
    "config",
    [
        json.dumps({**TINY.to_dict(), "depth": 10**9}),
        json.dumps({**TINY.to_dict(), "search_factor": 0}),
        json.dumps({**TINY.to_dict(), "depth": None}),
        "{" * 5,
        '{"a":' * 100_000,
        json.dumps({**TINY.to_dict(), "wings": 2}),
        '{"depth": ' + "9" * 5000 + "}",
    ],
)
def test_impossible_configurations_end_at_once(tmp_path, config):
    save_file({"backbone.pos_embed_z": torch.zeros(1)}, tmp_path / "x.safetensors", {"config": config})
    with pytest.raises(CheckpointError, match="its configuration cannot be used") as raised:
        load_pretrained(tmp_path / "x.safetensors")
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("save", [save_weights, save_published])
def test_the_same_weights_give_the_same_bytes(model, tmp_path, save):
    suffix = ".safetensors" if save is save_weights else ".pth.tar"
    notes = {"recipe": "none", "licence": "free", **{f"note{i}": str(i) for i in range(20)}}
    save(model.state_dict(), TINY, tmp_path / f"a{suffix}", **notes)
    shuffled = dict(reversed([(k, v.clone()) for k, v in model.state_dict().items()]))
    save(shuffled, TINY, tmp_path / f"other_name{suffix}", **dict(reversed(notes.items())))
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"other_name{suffix}").read_bytes()
    assert_same(OSTrack.from_pretrained(tmp_path / f"a{suffix}").state_dict(), model.state_dict())


def test_safetensors_are_those_of_the_library(model, tmp_path):
    save_weights(model.state_dict(), TINY, tmp_path / "w.safetensors", torch.bfloat16, recipe="é")
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata()["recipe"] == "é" and json.loads(file.metadata()["config"]) == TINY.to_dict()
    loaded = load_file(tmp_path / "w.safetensors")
    expected = {k: v.bfloat16() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    assert_same(loaded, expected)
    with pytest.raises(ValueError, match=r"x is of the type torch\.complex64"):
        save_weights({"x": torch.zeros(1, dtype=torch.complex64)}, TINY, tmp_path / "x.safetensors")


def test_the_published_layout_is_plain(model, tmp_path):
    """torch.load reads it with nothing but tensors and plain types allowed, as the published tracker asks for it."""
    save_published(model.state_dict(), TINY, tmp_path / "x.pth.tar", recipe="none")
    content = torch.load(tmp_path / "x.pth.tar", weights_only=True)
    assert content["net_type"] == "OSTrack" and content["settings"]["recipe"] == "none"
    assert_same(content["net"], model.state_dict())
    cfg = get_config("ostrack_256_ce")
    save_published({}, cfg, tmp_path / "y.pth.tar")
    settings = torch.load(tmp_path / "y.pth.tar", weights_only=True)["settings"]
    assert settings["config_name"] in PUBLISHED_NAMES and settings["preset"] == "ostrack_256_ce"

"""The default dtype and device that a program has set change nothing: in no line, and through no entry point."""

import ast
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from ostrack_fast import MultiTracker, OSTrack, Tracker, accelerate
from ostrack_fast.config import ModelConfig
from ostrack_fast.model.checkpoint import load_pretrained, save_weights
from ostrack_fast.training.losses import LossConfig
from ostrack_fast.training.pretrained import mark_template
from ostrack_fast.training.trainer import Trainer

from .ambient import default_dtype
from .test_architecture import MODULES, TREES
from .training.conftest import config, square
from .training.tiny_run import same

__all__ = ["config", "square"]

TINY = ModelConfig(
    template_size=32, search_size=64, embed_dim=32, depth=2, num_heads=2, head_channels=16,
    ce_layers=(1,), ce_keep_ratio=(0.7,),
)  # fmt: skip

FACTORIES = {
    "arange", "as_tensor", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "normal", "ones", "rand",
    "randint", "randn", "randperm", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros",
}  # fmt: skip
# The parameters of a module that a user builds are made as those of PyTorch's modules are.
AS_MODULES_ARE = {
    ("ostrack_fast.model.vit", "zeros"),
    ("ostrack_fast.baselines.embeddings", "empty"),
    ("ostrack_fast.baselines.embeddings", "zeros"),
    ("ostrack_fast.baselines.stark", "zeros"),
    ("ostrack_fast.baselines.swintrack", "zeros"),
}


def makes(call):
    """The name of the function of torch that makes this tensor, if it is one."""
    function = call.func
    of_torch = isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name)
    return function.attr if of_torch and function.value.id == "torch" and function.attr in FACTORIES else None


def ambient(tree):
    """(function, line) of every tensor that takes its dtype or its device from what the program has set."""
    for node in ast.walk(tree):
        named = {keyword.arg for keyword in node.keywords} if isinstance(node, ast.Call) else set()
        if isinstance(node, ast.Call) and makes(node) and not {"dtype", "device"} <= named:
            yield makes(node), node.lineno


def test_every_tensor_is_made_with_a_dtype_and_a_device():
    assert list(ambient(ast.parse("torch.zeros(3, dtype=d)\ntorch.ones(3, dtype=d, device=c)"))) == [("zeros", 1)]
    # The benchmarks are programs of their own, and set nothing.
    modules = {name for name in MODULES if not name.startswith("ostrack_fast.bench")}
    found = {(module, *where) for module in modules for where in ambient(TREES[module])}
    assert not {each for each in found if each[:2] not in AS_MODULES_ARE}
    assert {each[:2] for each in found} == AS_MODULES_ARE, "an exception that is not needed"


AMBIENT = {
    "meta": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same weights in every format that is read."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    state = OSTrack(TINY).state_dict()
    save_weights(state, TINY, folder / "tiny.safetensors")
    # What may be missing is made.
    published = {name: value for name, value in state.items() if "cls_token" not in name and "tracked" not in name}
    torch.save({"net": published}, folder / "tiny.pth.tar")
    torch.save({"net": published}, folder / "legacy.pth.tar", _use_new_zipfile_serialization=False)
    return folder


def frames(count):
    noise = np.random.default_rng(0)
    return [noise.integers(0, 256, (60, 80, 3), dtype=np.uint8) for _ in range(count)]


def track_one(files, _):
    tracker = Tracker(OSTrack.from_pretrained(files / "tiny.safetensors"), "cpu", "float32")
    first, *others = frames(3)
    tracker.initialize(first, (20, 20, 24, 16))
    return [tracker.track(frame) for frame in others]


def track_many(files, _):
    tracker = MultiTracker(files / "tiny.safetensors", "cpu", "float32")
    first, *others = frames(3)
    for box in ((20, 20, 24, 16), (5, 5, 30, 30), (40, 20, 24, 16)):
        tracker.add(first, box)
    return [tracker.track(frame) for frame in others]


def load(name):
    return lambda files, _: load_pretrained(files / name, TINY)[1]


def accelerate_and_compare(files, _):
    network = accelerate(OSTrack.from_pretrained(files / "tiny.safetensors"), device="cpu", dtype="float32")
    images = [torch.full((1, 3, size, size), 0.5, dtype=torch.float32, device="cpu") for size in (32, 64)]
    return {name: network(*images)[name] for name in ("score_map", "pred_boxes")}


def save_and_load(files, out):
    config, state = load_pretrained(files / "tiny.safetensors")
    save_weights(state, config, out / "again.safetensors")
    return (out / "again.safetensors").read_bytes()


def mark(files, _):
    model = OSTrack.from_pretrained(files / "tiny.safetensors")
    mark_template(model.backbone, 0.5)
    return model.state_dict()


ENTRIES = {
    "Tracker": track_one,
    "MultiTracker": track_many,
    "load safetensors": load("tiny.safetensors"),
    "load published": load("tiny.pth.tar"),
    "load legacy": load("legacy.pth.tar"),
    "accelerate": accelerate_and_compare,
    "save_weights": save_and_load,
    "mark_template": mark,
}


def alike(one, other):
    return same(dict(one), dict(other)) if isinstance(one, dict) else one == other


@pytest.mark.parametrize("around", AMBIENT)
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_point(files, tmp_path, entry, around):
    expected = ENTRIES[entry](files, tmp_path)
    with AMBIENT[around]():
        assert alike(ENTRIES[entry](files, tmp_path), expected)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("around", AMBIENT)
def test_training(config, tmp_path, around, workers):
    config = replace(config, epochs=0.5, workers=workers, loss=LossConfig(attention=0.1))

    def trained(name, around):
        with around():
            trainer = Trainer(replace(config, output=str(tmp_path / name)))
            trainer.run(progress=False)
        return trainer.model.state_dict()

    assert same(dict(trained("around", AMBIENT[around])), dict(trained("plain", nullcontext)))

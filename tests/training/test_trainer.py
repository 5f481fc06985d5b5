"""The loop: exact resume, atomic checkpoints, freezing, and the yaml that describes a run."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from ostrack_fast.model import OSTrack
from ostrack_fast.model.checkpoint import save_weights
from ostrack_fast.ops import native
from ostrack_fast.ops.threads import gnu_parallel
from ostrack_fast.training.building import build_dataset, build_model
from ostrack_fast.training.checkpoint import CHECKPOINT
from ostrack_fast.training.config import OptimConfig, read_train_config
from ostrack_fast.training.dataset import make_loader
from ostrack_fast.training.losses import LossConfig
from ostrack_fast.training.trainer import BAD_BATCH, WEIGHTS, Trainer

from .tiny_run import MODEL, run, same


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_stopped_and_resumed_run_equals_one_that_was_not(config, tmp_path, precision):
    config = replace(config, precision=precision)
    whole = run(config, tmp_path / "whole")
    stopped = run(config, tmp_path / "parts", stop_after=20)
    assert stopped.seen == 20
    assert not same(whole.model.state_dict(), stopped.model.state_dict())
    resumed = run(config, tmp_path / "parts")

    assert whole.seen == resumed.seen == 48
    assert same(whole.model.state_dict(), resumed.model.state_dict())
    assert same(whole.optimizer.state_dict(), resumed.optimizer.state_dict())
    assert same(whole.average.state, resumed.average.state)
    assert same(whole.scaler.state_dict(), resumed.scaler.state_dict())
    exported = [OSTrack.from_pretrained(tmp_path / name / WEIGHTS).state_dict() for name in ("whole", "parts")]
    assert same(dict(exported[0]), dict(exported[1]))


def test_training_learns_and_exports_weights_that_load(config, tmp_path):
    config = replace(config, epochs=20, optim=OptimConfig(lr=3e-3, backbone_lr=1.0, grad_clip=1.0, drop_epoch=None))
    config = replace(config, model=replace(MODEL, drop_path=0.0))
    trainer = Trainer(replace(config, output=str(tmp_path / "run")))
    losses = []
    plain = trainer.step
    trainer.step = lambda batch: losses.append(plain(batch)) or losses[-1]
    trainer.run(progress=False)
    first, last = (np.mean([terms["loss"] for terms in part]) for part in (losses[:10], losses[-10:]))
    assert last < 0.5 * first
    loaded = OSTrack.from_pretrained(tmp_path / "run" / WEIGHTS)
    assert same(dict(loaded.state_dict()), dict(trainer.model.state_dict()))


@pytest.mark.skipif(gnu_parallel() == 0, reason="PyTorch's OpenMP runtime here has no GOMP_parallel")
def test_kernels_of_a_step_run_on_pytorchs_threads(config, tmp_path, monkeypatch):
    trainer, seen, call = Trainer(replace(config, output=str(tmp_path / "run"))), set(), native.call

    def watched(*arguments):
        in_use = native._C.cpu_use_openmp(0)
        native._C.cpu_use_openmp(in_use)
        seen.add(in_use)
        call(*arguments)

    monkeypatch.setattr(native, "call", watched)
    batch = next(iter(make_loader(build_dataset(config), config.batch_size)))
    seen.clear()
    trainer.step(batch)
    assert seen == {gnu_parallel()} and native._C.cpu_use_openmp(0) == 0


def test_frozen_blocks_stay_and_the_others_move(config, square, tmp_path):
    start = build_model(config)
    save_weights(start.state_dict(), MODEL, tmp_path / "start.safetensors")
    config = replace(config, weights=str(tmp_path / "start.safetensors"), optim=replace(config.optim, freeze_blocks=1))
    after = run(replace(config, epochs=0.5), tmp_path / "frozen").model.state_dict()
    before = start.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(
        name.startswith(("backbone.blocks.0.", "backbone.patch_embed", "backbone.pos_embed")) for name in moved
    )
    assert "backbone.blocks.1.attn.qkv.weight" in moved and "box_head.conv1_ctr.0.weight" in moved


def test_fine_tuning_at_another_size_resizes_the_positions(config, tmp_path):
    save_weights(build_model(config).state_dict(), MODEL, tmp_path / "start.safetensors")
    larger = replace(MODEL, template_size=48, search_size=96)
    model = build_model(replace(config, model=larger, weights=str(tmp_path / "start.safetensors")))
    assert model.backbone.pos_embed_z.shape == (1, 9, 32) and model.backbone.pos_embed_x.shape == (1, 36, 32)


def test_a_checkpoint_of_another_model_is_refused(config, tmp_path):
    run(replace(config, epochs=0.5), tmp_path / "run")
    other = replace(config, model=replace(MODEL, depth=4), output=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="another model"):
        Trainer(other).run(progress=False)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(config, tmp_path):
    run(replace(config, epochs=0.5), tmp_path / "run")
    good = (tmp_path / "run" / CHECKPOINT).read_bytes()
    trainer = Trainer(replace(config, output=str(tmp_path / "run")))
    plain = trainer.model.forward
    trainer.model.forward = lambda *args, **kw: {
        k: v * float("nan") if k == "size_map" else v for k, v in plain(*args, **kw).items()
    }
    with pytest.raises(FloatingPointError, match=r"loss became nan after 12 .*4 pairs from number 12 on.*bad_batch"):
        trainer.run(progress=False)
    check_bad_batch(trainer)
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == good
    saved = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, saved["model"][name]), f"{name} was updated with a gradient that is not finite"
    moments = saved["optimizer"]["state"]
    for number, state in trainer.optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, moments[number][name]) for name, value in state.items())


def check_bad_batch(trainer):
    """The saved batch is that of the pairs it names."""
    with safe_open(trainer.output / BAD_BATCH, "pt") as file:
        saved, facts = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    assert facts == {"first_pair": str(trainer.seen), "seed": "0"}
    expected = next(iter(make_loader(build_dataset(trainer.cfg), trainer.batch, 0, trainer.seen)))
    assert same(saved, expected)


def test_a_gradient_that_is_not_finite_stops_the_run_too(config, tmp_path):
    trainer = Trainer(replace(config, output=str(tmp_path / "run"), precision="float32"))
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.model.get_parameter("box_head.conv5_ctr.bias").register_hook(lambda gradient: gradient / 0)
    with pytest.raises(FloatingPointError, match=r"the gradient's norm became (inf|nan) after 0 pairs"):
        trainer.run(progress=False)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())
    check_bad_batch(trainer)


def test_nothing_waits_for_the_device_before_the_optimizer_is_launched(config, tmp_path, monkeypatch):
    """Reading a value out of a tensor makes the host wait, and the GPU then has nothing queued behind it."""
    reads = []

    def recorded(name, original):
        def run(tensor, *arguments, **named):
            caller = sys._getframe(1).f_code.co_filename
            # On a CPU the ops look for NaN in their inputs, and stochastic depth for what it leaves out; not on a GPU.
            on_cpu = Path(caller).parent.name == "ops" or Path(caller).name == "vit.py"
            if not on_cpu and "ostrack_fast" in caller:
                reads.append(name)
            return original(tensor, *arguments, **named)

        return run

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, recorded(name, getattr(torch.Tensor, name)))
    trainer = Trainer(replace(config, output=str(tmp_path / "run")))
    batch = next(iter(make_loader(build_dataset(trainer.cfg), trainer.cfg.batch_size, 0, 0)))
    launched = trainer.optimizer.step
    reads.clear()
    before = []
    trainer.optimizer.step = lambda: (before.extend(reads), launched())
    trainer.step(batch)
    assert before == [] and reads == ["tolist"]


def test_the_log_has_a_line_for_every_fifty_steps(config, tmp_path):
    run(replace(config, epochs=10), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["pairs"] for line in lines] == [200]
    assert {"loss", "giou", "l1", "focal", "iou", "keep", "rate"} <= lines[0].keys()


def test_the_published_recipe_is_the_default():
    optim, loss = OptimConfig(), LossConfig()
    assert (optim.lr, optim.lr * optim.backbone_lr, optim.weight_decay, optim.grad_clip) == (4e-4, 4e-5, 1e-4, 0.1)
    assert (loss.giou, loss.l1, loss.focal, loss.box_cells) == (2, 5, 1, "predicted")


def test_yaml(tmp_path, square):
    path = tmp_path / "train.yaml"
    path.write_text(
        f"""
model: {{preset: ostrack_256_ce, depth: 4, ce_layers: [1], ce_keep_ratio: [0.5], search_size: 192}}
output: out
data_root: {square}
data: {{videos: {{path: ., share: 2}}}}
augment: robust
loss: {{attention: 0.5}}
optim: {{lr: 1.0e-3}}
epochs: 2
"""
    )
    config = read_train_config(path)
    assert config.model.depth == 4 and config.model.ce_keep_ratio == (0.5,)
    assert config.crops.search_size == 192 and config.crops.template_size == 128
    assert config.output == str(tmp_path / "out") and config.optim.lr == 1e-3 and config.augment.noise > 0
    assert len(build_dataset(config)) == 120_000


def test_the_command_as_a_user_runs_it(tmp_path, square):
    path = tmp_path / "train.yaml"
    path.write_text(
        f"""
model: {{preset: small, template_size: 32, search_size: 64, embed_dim: 32, depth: 3, num_heads: 1, head_channels: 16,
        ce_layers: [1], ce_keep_ratio: [0.7]}}
output: run
data_root: {square}
data: {{videos: {{path: .}}}}
epochs: 2
pairs_per_epoch: 8
batch_size: 4
workers: 1
"""
    )
    command = [sys.executable, "-m", "ostrack_fast.cli", "train", str(path), "--device", "cpu"]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert "done: 16 of 16 pairs" in " ".join(first.stdout.split())
    assert OSTrack.from_pretrained(tmp_path / "run" / WEIGHTS).cfg.depth == 3
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "done: 16 of 16 pairs" in " ".join(again.stdout.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: small", "lacks the setting 'data'"),
        ("[]", "not a mapping"),
        ("{model: small, data: {}, output: x, speed: 3}", "unknown settings \\['speed'\\]"),
        ("{model: small, data: {}, output: x, optim: {rl: 3}}", "optim: unknown settings \\['rl'\\]"),
        ("{model: tiny, data: {}, output: x}", "unknown preset 'tiny'"),
        ("{model: small, data: {}, output: x, precision: half}", "precision"),
        ("{model: small, data: {}, output: x, optim: {freeze_blocks: 3}}", "freeze_blocks"),
    ],
)
def test_yaml_mistakes_are_named(tmp_path, text, message):
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_train_config(tmp_path / "t.yaml")


def test_data_section_mistakes_are_named(config):
    with pytest.raises(ValueError, match="unknown sources \\['vidoes'\\]"):
        build_dataset(replace(config, data={"vidoes": {}}))
    with pytest.raises(ValueError, match="'path' is missing"):
        build_dataset(replace(config, data={"videos": {}}))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        build_dataset(replace(config, data={"videos": {"path": "nowhere"}}))

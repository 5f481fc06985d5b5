"""Fine-tuning on a folder of videos: what is kept out, what is kept, and LoRA."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from ostrack_fast.model import OSTrack
from ostrack_fast.model.checkpoint import save_weights
from ostrack_fast.training import finetune as module
from ostrack_fast.training.building import build_model
from ostrack_fast.training.finetune import REPORT, TUNED, FinetuneConfig, Gain, finetune
from ostrack_fast.training.lora import adapt, merged
from ostrack_fast.training.trainer import WEIGHTS

from .tiny_run import MODEL, run, same

CPU = torch.device("cpu")


@pytest.fixture
def folder(square, tmp_path):
    """Six videos, and the file of an untrained model."""
    for number in range(6):
        shutil.copytree(square / "square", tmp_path / "videos" / f"v{number}")
    torch.manual_seed(0)
    save_weights(OSTrack(MODEL).state_dict(), MODEL, tmp_path / "start.safetensors")
    return tmp_path


def settings(folder, **changes):
    return FinetuneConfig(**{
        "data": str(folder / "videos"), "output": str(folder / "out"), "weights": str(folder / "start.safetensors"),
        "rounds": 3, "pairs": 8, "batch_size": 4, "workers": 0, **changes,
    })  # fmt: skip


class Judge:
    """In place of `Validation`: the IoU of the start and of each round as given."""

    def __init__(self, ious, cfg):
        self.ious, self.cfg, self.seen = iter(ious), cfg, []

    def __call__(self, model, stop):
        assert not model.training
        self.seen.append(dict(model.state_dict()))
        return {"loss": 0.0, "iou": next(self.ious)}


@pytest.mark.parametrize(
    ("ious", "kept", "rounds"),
    [([0.2, 0.5, 0.4, 0.3], 1, 3), ([0.5, 0.4, 0.3, 0.2], 0, 2)],
    ids=["the best round is kept", "the start is kept where nothing gains"],
)
def test_rounds(folder, monkeypatch, ious, kept, rounds):
    judges, tracked = [], []

    def track(model, videos, device, starts):
        tracked.append([video.name for video in videos])
        return {video.name: 0.1 * len(tracked) for video in videos}

    monkeypatch.setattr(module, "Validation", lambda cfg, *_: judges.append(Judge(ious, cfg)) or judges[0])
    monkeypatch.setattr(module, "success", track)
    (gain,) = finetune(settings(folder, patience=2), CPU, progress=False)
    (judge,) = judges
    assert judge.cfg.data["videos"]["without"] == ["v2"], "every fifth video is kept out"
    assert judge.cfg.validation.without == ("v0", "v1", "v3", "v4", "v5"), "and judges"
    report = json.loads((folder / "out" / REPORT).read_text())
    told = [{"pairs": 8 * i, "iou": iou} for i, iou in enumerate(ious[: rounds + 1])]
    assert report["rounds"] == told
    final = dict(OSTrack.from_pretrained(folder / "out" / TUNED).state_dict())
    assert same(final, judge.seen[kept]) and not same(judge.seen[1], judge.seen[0])
    assert tracked == [["v2"]] * 2 and gain.mean == pytest.approx(0.1) and gain.chosen_by
    with pytest.raises(ValueError, match="holds a run already"):
        finetune(settings(folder), CPU)


def test_half_of_the_way_is_kept(folder, monkeypatch):
    """What is judged and written lies halfway between the start and what was trained, which goes on from its own."""
    judge = Judge([0.1, 0.2, 0.3], None)
    monkeypatch.setattr(module, "Validation", lambda *_: judge)
    monkeypatch.setattr(module, "success", lambda model, videos, device, starts: dict.fromkeys("a", 0.5))
    finetune(settings(folder, rounds=2), CPU, progress=False)
    start, _, tuned = judge.seen
    trained = OSTrack.from_pretrained(folder / "out" / WEIGHTS).state_dict()
    for name, value in tuned.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (start[name] + trained[name]) / 2, rtol=1e-5, atol=1e-7)
    assert same(dict(OSTrack.from_pretrained(folder / "out" / TUNED).state_dict()), tuned)


def test_held_out_videos_of_another_folder(folder, monkeypatch):
    """They judge, and all of the training's videos are trained on."""
    shutil.copytree(folder / "videos" / "v0", folder / "others" / "o")
    judges = []
    monkeypatch.setattr(module, "Validation", lambda cfg, *_: judges.append(Judge([0.2] * 4, cfg)) or judges[0])
    (gain,) = finetune(settings(folder, rounds=1, held_out=str(folder / "others"), starts=1), CPU, progress=False)
    cfg = judges[0].cfg
    assert (cfg.data["videos"]["without"], cfg.validation.without) == ([], ())
    assert cfg.validation.videos == str(folder / "others") and set(gain.before) == {"o"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"test": "nope"}, "nope"), ({"held_out": "videos"}, "held_out is .* itself"), ({"test": "videos"}, "test is .*")],
)
def test_folders_of_the_report_are_looked_at_before_the_training(folder, monkeypatch, changes, words):
    monkeypatch.setattr(module, "Trainer", lambda *_: pytest.fail("it began to train"))
    with pytest.raises((FileNotFoundError, ValueError), match=words):
        finetune(settings(folder, **{name: str(folder / value) for name, value in changes.items()}), CPU)
    assert not (folder / "out").exists()


def test_what_is_trained(folder, monkeypatch):
    """Beside the head: LoRA's matrices and the vectors for the template's box, or the blocks that are not frozen."""
    monkeypatch.setattr(module, "success", lambda model, videos, device, starts: dict.fromkeys("a", 0.5))
    before = module.load_pretrained(folder / "start.safetensors")[1]
    for name, changes in (("lora", {}), ("frozen", {"freeze_blocks": 2})):
        judge = Judge([0.1, 0.2], None)
        monkeypatch.setattr(module, "Validation", lambda *_, judge=judge: judge)
        finetune(settings(folder, rounds=1, output=str(folder / name), **changes), CPU, progress=False)
        tuned = module.load_pretrained(folder / name / TUNED)[1]
        assert tuned.pop("backbone.box_embed").abs().max() > 0, "the tuned network reads the template's box"
        moved = {key for key in before if key.startswith("backbone") and not torch.equal(before[key], tuned[key])}
        if name == "lora":
            assert moved == {f"backbone.blocks.{i}.attn.{part}.weight" for i in range(3) for part in ("qkv", "proj")}
        else:
            assert {key for key in moved if "blocks" in key} == {key for key in before if ".blocks.2." in key}


def test_the_kept_out_videos_are_not_trained_on(folder):
    from ostrack_fast.training.videos import VideoFolder

    assert VideoFolder(folder / "videos", without=("v4", "v0")).names == ["v1", "v2", "v3", "v5"]
    with pytest.raises(FileNotFoundError, match="no usable video"):
        VideoFolder(folder / "videos", without=("v*",))


def test_the_whole_way(folder):
    """Untrained weights track nothing; the report is that of the weights written."""
    shutil.copytree(folder / "videos" / "v0", folder / "test" / "t")
    gains = finetune(settings(folder, rounds=1, test=str(folder / "test")), CPU, progress=False)
    assert [set(gain.before) for gain in gains] == [{"v2"}, {"t"}]
    again = module.success(
        OSTrack.from_pretrained(folder / "out" / TUNED), module.load_videos(folder / "test"), CPU, 10
    )  # fmt: skip
    assert again == gains[1].after


def test_one_video_is_too_few(folder):
    for number in range(1, 6):
        shutil.rmtree(folder / "videos" / f"v{number}")
    with pytest.raises(ValueError, match="has one video: give a folder of others"):
        finetune(settings(folder), CPU)


def test_the_interval_covers_the_mean():
    names = [f"v{i}" for i in range(20)]
    after = dict(zip(names, 0.5 + np.linspace(-0.05, 0.15, 20), strict=True))
    gain = Gain(dict.fromkeys(names, 0.5), after, chosen_by=False)
    low, high = gain.interval()
    error = np.std([*after.values()]) / 20**0.5
    assert gain.mean == pytest.approx(0.05) and low == pytest.approx(0.05 - 1.96 * error, abs=0.005)
    assert high == pytest.approx(0.05 + 1.96 * error, abs=0.005)


def test_lora_trains_its_matrices_alone_and_is_merged_on_export(config, folder):
    path = str(folder / "start.safetensors")
    cfg = replace(config, weights=path, epochs=0.5, optim=replace(config.optim, lora=2, backbone_lr=1.0))
    before = build_model(replace(cfg)).state_dict()
    trainer = run(cfg, folder / "lora")
    exported = OSTrack.from_pretrained(folder / "lora" / "weights.safetensors").state_dict()
    moved = {name for name in before if name.startswith("backbone") and not torch.equal(before[name], exported[name])}
    assert moved == {f"backbone.blocks.{i}.attn.{part}.weight" for i in range(3) for part in ("qkv", "proj")}
    for name in moved:
        assert torch.linalg.matrix_rank(exported[name] - before[name], rtol=1e-3) <= 2
    # What is exported computes what was trained.
    trainer.model.load_state_dict(trainer.average.state)
    plain = OSTrack(MODEL).eval()
    plain.load_state_dict(exported)
    images = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(trainer.model.eval()(*images)["score_map"], plain(*images)["score_map"])


def test_lora_starts_as_the_weights_it_adapts():
    model = OSTrack(MODEL).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapt(model, 2)
    assert same(merged(model.state_dict()), before)


@pytest.mark.parametrize(("device", "fast", "precision"), [
    ("cpu", False, "float32"), ("cpu", True, "bfloat16"), ("cuda", False, "bfloat16"),
])  # fmt: skip
def test_precision_is_what_is_fast(folder, monkeypatch, device, fast, precision):
    class Asked(Exception):
        pass

    def trainer(cfg, _device):
        assert cfg.precision == precision
        raise Asked

    monkeypatch.setattr(module, "success", lambda model, videos, device, starts: dict.fromkeys("a", 0.5))
    monkeypatch.setattr(module, "fast_bfloat16", lambda: fast)
    monkeypatch.setattr(module, "Trainer", trainer)
    with pytest.raises(Asked):
        finetune(settings(folder), torch.device(device), progress=False)

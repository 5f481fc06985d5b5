"""The recipes of the paper, and the distributions they draw from."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from ostrack_fast.config import get_config
from ostrack_fast.training.augment import Augment
from ostrack_fast.training.building import build_dataset
from ostrack_fast.training.config import read_train_config, recipes
from ostrack_fast.training.crops import draw_window
from ostrack_fast.training.sources import bind_sources
from ostrack_fast.training.trainer import Trainer
from ostrack_fast.training.videos import draw_frames

from ..data.test_collections import image, write_folder, write_zip

PAPER = [f"ostrack_{size}{ce}{got}" for size in (256, 384) for ce in ("", "_ce") for got in ("", "_got10k")]


def uniform_distance(values, low, high):
    """Largest distance of the empirical distribution from U(low, high), times sqrt(n): over 1.95 in one of 1,000."""
    values, count = np.sort(((np.asarray(values) - low) / (high - low)).clip(0, 1)), len(values)
    steps = np.arange(count + 1) / count
    return max(np.abs(values - steps[:-1]).max(), np.abs(values - steps[1:]).max()) * count**0.5


@pytest.mark.parametrize("name", PAPER)
def test_figures(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg, got, large = read_train_config(name), name.endswith("_got10k"), "384" in name
    assert cfg.model == get_config(name.removesuffix("_got10k"))
    assert (cfg.crops.template_size, cfg.crops.search_size) == ((192, 384) if large else (128, 256))
    assert (cfg.crops.template_factor, cfg.crops.search_factor) == (2, 5 if large else 4)
    assert cfg.crops.center_jitter == (0, 4.5 if large else 3) and cfg.crops.scale_jitter == (0, 0.5 if large else 0.25)
    a, optim, loss = cfg.augment, cfg.optim, cfg.loss
    assert (a.gray, a.flip, a.flip_each, a.brightness, a.noise, a.blur) == (0.05, 0.5, 0.5, 0.2, 0, 0)
    assert (optim.lr, optim.lr * optim.backbone_lr, optim.weight_decay, optim.grad_clip) == (4e-4, 4e-5, 1e-4, 0.1)
    assert (loss.giou, loss.l1, loss.focal, loss.box_cells, loss.attention) == (2, 5, 1, "predicted", 0)
    assert (cfg.epochs, optim.drop_epoch) == ((100, 80) if got else (300, 240))
    assert (cfg.ce_start_epoch, cfg.ce_start_epoch + cfg.ce_warmup_epochs) == ((20, 70) if got else (20, 100))
    assert (cfg.pairs_per_epoch, cfg.batch_size, cfg.batch_norm, cfg.backbone) == (60_000, 32, "local", "mae")
    sources = bind_sources(cfg.data, "data")
    assert sorted(sources) == (["got10k"] if got else ["coco", "got10k", "lasot", "trackingnet"])
    assert all(one.share == 1 and one.camera.probability == 0 for one in sources.values())
    assert cfg.output == str(tmp_path / "runs" / name) and cfg.data_root == str(tmp_path / "data")


def test_recipes_are_found_by_name():
    assert {*PAPER, "small", "small_box", "tiny"} == set(recipes())


def test_the_two_legs_of_the_shipped_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg, first = read_train_config("small_box"), read_train_config("small")
    assert tmp_path / cfg.weights == Path(first.output) / "weights.safetensors"
    assert cfg.model == replace(first.model, template_box=True) == get_config("small")
    videos = bind_sources(cfg.data, "data")["videos"]
    assert [folder.path for folder in videos.more] == ["uav"] and not videos.one_based
    assert (cfg.crops.far, cfg.crops.absent) == (0.1, 0.06)
    assert cfg.augment == replace(first.augment, apart=0.5), "the first leg's, but each image degraded by itself"


@pytest.mark.parametrize("name", ["ostrack_256_ce", "ostrack_384_ce"])
def test_jitter(name):
    crops = read_train_config(name).crops
    random, box = np.random.default_rng(0), np.array([3000.0, 2000, 400, 250])
    scales, shifts = [], []
    for _ in range(2000):
        window, inside = draw_window(box, crops, True, random)
        side = window.side / crops.search_factor  # sqrt(w'h'), to a pixel
        scales.append(np.log(side / np.sqrt(400 * 250)))
        centre = np.array([window.left, window.top]) + window.side / 2
        shifts.extend((centre - (box[:2] + box[2:] / 2)) / side / crops.center_jitter[1])
        # Width and height change each by itself, the crop with their geometric mean, the target not at all.
        np.testing.assert_allclose(inside[2:] * window.side, box[2:], rtol=0.01)
    # log(side) is the mean of two normal draws.
    assert np.std(scales) == pytest.approx(crops.scale_jitter[1] / 2**0.5, rel=0.06)
    assert abs(np.mean(scales)) < 4 * np.std(scales) / 2000**0.5
    assert uniform_distance(shifts, -0.5, 0.5) < 1.95
    window, inside = draw_window(box, crops, False, random)
    assert window.side == np.ceil(np.sqrt(400 * 250) * 2) and abs(inside[0] + inside[2] / 2 - 0.5) < 0.01


def test_augmentation():
    cfg = read_train_config("ostrack_256").augment
    random, ramp = np.random.default_rng(0), np.arange(60, 124, dtype=np.uint8)
    picture = np.tile(ramp[None, :, None], (64, 1, 3)) + np.uint8([0, 20, 40])
    gray, flips, levels = 0, [], []
    for _ in range(2000):
        pair = Augment(cfg)((picture, picture), random)
        same = [one.colours[0] == 0 for one in pair]
        assert same[0] == same[1]
        gray += same[0]
        flips.append([one.flipped for one in pair])
        assert all((one.image[0, 0, 0] > one.image[0, -1, 0]) == one.flipped for one in pair)
        levels.append([one.colours[2] for one in pair])
    assert gray == pytest.approx(100, abs=40)
    flips = np.array(flips)
    for column in (flips[:, 0], flips[:, 1], flips[:, 0] == flips[:, 1]):
        assert column.mean() == pytest.approx(0.5, abs=0.045)
    levels = np.array(levels)
    for column in levels.T:
        assert uniform_distance(column, 0.8, 1.2) < 1.95
    assert abs(np.corrcoef(levels.T)[0, 1]) < 0.08, "each image has its own"


def test_frames():
    random = np.random.default_rng(0)
    visible = np.arange(0, 900, 3)
    drawn = np.array([draw_frames(visible, 200, random) for _ in range(3000)])
    first, gap = drawn[:, 0], drawn[:, 1] - drawn[:, 0]
    assert np.isin(drawn, visible).all() and gap.min() >= 3 and gap.max() <= 200
    assert uniform_distance(first, -1.5, 895.5) < 1.95
    # Visible frames are 3 apart: 66 of them lie up to 200 later, wherever the video does not end before.
    inner = gap[first < 690]
    assert uniform_distance((inner / 3).astype(int) + random.random(len(inner)), 1, 67) < 1.95
    # The interval grows by 5 until something is visible: after 200, 205, ... it is 305.
    far = np.array([0, 301, 304, 306])
    drawn = {draw_frames(far, 200, np.random.default_rng(i)) for i in range(60)}
    assert {second for first, second in drawn if first == 0} == {301, 304}


def test_the_keep_rate_is_visible_in_kept_counts(config, tmp_path):
    """1 until epoch 1, then a cosine to 0.5 at epoch 3: of 16 candidates, ceil(rate * 16) are kept."""
    model = replace(config.model, ce_layers=(1, 2), ce_keep_ratio=(0.5, 0.5))
    cfg = replace(
        config, model=model, epochs=4, pairs_per_epoch=16, ce_start_epoch=1, ce_warmup_epochs=2,
        output=str(tmp_path / "run"), pictures=0,
    )  # fmt: skip
    trainer, kept = Trainer(cfg), []
    forward = trainer.model.forward

    def watched(*args, **named):
        out = forward(*args, **named)
        kept.append([score.shape[1] for score, _ in out["ce_scores"]] + [len(out["backbone_feat"][0])])
        removed = sum(0 if ids is None else ids.shape[1] for ids in out["removed_indexes_s"])
        kept[-1][-1] = 16 - removed
        return out

    trainer.model.forward = watched
    trainer.run(progress=False)
    epochs = np.arange(16) / 4
    rates = np.where(epochs < 1, 1, np.where(epochs >= 3, 0.5, 0.5 + 0.25 * (1 + np.cos(np.pi * (epochs - 1) / 2))))
    expected = []
    for rate in rates:
        counts = [16]
        for _ in range(2):
            counts.append(int(np.ceil(np.round(rate * counts[-1], 9))))
        expected.append(counts)
    assert kept == expected
    assert kept[0] == [16, 16, 16] and kept[-1] == [16, 8, 4]


def miniature_of_the_paper(root):
    """The four data sets of a full recipe, each in another storage, of 24 frames."""
    rows = "".join(f"{8 + i % 5},{6 + i % 3},20,16\n" for i in range(24)).encode()
    zeros = ",".join("0" * 24).encode()
    images = [image(10 * i) for i in range(24)]
    lasot = {f"cat/cat-2/img/{i + 1:08d}.jpg": one for i, one in enumerate(images)} | {
        "cat/cat-2/groundtruth.txt": rows, "cat/cat-2/full_occlusion.txt": zeros, "cat/cat-2/out_of_view.txt": zeros
    }  # fmt: skip
    write_folder(root / "lasot", lasot | {"training_set.txt": b"cat-2\n"})
    base = "train/GOT-10k_Train_000001"
    got = {f"{base}/{i + 1:08d}.jpg": one for i, one in enumerate(images)} | {
        f"{base}/groundtruth.txt": rows, f"{base}/absence.label": b"0\n" * 24, f"{base}/cover.label": b"8\n" * 24
    }  # fmt: skip
    (root / "got10k").mkdir()
    write_zip(root / "got10k" / "train", got)
    (root / "got10k" / "got10k_vot_train_split.txt").write_text("0\n")
    net = {}
    for chunk in range(12):
        net |= {f"TRAIN_{chunk}/frames/v{chunk}/{i}.jpg": one for i, one in enumerate(images)}
        net[f"TRAIN_{chunk}/anno/v{chunk}.txt"] = rows
    write_folder(root / "trackingnet", net)
    entry = {"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 8, 20, 16], "iscrowd": 0, "segmentation": []}
    coco = {"images": [{"id": 7, "file_name": "000000000007.jpg"}], "annotations": [entry]}
    write_folder(
        root / "coco",
        {
            "images/train2017/000000000007.jpg": images[3],
            "annotations/instances_train2017.json": json.dumps(coco).encode(),
        },
    )


def test_a_full_recipe_finds_its_data(tmp_path):
    miniature_of_the_paper(tmp_path / "data")
    cfg = replace(read_train_config("ostrack_256_ce"), data_root=str(tmp_path / "data"))
    dataset = build_dataset(cfg)
    assert len(dataset.sources) == 4 and len(dataset) == 18_000_000
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "data/index").iterdir()) == [
        "coco", "got10k", "lasot", "trackingnet"
    ]  # fmt: skip
    item = dataset[17_999_999]
    assert item["search"].shape == (256, 256, 3) and torch.isfinite(item["search_box"]).all()
    drawn = []
    for number, source in enumerate(dataset.sources):
        source.sample = partial(lambda name, plain, *args: drawn.append(name) or plain(*args), number, source.sample)
    for index in range(400):
        dataset[index]
    counts = np.bincount(drawn, minlength=4)
    assert (abs(counts / counts.sum() - 0.25) < 0.08).all(), counts

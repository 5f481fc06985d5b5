"""A run as one yaml file: what it may say, and one line with file, key and remedy for all else."""

import json
from dataclasses import fields, replace
from importlib import resources

import pytest

from ostrack_fast.config import get_config
from ostrack_fast.training.augment import AugmentConfig
from ostrack_fast.training.building import build_model
from ostrack_fast.training.composer import ComposerConfig, ComposerSettings
from ostrack_fast.training.config import TrainConfig, read_train_config
from ostrack_fast.training.crops import CameraConfig
from ostrack_fast.training.finetune import FinetuneConfig
from ostrack_fast.training.sources import SOURCES, bind_sources, build_sources

BASE = {"model": "small", "output": "out", "data": {"videos": {"path": "."}}}


def read(tmp_path, **changes):
    """The configuration of a yaml file (JSON is yaml) with these settings; None leaves one out."""
    document = {key: value for key, value in {**BASE, **changes}.items() if value is not None}
    (tmp_path / "t.yaml").write_text(json.dumps(document))
    return read_train_config(tmp_path / "t.yaml")


def test_every_setting_of_every_source_is_reachable(tmp_path):
    camera = {"probability": 0.25, "rotation": 7, "stretch": 0.1, "shear": 0.2}
    scene = {"occlusion": 0.1, "distractors": [1, 2], "size": [0.1, 0.2]}
    data = {
        "videos": {
            "path": "v", "share": 2, "one_based": ["OTB_*"], "without": [], "max_gap": 50, "camera": camera,
            "memory_gib": 0.5, "more": [{"path": "u", "one_based": ["UAV_*"]}], "distractors": 0.25,
        },
        "coco": {"images": "i", "annotations": "a", "min_side": 4, "index": "i", "camera": camera, "memory_gib": 2},
        **{
            name: {
                "path": "p", "split": None, "only": "o", "without": "w", "partial": True, "index": "i", "max_gap": 9,
                "camera": camera,
            }
            for name in ("lasot", "got10k", "trackingnet")
        },
        "photos": {"folders": ["p", "q"], "camera": camera, "memory_gib": 2, "share": 0.5},
        "composer": {
            "cutouts": [{"kind": "alpha", "path": "c", "share": 3}, {"kind": "coco"}],
            "backgrounds": [{"path": "p"}], "scene": scene, "memory_gib": 3,
        },
    }  # fmt: skip
    cfg = read(tmp_path, data=data, augment="robust", seed=3, epochs=2, batch_size=8)
    bound = bind_sources(cfg.data, "data")
    assert list(bound) == list(SOURCES) == list(data)
    assert bound["videos"].camera == CameraConfig(0.25, 7.0, 0.1, 0.2) and bound["videos"].one_based == ("OTB_*",)
    assert bound["videos"].distractors == 0.25
    assert [(each.path, each.one_based) for each in bound["videos"].more] == [("u", ("UAV_*",))]
    assert bound["composer"].scene == replace(ComposerConfig(), occlusion=0.1, distractors=(1.0, 2.0), size=(0.1, 0.2))
    assert cfg.augment == AugmentConfig.robust() and (cfg.seed, cfg.epochs, cfg.batch_size) == (3, 2.0, 8)
    for name, kind in SOURCES.items():
        given = data[name]
        assert {field.name for field in fields(kind.Settings)} - {"share"} <= set(given)
    assert {field.name for field in fields(ComposerSettings)} >= {"scene", "memory_gib"}


def test_settings_reach_the_sources(videos):
    section = {"videos": {"path": ".", "max_gap": 3, "camera": {"probability": 0}, "one_based": ["alpha"]}}
    ((source, share),) = build_sources(bind_sources(section, "data"), videos)
    assert source.max_gap == 3 and source.camera == CameraConfig(probability=0) and share == 1
    first = source.view(source.names.index("alpha"), 0).box
    assert first[:2].tolist() == [59, 49]


def test_the_composer_uses_the_sources_before_it_and_its_scene(videos, composer_parts):
    cutouts, photos = composer_parts
    section = {
        "composer": {
            "cutouts": [{"kind": "videos"}, {"kind": "alpha", "path": str(cutouts)}],
            "backgrounds": [{"path": str(photos)}],
            "scene": {"occlusion": 0},
        },
        "videos": {"path": "."},
    }
    (folder, _), (composer, _) = build_sources(bind_sources(section, "data"), videos)
    assert composer.videos is folder and composer.config.occlusion == 0
    assert len(composer.sets) == 2
    del section["videos"]
    with pytest.raises(ValueError, match="kind 'videos' need a source 'videos'"):
        build_sources(bind_sources(section, "data"), videos)


BAD = [
    ({"epochs": "abc"}, "t.yaml: epochs: expected a number"),
    ({"epochs": float("inf")}, "epochs"),
    ({"epochs": 0}, "must be positive"),
    ({"pairs_per_epoch": 10**29}, "pairs_per_epoch=.* must lie in"),
    ({"batch_size": "abc"}, "batch_size: expected a whole number"),
    ({"batch_size": -4}, "must be positive"),
    ({"epochs": 1, "pairs_per_epoch": 4, "batch_size": 8}, "4 pairs has no batch of 8: raise epochs"),
    ({"workers": -1}, "workers=-1 must lie in"),
    ({"accumulate": 0}, "accumulate=0 must lie in"),
    ({"batch_norm": "sync"}, "batch_norm='sync' must be one of all, local"),
    ({"precision": "half"}, "precision='half' must be one of float32, bfloat16, float16"),
    ({"bad_image": 3}, "unknown settings \\['bad_image'\\]; did you mean 'bad_images'"),
    ({"optim": {"lora": 4}}, "lora adapts trained weights"),
    ({"optim": {"lr_batch": 0}}, "lr_batch=0 must lie in"),
    ({"data": {"lasott": {"path": "x"}}}, "unknown sources \\['lasott'\\]; did you mean 'lasot'"),
    ({"data": {"got10k": {"path": "x", "spilt": "val"}}}, "unknown settings \\['spilt'\\]; did you mean 'split'"),
    ({"checkpoint_minutes": [1]}, "checkpoint_minutes: expected a number"),
    ({"seed": -1}, "seed=-1 must lie in"),
    ({"seed": [1]}, "seed: expected a whole number"),
    ({"score_prior": 1.5}, "score_prior=1.5 must lie in"),
    ({"output": 5}, "output: expected a text"),
    ({"weights": -1}, "weights: expected a text"),
    ({"weights": ""}, "weights is an empty text: leave it out"),
    ({"backbone": ""}, "backbone is an empty text: leave it out"),
    ({"data_root": ""}, "data_root='' is no name of a folder"),
    ({"data_root": 3}, "data_root: expected a text"),
    ({"batchsize": 3}, "unknown settings \\['batchsize'\\]; did you mean 'batch_size'"),
    ({"model": [1]}, "model: expected the name of a preset"),
    ({"model": {"preset": [1]}}, "model: expected the name of a preset"),
    ({"model": "smal"}, "t.yaml: model: unknown preset 'smal'"),
    ({"model": {"preset": "small", "embed_dim": "abc"}}, "model: embed_dim: expected a whole number"),
    ({"model": {"preset": "small", "dept": 3}}, "model: unknown settings \\['dept'\\]; did you mean 'depth'"),
    ({"model": {"preset": "small", "embed_dim": 100}}, "t.yaml: model: embed_dim=100 is not divisible"),
    ({"optim": "abc"}, "optim: expected settings"),
    ({"optim": {"lr": "fast"}}, "optim: lr: expected a number, got the text 'fast'"),
    ({"optim": {"ema": 2}}, "optim: ema=2.0 must lie in"),
    ({"optim": {"rl": 1}}, "optim: unknown settings \\['rl'\\]; did you mean 'lr'"),
    ({"optim": {"freeze_blocks": 900}, "weights": "w"}, "freeze_blocks=900, but the model has 8 blocks"),
    ({"crops": 3}, "crops: expected settings"),
    ({"crops": {"scale_jitter": [1]}}, "crops: scale_jitter: expected a list of 2"),
    ({"crops": {"scale_jitter": [0, 99]}}, "crops: scale_jitter=.* must lie in"),
    ({"augment": "strong"}, "augment='strong' is not known: choose published, robust"),
    ({"augment": {"gray": 2}}, "augment: gray=2.0 must lie in"),
    ({"loss": {"box_cells": "all"}}, "loss: box_cells='all' is none of"),
    ({"loss": {"l1": -1}}, "loss: l1=-1.0 must lie in"),
    ({"data": {}}, "data: no source; give at least one of videos, coco"),
    ({"data": [1]}, "data: expected settings"),
    ({"data": {"vidoes": {"path": "."}}}, "data: unknown sources \\['vidoes'\\]; did you mean 'videos'"),
    ({"data": {"videos": "x"}}, "data: videos: expected settings"),
    ({"data": {"videos": {}}}, "data: videos: the setting 'path' is missing"),
    ({"data": {"videos": {"path": 5}}}, "data: videos: path: expected a text"),
    ({"data": {"videos": {"path": "x", "share": 0}}}, "data: videos: share=0.0 must be positive"),
    ({"data": {"videos": {"path": "x", "max_gap": 0}}}, "max_gap=0 must lie in"),
    ({"data": {"videos": {"path": "x", "distractors": 1.5}}}, "videos: distractors=1.5 must lie in \\[0, 1\\]"),
    ({"data": {"videos": {"path": "x", "distractors": [1, 2]}}}, "videos: distractors: expected a number"),
    ({"data": {"videos": {"path": "x", "camera": {"rotation": 900}}}}, "camera: rotation=900.0 must lie in"),
    ({"data": {"photos": {"folders": []}}}, "folders must name at least one"),
    ({"data": {"photos": {"folders": "x"}}}, "photos: folders: expected a list"),
    ({"data": {"composer": {"cutouts": [], "backgrounds": [], "scene": {"size": [0.5, 0.1]}}}}, "scene: size=.*small"),
    ({"data": {"composer": {"cutouts": [{"kind": "alhpa"}], "backgrounds": []}}}, "entry 1: kind='alhpa'.*'alpha'"),
    ({"data": {"composer": {"cutouts": [{"kind": "alpha"}], "backgrounds": []}}}, "kind alpha need a path"),
    ({"data": {"composer": {"cutouts": [{"kind": "coco", "path": "x"}], "backgrounds": []}}}, "need no path"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[json.dumps(changes)[:60] for changes, _ in BAD])
def test_a_setting_that_cannot_be_is_named_with_its_file(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, **changes)
    assert "t.yaml" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["optim", "crops", "augment", "loss", "seed", "epochs", "data_root", "output"])
def test_a_key_without_a_value_is_named(tmp_path, key):
    (tmp_path / "t.yaml").write_text(f"{json.dumps({k: v for k, v in BASE.items() if k != key})[:-1]}, {key}: }}")
    with pytest.raises(ValueError, match=rf"t\.yaml: {key}.*nothing \(leave the key out"):
        read_train_config(tmp_path / "t.yaml")


@pytest.mark.parametrize("key", ["model", "data", "output"])
def test_a_required_key_is_asked_for(tmp_path, key):
    with pytest.raises(ValueError, match=f"lacks the setting '{key}'"):
        read(tmp_path, **{key: None})


def test_paths_count_from_the_file(tmp_path):
    cfg = read(tmp_path, data_root="sets", weights="/abs/w.safetensors")
    assert cfg.output == str(tmp_path / "out") and cfg.data_root == str(tmp_path / "sets")
    assert cfg.weights == "/abs/w.safetensors" and cfg.backbone is None
    assert read(tmp_path, backbone="timm:vit_small").backbone == "timm:vit_small"


def test_pairs_that_fill_no_batch_are_left_out():
    cfg = TrainConfig(get_config("small"), {}, "out", epochs=1, pairs_per_epoch=10, batch_size=4)
    assert (cfg.total_pairs, cfg.trained_pairs(4)) == (10, 8)


@pytest.mark.parametrize(("name", "pairs"), [("small", 200_000), ("small_box", 2_056_192)])
def test_the_recipes_of_the_shipped_weights_can_be_read(name, pairs):
    config = read_train_config(str(resources.files("ostrack_fast") / "training" / "recipes" / f"{name}.yaml"))
    assert replace(config.model, template_box=True) == get_config("small") and config.total_pairs == pairs
    assert config.crops.search_size == config.model.search_size
    assert list(bind_sources(config.data, "data")) == ["videos", "coco", "photos", "composer"]


@pytest.mark.parametrize("name", ["", "  ", "a\nb"])
def test_an_output_is_the_name_of_a_folder(tmp_path, name):
    with pytest.raises(ValueError, match=r"t\.yaml: output=.* is no name of a folder"):
        read(tmp_path, output=name)
    with pytest.raises(ValueError, match="is no name of a folder"):
        FinetuneConfig("data", name)


def test_a_round_of_fine_tuning_has_a_batch():
    with pytest.raises(ValueError, match=r"pairs=8 must lie in \[16, "):
        FinetuneConfig("data", "out", pairs=8)


def test_weights_of_another_network_are_told(tmp_path):
    cfg = read(tmp_path, model={"preset": "small", "depth": 7}, weights="small")
    with pytest.raises(ValueError, match="small does not fit the configuration: unexpected"):
        build_model(cfg)

"""Pairs from videos and still images: boxes against painted targets, sampling, files and their mistakes."""

import json
import shutil

import numpy as np
import pytest
import torch

from ostrack_fast.training.augment import AugmentConfig
from ostrack_fast.training.coco import CocoImages
from ostrack_fast.training.crops import CameraConfig, CropConfig
from ostrack_fast.training.cutouts import coco_cutouts
from ostrack_fast.training.dataset import DataConfig, PairDataset
from ostrack_fast.training.photos import PhotoRegions
from ostrack_fast.training.sources import bind_sources, build_sources
from ostrack_fast.training.videos import VideoFolder

from ..data.test_collections import write_lmdb, write_zip
from .painted import PLAIN, RED, STILL, assert_box_marks_red, save, texture


def test_video_boxes_lie_on_the_painted_target(videos):
    dataset = PairDataset([(VideoFolder(videos, camera=STILL), 1)], DataConfig(augment=PLAIN))
    checked = 0
    for i in range(40):
        item = dataset[i]
        assert item["template"].shape == (128, 128, 3) and item["template"].dtype == torch.uint8
        assert item["search"].shape == (256, 256, 3) and item["search_box"].dtype == torch.float32
        # One image pixel is up to five crop pixels wide here, and only its centre is compared.
        checked += assert_box_marks_red(item["template"].numpy(), item["template_box"].numpy(), 3)
        checked += assert_box_marks_red(item["search"].numpy(), item["search_box"].numpy(), 3)
    assert checked > 40


def test_video_boxes_follow_a_turning_camera(videos):
    camera = CameraConfig(probability=1, rotation=15, stretch=0.2, shear=0.1)
    dataset = PairDataset([(VideoFolder(videos, camera=camera), 1)], DataConfig(augment=PLAIN))
    checked = 0
    for i in range(40):
        item = dataset[i]
        checked += assert_box_marks_red(item["template"].numpy(), item["template_box"].numpy(), 5)
    assert checked > 20


def test_flipped_boxes_lie_on_the_painted_target(videos):
    augment = AugmentConfig(gray=0, flip=1, brightness=0)
    dataset = PairDataset([(VideoFolder(videos, camera=STILL), 1)], DataConfig(augment=augment))
    assert (
        sum(assert_box_marks_red(dataset[i]["search"].numpy(), dataset[i]["search_box"].numpy(), 3) for i in range(20))
        > 5
    )


def test_video_sampling_skips_short_videos_and_absent_targets(videos):
    source = VideoFolder(videos)
    assert source.names == ["alpha", "beta"]
    assert 7 not in source.visible[0] and len(source.visible[0]) == 23
    drawn, view = [], source.view
    source.view = lambda video, frame: drawn.append((video, frame)) or view(video, frame)
    rng = np.random.default_rng(0)
    for _ in range(100):
        source.sample(rng, CropConfig())
    for (a, first), (b, second) in zip(drawn[::2], drawn[1::2], strict=True):
        assert a == b and first < second and 7 not in (first, second)


def test_search_interval_widens_until_a_target_is_visible(tmp_path):
    boxes = ["nan,nan,nan,nan"] * 40
    for i in (0, 1, 2, 3, 30):
        boxes[i] = "20,20,30,30"
    for i in range(40):
        save(tmp_path / "v" / "img" / f"{i:04}.png", texture(np.random.default_rng(i), 80, 80))
    (tmp_path / "v" / "groundtruth_rect.txt").write_text("\n".join(boxes))
    source = VideoFolder(tmp_path, max_gap=2)
    frames, view = set(), source.view
    source.view = lambda video, frame: frames.add(frame) or view(video, frame)
    for i in range(40):
        source.sample(np.random.default_rng(i), CropConfig())
    assert 30 in frames


def coco_folder(tmp_path):
    image = texture(np.random.default_rng(0), 240, 320)
    image[80:140, 100:180] = RED
    save(tmp_path / "images" / "a.png", image)
    return tmp_path / "images"


def check_coco(source):
    dataset = PairDataset([(source, 1)], DataConfig(augment=PLAIN))
    assert (
        sum(assert_box_marks_red(dataset[i]["search"].numpy(), dataset[i]["search_box"].numpy(), 2) for i in range(20))
        > 5
    )


def test_coco_json(tmp_path):
    images = coco_folder(tmp_path)
    corners = [100, 80, 180, 80, 180, 140, 100, 140]
    document = {
        "images": [{"id": 5, "file_name": "a.png"}],
        "annotations": [
            {"image_id": 5, "category_id": 3, "bbox": [100, 80, 80, 60], "segmentation": [corners], "iscrowd": 0},
            {"image_id": 5, "category_id": 3, "bbox": [0, 0, 200, 200], "segmentation": {}, "iscrowd": 1},
            {"image_id": 5, "category_id": 3, "bbox": [0, 0, 5, 50], "iscrowd": 0},
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(document))
    source = CocoImages(images, path)
    assert len(source.objects) == 1
    check_coco(source)
    assert len(coco_cutouts(source)) == 1
    path.write_text(json.dumps({"images": []}))
    with pytest.raises(ValueError, match="not a COCO instances file"):
        CocoImages(images, path)


def packed(kind, folder, path, inside=""):
    """The files of a folder in a zip file or a database, below a folder `inside`."""
    files = {
        inside + one.relative_to(folder).as_posix(): one.read_bytes() for one in folder.rglob("*") if one.is_file()
    }
    return {"zip": write_zip, "lmdb": write_lmdb}[kind](path, files)


@pytest.mark.parametrize("kind", ["zip", "lmdb"])
def test_packed_images_of_a_coco_json_and_its_index(kind, tmp_path, monkeypatch):
    """As COCO's own zip file, which holds a folder that the json does not name."""
    images = packed(kind, coco_folder(tmp_path), tmp_path / "train2017", "train2017/")
    path, corners = tmp_path / "instances.json", [100, 80, 180, 80, 180, 140, 100, 140]
    thing = {"image_id": 5, "category_id": 3, "bbox": [100, 80, 80, 60]}
    entries = [thing | {"segmentation": [corners, [110, 90, 150, 90, 150, 120]]}, thing | {"segmentation": []}]
    document = {"images": [{"id": 5, "file_name": "a.png"}], "annotations": entries}
    path.write_text(json.dumps(document))
    check_coco(CocoImages(images, path))
    index = tmp_path / "index"
    first = CocoImages(images, path, index=index)
    (kept,) = index.iterdir()
    monkeypatch.setattr("ostrack_fast.data.coco_index.read_annotations", None)
    again = CocoImages(images, path, index=index)
    monkeypatch.undo()
    check_coco(again)
    assert len(first.objects) == len(again.objects) == 2
    for one, other in zip(first.objects, again.objects, strict=True):
        assert (one.image, one.category, len(one.outline)) == (other.image, other.category, len(other.outline))
        for mine, theirs in zip((one.box, *one.outline), (other.box, *other.outline), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert [len(one.outline) for one in again.objects] == [2, 0]
    # A damaged index is written anew, and another json file has another.
    kept.write_bytes(kept.read_bytes()[:100])
    assert len(CocoImages(images, path, index=index).objects) == 2 and len(kept.read_bytes()) > 100
    path.write_text(json.dumps(document | {"annotations": entries[:1]}))
    assert len(CocoImages(images, path, index=index).objects) == 1
    document["images"][0]["file_name"] = "b.png"
    path.write_text(json.dumps(document))
    with pytest.raises(FileNotFoundError, match=r"b\.png"):
        CocoImages(images, path)


@pytest.mark.parametrize("kind", ["zip", "lmdb"])
def test_packed_videos_are_those_of_their_folder(kind, videos, tmp_path_factory):
    where = packed(kind, videos, tmp_path_factory.mktemp("packed") / "them", "below/")
    plain, stored = VideoFolder(videos, one_based=("beta",)), VideoFolder(where, one_based=("b*",), memory_limit=0)
    assert stored.names == plain.names == ["alpha", "beta"]
    for video in range(2):
        np.testing.assert_array_equal(stored.visible[video], plain.visible[video])
        for frame in (0, 9):
            one, other = stored.view(video, frame), plain.view(video, frame)
            np.testing.assert_array_equal(one.image, other.image)
            np.testing.assert_array_equal(one.box, other.box)
            np.testing.assert_array_equal(one.outline, other.outline)
            np.testing.assert_array_equal(stored.mask(video, frame), plain.mask(video, frame))
    for change, message in (("alpha", "24 frames"), ("none", "is missing: one line x,y,w,h")):
        copy = tmp_path_factory.mktemp(change)
        (copy / "alpha" / "img").mkdir(parents=True)
        for i in range(24):
            (copy / "alpha" / "img" / f"{i}.png").write_bytes((videos / "alpha" / "img" / f"{i:04}.png").read_bytes())
        if change == "alpha":
            (copy / "alpha" / "groundtruth_rect.txt").write_text("1,2,3,4\n" * 20)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            VideoFolder(packed(kind, copy, copy / "packed"))
    with pytest.raises(ValueError, match=r"no video in .* is called 'gamma'"):
        VideoFolder(where, one_based=("gamma",))


def test_videos_of_several_folders(videos, tmp_path):
    """Packed or not, each with the pixels that it counts from."""
    boxes = [str(videos), str(packed("zip", videos, tmp_path / "them", "below/"))]
    section = {"path": boxes[0], "more": [{"path": boxes[1], "one_based": ["b*"]}], "without": ["alp*"], "max_gap": 3}
    ((source, share),) = build_sources(bind_sources({"videos": section}, "data"), tmp_path)
    alone = VideoFolder(videos, without=("alpha",))
    assert source.names == ["beta", "beta"] and len(source) == 2 and share == 1
    for frame in (0, 9):
        one, other, expected = source.view(0, frame), source.view(1, frame), alone.view(0, frame)
        np.testing.assert_array_equal(one.image, expected.image)
        np.testing.assert_array_equal(other.image, expected.image)
        np.testing.assert_array_equal(one.box, expected.box)
        np.testing.assert_array_equal(other.box, expected.box - (1, 1, 0, 0))
        np.testing.assert_array_equal(source.mask(1, frame), alone.mask(0, frame))
    drawn = {tuple(source.view(0, 0).box), tuple(source.view(1, 0).box)}
    assert len(drawn) == 2 and source.sample(np.random.default_rng(0), CropConfig()) is not None
    with pytest.raises(FileNotFoundError, match="gone"):
        VideoFolder(videos, more=[(tmp_path / "gone", ())])
    with pytest.raises(ValueError, match=r"data: videos: more.*pth"):
        bind_sources({"videos": {"path": "a", "more": [{"pth": "b"}]}}, "data")


def test_coco_label_folder(tmp_path):
    images, labels = coco_folder(tmp_path), tmp_path / "labels"
    labels.mkdir()
    (labels / "a.box.txt").write_text(f"0 {140 / 320} {110 / 240} {80 / 320} {60 / 240}\n")
    points = " ".join(f"{x / 320} {y / 240}" for x, y in ((100, 80), (180, 80), (180, 140), (100, 140)))
    (labels / "a.poly.txt").write_text(f"7 {points}\n7 0.1 0.1 0.2 0.1 0.2 0.2\n")
    source = CocoImages(images, labels)
    assert len(source.objects) == 1 and len(source.objects[0][3]) == 1
    check_coco(source)
    (labels / "a.box.txt").write_text("0 0.5 0.5 0.1\n")
    with pytest.raises(ValueError, match="not class cx cy w h"):
        CocoImages(images, labels)
    with pytest.raises(FileNotFoundError, match="neither"):
        CocoImages(images, tmp_path / "nothing")


def test_folder_errors(videos, tmp_path):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        VideoFolder(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no videos"):
        VideoFolder(tmp_path / "empty")
    (tmp_path / "few").mkdir()
    shutil.copytree(videos / "short", tmp_path / "few" / "short")
    with pytest.raises(FileNotFoundError, match="no usable video"):
        VideoFolder(tmp_path / "few")
    shutil.rmtree(tmp_path / "few")
    with pytest.raises(FileNotFoundError, match="holds no image"):
        PhotoRegions([tmp_path / "empty"])
    truth = videos / "alpha" / "groundtruth_rect.txt"
    lines = truth.read_text().splitlines()
    truth.write_text("\n".join(lines[:-1]))
    with pytest.raises(ValueError, match="23 lines for 24 frames"):
        VideoFolder(videos)
    truth.write_text("\n".join([*lines[:-1], "1 2 3"]))
    with pytest.raises(ValueError, match=r"txt, line 24: '1 2 3' is not four numbers"):
        VideoFolder(videos)
    truth.write_text("\n".join([*lines[:-1], "1 2 3 x"]))
    with pytest.raises(ValueError, match="not four numbers"):
        VideoFolder(videos)
    truth.write_text("\n".join(lines))
    (videos / "alpha" / "img" / "0000.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"0000\.png cannot be read as an image"):
        VideoFolder(videos)

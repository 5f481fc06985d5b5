"""COCO annotations, as json and as label files, and what is wrong with them."""

import json

import cv2
import numpy as np
import pytest

from ostrack_fast.data.coco import read_annotations

ENTRY = {"id": 7, "image_id": 5, "category_id": 3, "bbox": [100, 80, 80, 60], "iscrowd": 0}


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.zeros((240, 320, 3), np.uint8))
    return tmp_path / "images"


def read(images, *entries, document=None):
    path = images.parent / "instances.json"
    if document is None:
        document = {"images": [{"id": 5, "file_name": "a.png"}], "annotations": list(entries)}
    path.write_text(json.dumps(document))
    return read_annotations(images, path)


def test_json(images):
    corners = [100, 80, 180, 80, 180, 140, 100, 140]
    whole, hole, empty, crowd = read(
        images, {**ENTRY, "segmentation": [corners]}, ENTRY, {**ENTRY, "segmentation": {"counts": [1]}},
        {**ENTRY, "segmentation": [[]]}, {**ENTRY, "iscrowd": 1},
    )  # fmt: skip
    assert whole.image == images / "a.png" and whole.category == 3 and whole.box.tolist() == [100, 80, 80, 60]
    assert [part.tolist() for part in whole.outline] == [[[100, 80], [180, 80], [180, 140], [100, 140]]]
    assert hole.outline == empty.outline == crowd.outline == ()


@pytest.mark.parametrize(
    "change",
    [{"bbox": [1, 2, 3]}, {"bbox": "x"}, {"bbox": [1, 2, None, 4]}, {"bbox": [1, 2, float("nan"), 4]}, {"bbox": None},
     {"image_id": 6}, {"image_id": [5]}, {"category_id": "cat"}, {"segmentation": [[1, 2, 3]]},
     {"segmentation": ["x"]}, {"segmentation": [[1e400, 1, 2, 3, 4, 5]]}, {"segmentation": [[1e30, 1, 2, 3, 4, 5]]},
     {"bbox": [10**400, 1, 2, 3]}, {"bbox": [0, 0, 1e30, 1]}, {"category_id": 1e400}],
)  # fmt: skip
def test_a_bad_annotation_is_named(images, change):
    with pytest.raises(ValueError, match=r"instances\.json is not a COCO instances file: annotation 7"):
        read(images, {**ENTRY, **change})


@pytest.mark.parametrize(
    "document",
    [[], {"images": []}, {"annotations": []}, {"images": [5], "annotations": []}, {"images": 3}, "text"]
    + [{"images": [{"id": 1, "file_name": name}], "annotations": []} for name in ("/etc/hosts", "a\0b", "\ud800", 5)],
)
def test_another_json_is_refused(images, document):
    with pytest.raises(ValueError, match=r"instances\.json is not a COCO instances file"):
        read(images, document=document)


@pytest.mark.parametrize("data", [b"{", b"\xff\xfe\xff", b"[" * 100000, b""])
def test_what_is_no_json_is_named(images, data):
    (images.parent / "i.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"i\.json is not a COCO instances file"):
        read_annotations(images, images.parent / "i.json")


def test_missing_files(images):
    with pytest.raises(FileNotFoundError, match="neither a COCO json"):
        read_annotations(images, images.parent / "none.json")
    with pytest.raises(FileNotFoundError, match="not a folder of images"):
        read_annotations(images.parent / "none", images.parent)


@pytest.mark.parametrize(
    ("name", "line"),
    [("a.box.txt", "0 0.5 0.5 0.1"), ("a.box.txt", "0 0.5 0.5 0.1 x"), ("a.box.txt", "0 0.5 nan 0.1 0.1"),
     ("a.poly.txt", "0 0.5"), ("a.poly.txt", "0 0.5 0.5 0.5"), ("a.poly.txt", "a b c")],
)  # fmt: skip
def test_a_bad_label_line_is_named(images, name, line):
    labels = images.parent / "labels"
    labels.mkdir()
    (labels / "a.box.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (labels / name).write_text(line + "\n")
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        read_annotations(images, labels)

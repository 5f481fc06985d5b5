"""Folders of videos in zip files and LMDB databases: read as those that are unpacked."""

import numpy as np
import pytest

from ostrack_fast.data.storage import open_storage
from ostrack_fast.data.stored_videos import stored_videos
from ostrack_fast.data.videos import load_videos

from .test_collections import STORAGES, image, write_folder

PACKED = [kind for kind in STORAGES if kind != "folder"]


def otb(frames=6):
    """OTB as it is downloaded, in little."""

    def lines(left, count=frames):
        return "".join(f"{left + i},9,20,10\n" for i in range(count)).encode()

    names = ("Basketball", "Jogging", "Skating2", "Human4", "David", "Hidden")
    files = {f"{name}/img/{i + 1:04d}.jpg": image(i) for name in names for i in range(frames)}
    return files | {
        "Basketball/groundtruth_rect.txt": lines(1), "Basketball/attributes.txt": b"IV\n",
        "Jogging/groundtruth_rect.1.txt": lines(10), "Jogging/groundtruth_rect.2.txt": lines(20),
        "Skating2/groundtruth_rect.1.txt": lines(30), "Skating2/groundtruth_rect.2.txt": lines(40),
        "Human4/groundtruth_rect.1.txt": b"", "Human4/groundtruth_rect.2.txt": lines(50),
        "David/groundtruth_rect.txt": lines(60, 4), "Hidden/groundtruth.txt": lines(70, 1),
        "README.txt": b"0,0,9,9\n",
    }  # fmt: skip


@pytest.mark.parametrize("one_based", [(), ("Jogging", "D*")])
@pytest.mark.parametrize("kind", PACKED)
def test_packed_videos_are_those_of_the_folder(kind, one_based, tmp_path):
    folder = write_folder(tmp_path / "folder", otb())
    storage = open_storage(STORAGES[kind](tmp_path / "set", otb()))
    expected, packed = load_videos(folder, one_based), stored_videos(storage, one_based)
    names = ["Basketball", "David", "Hidden", "Human4.2", "Jogging.1", "Jogging.2", "Skating2.1", "Skating2.2"]
    assert [video.name for video in packed] == [video.name for video in expected] == names
    for one, other in zip(packed, expected, strict=True):
        assert [path.relative_to(storage.path) for path in one.frames] == [
            path.relative_to(folder) for path in other.frames
        ]
        np.testing.assert_array_equal(one.boxes, other.boxes)
        assert one.origin == other.origin


@pytest.mark.parametrize("kind", PACKED)
def test_packed_frames_without_truth_are_named_and_masks_are_no_videos(kind, tmp_path):
    files = otb() | {"Basketball/mask/0001.png": image(0)}
    assert len(stored_videos(open_storage(STORAGES[kind](tmp_path / "set", files)))) == 8
    del files["Jogging/groundtruth_rect.1.txt"], files["Jogging/groundtruth_rect.2.txt"]
    with pytest.raises(FileNotFoundError, match=r"Jogging.groundtruth_rect\.txt is missing: .* each of the 6 frames"):
        stored_videos(open_storage(STORAGES[kind](tmp_path / "other", files)))

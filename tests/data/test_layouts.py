"""One reader for both: what evaluation and training see of the same files, in each layout and in a folder of videos."""

import cv2
import numpy as np
import pytest

from ostrack_fast.data.collections import Selection, read_collection
from ostrack_fast.data.layouts import LAYOUTS, LasotLayout
from ostrack_fast.data.truth import present
from ostrack_fast.evaluation import load_videos
from ostrack_fast.evaluation.benchmarks import find_benchmark
from ostrack_fast.training.crops import CameraConfig
from ostrack_fast.training.videos import VideoFolder

from .test_collections import got10k, lasot, trackingnet, write_folder

SPLITS = {
    "lasot": (lasot, "all", "all"),
    "got10k": (got10k, "val", "val"),
    "trackingnet": (trackingnet, "all", "TRAIN_3"),
}


@pytest.mark.parametrize("kind", SPLITS)
def test_evaluation_and_training_read_the_same(kind, tmp_path):
    files, for_training, for_evaluation = SPLITS[kind]
    path = write_folder(tmp_path / "set", files())
    clips = {clip.name: clip for clip in read_collection(kind, path, Selection(for_training)).clips}
    sequences = find_benchmark(kind).load(path, for_evaluation).sequences
    assert sequences
    for sequence in sequences:
        clip, truth = clips[sequence.name], sequence.truth
        assert [str(frame.relative_to(path)) for frame in sequence.frames()] == [clip.frame(i) for i in range(6)]
        assert sequence.origin == LAYOUTS[kind].origin
        there = present(truth.boxes)
        np.testing.assert_array_equal(clip.boxes[there] + (sequence.origin, sequence.origin, 0, 0), truth.boxes[there])
        assert np.isnan(clip.boxes[~there]).all()
        hidden = np.zeros(6, bool) if truth.absent is None else truth.absent
        covered = np.ones(6, bool) if truth.cover is None else truth.cover > 0
        if kind != "got10k":
            np.testing.assert_array_equal(clip.visible, there & ~hidden & covered)
        else:  # absence.label, which training heeds too, hides frame 4
            np.testing.assert_array_equal(np.flatnonzero(there & covered & ~clip.visible), [4])


def test_lasots_training_split_leaves_out_the_test_sequences(tmp_path):
    assert len(LasotLayout.test) == len(set(LasotLayout.test)) == 280
    files = {name.replace("cat-20", "cat-2"): data for name, data in lasot().items()}
    path = write_folder(tmp_path / "set", files)
    assert [clip.name for clip in read_collection("lasot", path, Selection("train")).clips] == ["cat-2"]
    assert [clip.name for clip in read_collection("lasot", path, Selection("all")).clips] == ["cat-1", "cat-2"]


def test_a_folder_of_another_name_is_no_sequence():
    with pytest.raises(ValueError, match=r"photos is no folder of images of GOT-10k: expected train/GOT-10k"):
        LAYOUTS["got10k"].place("photos")


@pytest.mark.parametrize("one_based", [(), ("video",)])
def test_training_pairs_boxes_with_images_as_evaluation_does(tmp_path, one_based):
    """Images 1 to 24 in counting order, a line that is empty, and coordinates that count from 1."""
    folder = tmp_path / "video" / "img"
    folder.mkdir(parents=True)
    for number in range(1, 25):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((60, 80, 3), number, np.uint8))
    lines = [f"{number},2,30,20" if number != 10 else "" for number in range(1, 25)]
    (tmp_path / "video" / "groundtruth_rect.txt").write_text("\n".join(lines) + "\n")
    source = VideoFolder(tmp_path, camera=CameraConfig(probability=0), one_based=one_based)
    (video,) = load_videos(tmp_path, one_based)
    assert source.length(0) == 24 and 9 not in source.visible[0] and len(source.visible[0]) == 23
    for index in range(24):
        view = source.view(0, index)
        assert (view.image == index + 1).all() and (video.frame(index) == index + 1).all()
        np.testing.assert_array_equal(view.box, video.boxes[index])
        if index != 9:
            assert view.box[0] == index + 1 - len(one_based)

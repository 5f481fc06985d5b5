"""Folders of videos in every layout, and what is said when something is wrong."""

import os
import shutil

import numpy as np
import pytest

from ostrack_fast.data.videos import BadVideos, load_targets, scan_videos
from ostrack_fast.evaluation import load_video, load_videos

from ..evaluation.conftest import write_video


def test_folder(videos):
    (videos / "notes").mkdir()
    (videos / "list.txt").write_text("one_A\nzero_B\n")
    one, zero = load_videos(videos, one_based=["one_*"])
    assert (one.name, len(one), zero.name, len(zero)) == ("one_A", 6, "zero_B", 5)
    # one_A counts from 1: the same boxes as zero_B's once 1 is subtracted.
    np.testing.assert_array_equal(one.boxes[:2], zero.boxes[:2])
    np.testing.assert_array_equal(np.isnan(zero.boxes), np.repeat([[0], [0], [1], [1], [0]], 4, axis=1))
    assert [path.stem for path in one.frames] == ["8", "9", "10", "11", "12", "13"]


def test_frames_are_rgb(videos):
    frame = load_videos(videos)[1].frame(0)
    assert frame.shape == (96, 128, 3) and frame.dtype == np.uint8
    assert frame[32, 22].tolist() == [250, 160, 40]


def test_empty_lines_at_the_end_mean_nothing_but_in_the_video_absent(tmp_path):
    write_video(tmp_path / "v", frames=4)
    truth = tmp_path / "v" / "groundtruth_rect.txt"
    lines = truth.read_text()
    truth.write_text(lines + "\n\n")
    assert len(load_video(tmp_path / "v")) == 4
    truth.write_text("\n".join(lines.splitlines()[:3]) + "\n\n")
    assert np.isnan(load_video(tmp_path / "v").boxes[3]).all()
    # Written out, an absent frame too many is a mismatch.
    truth.write_text(lines + "nan\n")
    with pytest.raises(ValueError, match="5 lines for 4 frames"):
        load_video(tmp_path / "v")


def test_count_mismatch(videos):
    (videos / "one_A" / "img" / "8.png").unlink()
    with pytest.raises(ValueError, match=r"one_A.*groundtruth_rect\.txt has 6 lines for 5 frames"):
        load_videos(videos)


def test_missing_ground_truth(videos):
    (videos / "zero_B" / "groundtruth_rect.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"zero_B.*groundtruth_rect\.txt is missing.*5 frames"):
        load_videos(videos)


def test_missing_frames(videos):
    for frame in (videos / "one_A" / "img").iterdir():
        frame.unlink()
    with pytest.raises(FileNotFoundError, match=r"one_A.img holds no frames \(\.bmp, \.jpeg, \.jpg, \.png"):
        load_videos(videos)


def test_first_frame_without_box(videos):
    truth = videos / "zero_B" / "groundtruth_rect.txt"
    truth.write_text("nan\n" + truth.read_text().split("\n", 1)[1])
    with pytest.raises(ValueError, match="the first frame has no box"):
        load_videos(videos)


def test_empty_or_absent_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no videos: expected .*NAME"):
        load_videos(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_videos(tmp_path / "nowhere")


def test_pattern_that_matches_nothing(videos):
    with pytest.raises(ValueError, match=r"no video .* 'OTB_\*'"):
        load_videos(videos, one_based=["OTB_*"])


def test_damaged_frame(videos):
    video = load_videos(videos)[0]
    video.frames[1].write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"9\.png cannot be read as an image"):
        video.frame(1)


def rename_truth(folder, name):
    (folder / "groundtruth_rect.txt").rename(folder / name)


def write_truth(folder, lines, name="groundtruth_rect.txt", left=20):
    (folder / name).write_text("".join(f"{left + i},30,16,12\n" for i in range(lines)))


def test_several_targets_in_a_folder_are_several_videos(tmp_path):
    write_video(tmp_path / "Jogging", frames=4)
    (tmp_path / "Jogging" / "groundtruth_rect.txt").unlink()
    for target in (1, 2, 10):
        write_truth(tmp_path / "Jogging", 4, f"groundtruth_rect.{target}.txt", left=target)
    write_video(tmp_path / "Human4", frames=4)
    rename_truth(tmp_path / "Human4", "groundtruth_rect.2.txt")
    videos = load_videos(tmp_path)
    assert [video.name for video in videos] == ["Human4", "Jogging.1", "Jogging.2", "Jogging.10"]
    assert [video.boxes[0, 0] for video in videos] == [20, 1, 2, 10]
    assert all(len(video) == 4 for video in videos)
    assert [video.origin for video in load_videos(tmp_path, ["Jogging"])] == [0, 1, 1, 1]
    with pytest.raises(ValueError, match="Jogging holds 3 targets"):
        load_video(tmp_path / "Jogging")


def test_a_file_for_all_targets_is_preferred(tmp_path):
    write_video(tmp_path / "v", frames=4)
    write_truth(tmp_path / "v", 4, "groundtruth_rect.1.txt", left=99)
    (video,) = load_targets(tmp_path / "v")
    assert video.name == "v" and video.boxes[0, 0] == 20


@pytest.mark.parametrize("name", ["David", "BlurCar1", "BlurCar3", "blurcar4"])
def test_truth_of_the_last_frames(tmp_path, name):
    write_video(tmp_path / name, frames=7)
    write_truth(tmp_path / name, 4)
    (video,) = load_videos(tmp_path)
    assert [path.stem for path in video.frames] == ["11", "12", "13", "14"]
    np.testing.assert_array_equal(video.boxes[:, 0], [20, 21, 22, 23])


@pytest.mark.parametrize("name", ["Freeman4", "freeman3", "Football1", "Diving", "Tiger1"])
def test_truth_of_the_first_frames(tmp_path, name):
    write_video(tmp_path / name, frames=7)
    write_truth(tmp_path / name, 4)
    (video,) = load_videos(tmp_path)
    assert [path.stem for path in video.frames] == ["8", "9", "10", "11"]
    np.testing.assert_array_equal(video.boxes[:, 0], [20, 21, 22, 23])


def test_truth_of_a_part_of_any_other_video_is_not_guessed_at(tmp_path):
    write_video(tmp_path / "mine", frames=7)
    write_truth(tmp_path / "mine", 4)
    with pytest.raises(ValueError, match=r"mine.groundtruth_rect\.txt has 4 lines for 7 frames .*part of the truth"):
        load_videos(tmp_path)
    (tmp_path / "mine" / "groundtruth_rect.txt").write_text("")
    with pytest.raises(ValueError, match="has 0 lines for 7 frames"):
        load_videos(tmp_path)


def test_one_line_is_the_box_of_the_first_frame(tmp_path):
    write_video(tmp_path / "v", frames=5)
    write_truth(tmp_path / "v", 1)
    (video,) = load_videos(tmp_path, ["v"])
    assert len(video) == 5 and video.boxes[0].tolist() == [19, 29, 16, 12]
    assert np.isnan(video.boxes[1:]).all()


def test_frames_beside_their_truth(tmp_path):
    """GOT-10k's layout, and LaSOT's name of the truth."""
    boxes = write_video(tmp_path / "GOT-10k_Val_000001", frames=5)
    folder = tmp_path / "GOT-10k_Val_000001"
    for path in (folder / "img").iterdir():
        path.rename(folder / path.name)
    (folder / "img").rmdir()
    rename_truth(folder, "groundtruth.txt")
    (folder / "meta_info.ini").write_text("[METAINFO]\n")
    write_video(tmp_path / "lasot-1", frames=5)
    rename_truth(tmp_path / "lasot-1", "groundtruth.txt")
    videos = load_videos(tmp_path)
    assert [video.name for video in videos] == ["GOT-10k_Val_000001", "lasot-1"]
    for video in videos:
        np.testing.assert_array_equal(video.boxes, boxes)
        assert video.frame(0).shape == (96, 128, 3)


def test_hidden_folders_and_files_are_no_data(videos):
    shutil.copytree(videos / "one_A", videos / ".trash")
    shutil.copytree(videos / "one_A", videos / "__MACOSX")
    (videos / "one_A" / "._groundtruth_rect.txt").write_bytes(b"\0\5\x16\7")
    for path in list((videos / "one_A" / "img").iterdir()):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    (videos / "one_A" / "img" / "14.png").mkdir()
    assert [(video.name, len(video)) for video in load_videos(videos)] == [("one_A", 6), ("zero_B", 5)]


def test_a_pipe_among_the_frames_is_named(videos):
    (videos / "one_A" / "img" / "9.png").unlink()
    os.mkfifo(videos / "one_A" / "img" / "9.png")
    with pytest.raises(ValueError, match=r"9\.png .*no regular file"):
        load_videos(videos)


def test_a_pipe_for_a_truth_is_none(videos):
    (videos / "one_A" / "groundtruth_rect.txt").unlink()
    os.mkfifo(videos / "one_A" / "groundtruth_rect.txt")
    with pytest.raises(FileNotFoundError, match=r"groundtruth_rect\.txt is missing"):
        load_videos(videos)


def test_frames_named_by_signed_and_fractional_numbers(tmp_path):
    boxes = write_video(tmp_path / "v", frames=5)
    for number, name in enumerate(("-1.5", "-1", "0.25", "0.5", "10")):
        (tmp_path / "v" / "img" / f"{number + 8}.png").rename(tmp_path / "v" / "img" / f"{name}.png")
    video = load_video(tmp_path / "v")
    for index, (x, y, *_) in enumerate(boxes.astype(int)):
        assert video.frame(index)[y, x].tolist() == [250, 160, 40]


def test_all_bad_videos_are_named_at_once(videos):
    write_video(videos / "good", frames=4)
    (videos / "one_A" / "img" / "8.png").unlink()
    (videos / "zero_B" / "groundtruth_rect.txt").write_text("1,2,3\n")
    with pytest.raises(BadVideos, match=r"2 videos cannot be used:\n  one_A: .*6 lines.*\n  zero_B: .*line 1") as error:
        load_videos(videos)
    good, problems = scan_videos(videos)
    assert [video.name for video in good] == ["good"] and list(problems) == ["one_A", "zero_B"]
    assert error.value.problems.keys() == problems.keys()


def test_two_videos_of_one_name(tmp_path):
    write_video(tmp_path / "a", frames=4)
    rename_truth(tmp_path / "a", "groundtruth_rect.1.txt")
    write_truth(tmp_path / "a", 4, "groundtruth_rect.2.txt")
    write_video(tmp_path / "a.2", frames=4)
    with pytest.raises(ValueError, match=r"two videos of the name a\.2"):
        load_videos(tmp_path)


def test_a_name_with_brackets_is_no_pattern(tmp_path):
    for name in ("clip [hd]", "clip h"):
        write_video(tmp_path / name, frames=4)
    assert [video.origin for video in load_videos(tmp_path, ["clip [hd]"])] == [1, 1]
    (tmp_path / "clip h").rename(tmp_path / "other")
    assert [video.origin for video in load_videos(tmp_path, ["clip [hd]"])] == [1, 0]


def test_a_single_video_is_told_from_a_folder_of_videos(videos):
    with pytest.raises(FileNotFoundError, match="itself a video: give the folder it lies in"):
        load_videos(videos / "one_A")

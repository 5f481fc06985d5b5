"""The folder layout, every way to write a line, and what is said when something is wrong."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostrack_fast.evaluation import load_video, load_videos, read_boxes
from ostrack_fast.evaluation.datasets import format_boxes

from .conftest import write_video


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


@pytest.mark.parametrize("line", ["1,2,3,4", "1\t2\t3\t4", "1 2 3 4", " 1.0, 2.0 ,3.0,  4e0 ", "1,\t2,\t3,\t4,"])
def test_separators(tmp_path, line):
    (tmp_path / "boxes.txt").write_text(f"\ufeff{line}\r\n{line}", encoding="utf-8")
    assert read_boxes(tmp_path / "boxes.txt").tolist() == [[1, 2, 3, 4]] * 2


@pytest.mark.parametrize("line", ["", "  ", "nan", "NaN,NaN,NaN,NaN", "nan nan nan nan", "0,0,0,0", "5,5,0,7", ",,,"])
def test_absent(tmp_path, line):
    (tmp_path / "boxes.txt").write_text(f"1,2,3,4\n{line}\n1,2,3,4\n")
    boxes = read_boxes(tmp_path / "boxes.txt")
    assert boxes.shape == (3, 4) and np.isnan(boxes[1]).all() and not np.isnan(boxes[[0, 2]]).any()


@pytest.mark.parametrize("line", ["1,2,3", "1,2,3,4,5,6,7,8", "1,2,three,4", "1,nan,3,4", "1,2,inf,4", "x y w h"])
def test_bad_line_is_named(tmp_path, line):
    (tmp_path / "boxes.txt").write_text(f"1,2,3,4\n{line}\n")
    with pytest.raises(ValueError, match=r"boxes\.txt, line 2: .*four") as error:
        read_boxes(tmp_path / "boxes.txt")
    assert line in str(error.value)


@given(st.lists(st.tuples(*[st.floats(0.5, 5000)] * 4) | st.just((np.nan,) * 4), min_size=1))
def test_written_boxes_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("boxes") / "a.txt"
    path.write_text(format_boxes(np.array(rows)))
    np.testing.assert_allclose(read_boxes(path), np.array(rows), atol=5.1e-4)


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
    with pytest.raises(FileNotFoundError, match=r"one_A.img holds no frames \(\.jpeg, \.jpg, \.png\)"):
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

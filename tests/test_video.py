"""Frames in, video out."""

import cv2
import numpy as np
import pytest

from ostrack_fast.files import write_atomically
from ostrack_fast.video import DEFAULT_FPS, VideoWriter, open_source


def plain(colour, height=48, width=64):
    return np.full((height, width, 3), colour, np.uint8)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(path, count=5, fps=12.5):
    with VideoWriter(path, fps) as video:
        for index in range(count):
            video.write(plain((40 * index, 0, 200)))


def test_a_video_comes_back(tmp_path):
    write(tmp_path / "new" / "a.mp4")
    assert names(tmp_path / "new") == ["a.mp4"]
    source = open_source(tmp_path / "new" / "a.mp4")
    assert (source.fps, source.size, source.length) == (12.5, (64, 48), 5)
    frames = list(source)
    assert len(frames) == 5
    for index, image in enumerate(frames):
        assert image.shape == (48, 64, 3) and image.dtype == np.uint8
        # RGB: red grows, blue stays.
        assert np.abs(image.reshape(-1, 3).mean(0) - (40 * index, 0, 200)).max() < 12


def test_a_folder_in_natural_order(tmp_path):
    for number in (10, 9, 1, 100):
        cv2.imwrite(str(tmp_path / f"img{number}.png"), plain((0, 0, number)))
    (tmp_path / "notes.txt").write_text("no image")
    source = open_source(str(tmp_path))
    assert (source.fps, source.size, source.length) == (DEFAULT_FPS, (64, 48), 4)
    assert [image[0, 0].tolist() for image in source] == [[n, 0, 0] for n in (1, 9, 10, 100)]


def test_sources_that_are_none(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    (tmp_path / "nothing.mp4").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"absent\.mp4 does not exist"):
        open_source(tmp_path / "absent.mp4")
    with pytest.raises(ValueError, match="holds no images"):
        open_source(tmp_path / "empty")
    for name in ("broken.mp4", "nothing.mp4"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as a video"):
            open_source(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="camera 97 cannot be opened"):
        open_source("97")


def test_a_broken_image_on_the_way(tmp_path):
    cv2.imwrite(str(tmp_path / "1.png"), plain(9))
    (tmp_path / "2.png").write_bytes(b"no image")
    source = open_source(tmp_path)
    with pytest.raises(ValueError, match=r"2\.png cannot be read"):
        list(source)
    (tmp_path / "1.png").unlink()
    with pytest.raises(ValueError, match=r"2\.png cannot be read"):
        open_source(tmp_path)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError, SystemExit])
def test_an_interrupted_video_plays(tmp_path, interruption):
    with pytest.raises(interruption), VideoWriter(tmp_path / "a.mp4", 25) as video:
        video.write(plain(90))
        video.write(plain(90))
        raise interruption
    assert names(tmp_path) == ["a.mp4"]
    assert len(list(open_source(tmp_path / "a.mp4"))) == 2


def test_no_frame_no_file(tmp_path):
    (tmp_path / "old.mp4").write_bytes(b"older")
    for name in ("old.mp4", "new.mp4"):
        with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / name, 25):
            raise KeyboardInterrupt
    assert names(tmp_path) == ["old.mp4"]
    assert (tmp_path / "old.mp4").read_bytes() == b"older"


def test_a_video_has_one_size(tmp_path):
    with pytest.raises(ValueError, match="one size"), VideoWriter(tmp_path / "a.mp4", 25) as video:
        video.write(plain(9))
        video.write(plain(9, 50))
    assert len(list(open_source(tmp_path / "a.mp4"))) == 1


def test_names_that_are_no_video(tmp_path):
    with pytest.raises(ValueError, match=r"\.mp4"):
        VideoWriter(tmp_path / "a.avi", 25)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(ValueError, match="folder"):
        VideoWriter(tmp_path / "folder.mp4", 25)


def test_files_appear_whole_or_not_at_all(tmp_path):
    target = tmp_path / "a.txt"

    def fail(path):
        with open(path, "w") as file:
            file.write("half")
        assert not target.exists()
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomically(target, fail)
    assert names(tmp_path) == []
    write_atomically(target, lambda path: open(path, "w").close())
    assert names(tmp_path) == ["a.txt"]

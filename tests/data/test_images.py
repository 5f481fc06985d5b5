"""Reading, listing and ordering of images, and every file that only looks like one."""

import os
import random
import socket

import cv2
import numpy as np
import pytest

from ostrack_fast.data.images import (
    IMAGE_SUFFIXES,
    BadImage,
    ImageStore,
    decode_image,
    find_images,
    list_images,
    read_image,
)

IMAGE = np.zeros((40, 60, 3), dtype=np.uint8)
IMAGE[:20, :, 0], IMAGE[20:, :, 2] = 200, 90  # RGB
SIDEWAYS = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"


def encoded(suffix=".png"):
    return cv2.imencode(suffix, IMAGE[..., ::-1])[1].tobytes()


def write(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(encoded())


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_kind_is_rgb(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(encoded(suffix))
    image = read_image(tmp_path / f"a{suffix}")
    assert image.dtype == np.uint8 and image.shape == IMAGE.shape
    assert np.abs(image.astype(int) - IMAGE).mean() < 3
    assert list_images(tmp_path) == [tmp_path / f"a{suffix}"]


def test_alpha_is_kept_on_request(tmp_path):
    pixels = np.dstack((IMAGE, np.full((40, 60), 17, np.uint8)))
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png", cv2.IMREAD_UNCHANGED), pixels)


def test_exif_turns_an_image(tmp_path):
    jpeg = encoded(".jpg")
    segment = b"\xff\xe1" + (2 + len(SIDEWAYS)).to_bytes(2, "big") + SIDEWAYS
    (tmp_path / "a.jpg").write_bytes(jpeg[:2] + segment + jpeg[2:])
    assert read_image(tmp_path / "a.jpg").shape == (60, 40, 3)


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_part_of_an_image_is_none(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    data = cv2.imencode(suffix, noise)[1].tobytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(data)
    read_image(path)
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=rf"cut\{suffix} cannot be read as an image: .*damaged"):
        read_image(path)


def test_what_is_no_image_is_named(tmp_path):
    for name, data in (("text.jpg", b"no image"), ("empty.jpg", b""), ("resource.jpg", b"\0\5\x16\7" + bytes(80))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name} cannot be read as an image"):
            read_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        read_image(tmp_path / "none.jpg")
    # 60,000 x 60,000 pixels, so its header says: more than OpenCV decodes.
    bomb = bytearray(encoded())
    bomb[16:24] = (60000).to_bytes(4, "big") * 2
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(ValueError, match=r"bomb\.png cannot be read as an image"):
        read_image(tmp_path / "bomb.png")


def test_pipes_and_sockets_are_not_waited_for(tmp_path, monkeypatch):
    write(tmp_path, "1.jpg")
    os.mkfifo(tmp_path / "2.jpg")
    with pytest.raises(ValueError, match=r"2\.jpg .*not a regular file"):
        read_image(tmp_path / "2.jpg")
    with pytest.raises(ValueError, match=r"2\.jpg .*no regular file"):
        find_images(tmp_path)
    (tmp_path / "2.jpg").unlink()
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("3.png")
        with pytest.raises(ValueError, match=r"3\.png .*no regular file"):
            find_images(tmp_path)


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    write(tmp_path, "1.jpg", "2.JPG", "._1.jpg", ".hidden.png", "notes.txt")
    write(tmp_path / "3.jpg", "inside.jpg")
    write(tmp_path / ".trash", "old.jpg")
    write(tmp_path / "__MACOSX", "1.jpg")
    assert [path.name for path in find_images(tmp_path)] == ["1.jpg", "2.JPG"]
    names = [str(path.relative_to(tmp_path)) for path in find_images(tmp_path, recursive=True)]
    assert names == ["1.jpg", "2.JPG", os.path.join("3.jpg", "inside.jpg")]


def test_a_hidden_parent_hides_nothing(tmp_path):
    write(tmp_path / ".cache" / "clip", "1.jpg")
    assert len(find_images(tmp_path / ".cache" / "clip")) == 1


@pytest.mark.parametrize(
    "names",
    [
        "8 9 10 11 100",
        "0008 9 10 00011",
        "-10 -9.5 -1 0 1 10",
        "1700000000.25 1700000000.5 1700000001",
        "0.9 0.91 1.05 1.5 10.1",
        "clip-2 clip-10",
        "clip.2.9 clip.2.10",
        "a1b9 a1b10 a2b1 b1",
        "Frame2 frame10",
        "1 2 2a 10",
        "9007199254740993 9007199254740994",
        "動画2 動画10",
    ],
)
def test_natural_order(tmp_path, names):
    names = [f"{name}.png" for name in names.split()]
    shuffled = random.Random(0).sample(names, len(names))
    write(tmp_path, *shuffled)
    assert [path.name for path in find_images(tmp_path)] == names


def test_folders_are_ordered_naturally_too(tmp_path):
    for folder in ("10", "9"):
        write(tmp_path / folder, "2.png", "1.png")
    found = [str(path.relative_to(tmp_path)) for path in find_images(tmp_path, recursive=True)]
    assert found == [os.path.join("9", "1.png"), os.path.join("9", "2.png"), *(
        os.path.join("10", name) for name in ("1.png", "2.png"))]  # fmt: skip


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"\xff\xfe1.png")
    try:
        write(tmp_path, name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (path,) = find_images(tmp_path)
    np.testing.assert_array_equal(read_image(path), IMAGE)


def test_empty_and_missing_folders(tmp_path):
    assert find_images(tmp_path) == []
    with pytest.raises(FileNotFoundError, match=r"holds no image \(\.bmp"):
        list_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="not a folder"):
        list_images(tmp_path / "none")


def test_images_beyond_the_memory_limit_are_decoded_on_demand(tmp_path):
    write(tmp_path, "0.png", "1.png", "2.png")
    store = ImageStore(list_images(tmp_path), memory_limit=IMAGE.nbytes + 1)
    assert len(store) == 3
    for i in range(3):
        np.testing.assert_array_equal(store[i], IMAGE)
    for i in range(3):
        (tmp_path / f"{i}.png").unlink()
    np.testing.assert_array_equal(store[1], IMAGE)
    with pytest.raises(FileNotFoundError, match=r"2\.png"):
        store[2]


def test_many_images_keep_their_order_and_a_bad_one_beyond_the_limit_is_found_on_demand(tmp_path):
    levels = np.arange(150, dtype=np.uint8)
    for level in levels:
        cv2.imwrite(str(tmp_path / f"{level}.png"), np.full((4, 5, 3), level, np.uint8))
    (tmp_path / "150.png").write_bytes(b"damaged")
    paths = list_images(tmp_path)
    store = ImageStore(paths, memory_limit=150 * 4 * 5 * 3)
    assert [store[i][0, 0, 0] for i in range(150)] == levels.tolist()
    with pytest.raises(BadImage, match=r"150\.png"):
        store[150]
    with pytest.raises(BadImage, match=r"150\.png"):
        ImageStore(paths, memory_limit=1 << 20)

"""Frames in, video out."""

import contextlib
import functools
import http.client
import http.server
import io
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from ostrack_fast.video import DEFAULT_FPS, VideoWriter, open_source
from ostrack_fast.video.capture import Capture
from ostrack_fast.video.pipe import Pipe


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
    for number in (1, 3, 5):
        cv2.imwrite(str(tmp_path / f"{number}.png"), plain((0, 0, number)))
    (tmp_path / "2.png").write_bytes(b"no image")
    (tmp_path / "4.png").write_bytes(b"")
    (tmp_path / "6.png").write_bytes((tmp_path / "5.png").read_bytes()[:60])
    source = open_source(tmp_path)
    assert source.length == 6 and source.broken == []
    assert [(image[0, 0, 0], list(source.broken)) for image in source] == [(1, []), (3, [1]), (5, [1, 3])]
    assert source.broken == [1, 3, 5]
    for number in (1, 3, 5):
        (tmp_path / f"{number}.png").unlink()
    with pytest.raises(ValueError, match=r"no image of .* can be read: .*2\.png cannot be read"):
        open_source(tmp_path)


def test_what_is_no_frame_of_a_folder(tmp_path):
    cv2.imwrite(str(tmp_path / "1.png"), plain(9))
    (tmp_path / "._1.png").write_bytes(b"\0\5\x16\7 of macOS")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "0.png").mkdir()
    source = open_source(tmp_path)
    assert source.length == 1 and len(list(source)) == 1 and source.broken == []


def avi(path, codec, count=12):
    """A video of grey frames, each brighter than the one before; returns where in the file each one's data are."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 25, (160, 120))
    for index in range(count):
        writer.write(plain(min(20 * index, 255), 120, 160))
    writer.release()
    data, at, found = path.read_bytes(), path.read_bytes().find(b"movi"), []
    for _ in range(count):
        at = data.find(b"00dc", at + 4)
        found.append(slice(at + 8, at + 8 + struct.unpack("<I", data[at + 4 : at + 8])[0]))
    return found


@pytest.mark.parametrize("bad", [[6], [0], [0, 1], [11], [5, 6, 7], [3, 9], [*range(1, 11)], [9, 10, 11]])
@pytest.mark.parametrize("codec", ["MJPG", "png "])
def test_frames_that_cannot_be_decoded(tmp_path, codec, bad):
    frames = avi(tmp_path / "a.avi", codec)
    data = bytearray((tmp_path / "a.avi").read_bytes())
    for index in bad:
        data[frames[index]] = bytes(frames[index].stop - frames[index].start)
    (tmp_path / "a.avi").write_bytes(data)
    source = open_source(tmp_path / "a.avi")
    read = []
    for frame in source:
        # Known before the frame that follows them: brightness tells which one this is.
        read.append(round(float(frame.mean()) / 20))
        assert len(read) + len(source.broken) == read[-1] + 1
    assert sorted([*read, *source.broken]) == list(range(12)) and set(bad) <= set(source.broken)
    # FFmpeg joins a PNG frame that it does not recognize to the next one, which is lost too.
    assert codec == "png " or source.broken == bad


def test_a_header_that_claims_too_much(tmp_path):
    """A recording that was cut off has no broken frames, only fewer."""
    frames = avi(tmp_path / "a.avi", "MJPG")
    (tmp_path / "a.avi").write_bytes((tmp_path / "a.avi").read_bytes()[: frames[6].stop])
    source = open_source(tmp_path / "a.avi")
    assert len(list(source)) == 7 and source.broken == [] and source.cut_off()


def test_a_rate_that_varies_is_no_recording_cut_off(tmp_path):
    """Matroska claims how long the video lasts: at the first frames' rate it would have 80 frames."""
    av = pytest.importorskip("av", reason="the extra video is not installed")
    times = [0, 40, 80, 120, 160, 1000, 1001, 3160]
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time in times:
            picture = av.VideoFrame.from_ndarray(plain(time // 20, 120, 160), format="rgb24")
            picture.pts, picture.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    source = open_source(tmp_path / "a.mkv")
    assert len(list(source)) == len(times) < source.length
    assert source.broken == [] and not source.cut_off()


@pytest.mark.parametrize("codec, name", [("VP80", "a.webm"), ("mp4v", "a.ts"), ("FFV1", "a.mkv"), ("MJPG", "a.mov")])
def test_containers_whose_header_only_estimates(tmp_path, codec, name):
    writer = cv2.VideoWriter(str(tmp_path / name), cv2.VideoWriter.fourcc(*codec), 29.97, (160, 120))
    if not writer.isOpened():
        pytest.skip(f"this OpenCV writes no {codec}")
    for index in range(40):
        writer.write(plain(5 * index, 120, 160))
    writer.release()
    source = open_source(tmp_path / name)
    assert len(list(source)) == 40 and source.broken == []


NAMES = [b"12:30:05.mp4", b"file:x.mp4", b"http:x.mp4", b"50%d%03d.mp4", b"a[1]{2}.mp4", b"-o.mp4", "動画.mp4".encode(),
         b"caf\xe9.mp4", b"a b'c\"d.mp4", b"a\nb.mp4", b"n" * 251 + b".mp4", b"no suffix", b"0.5", b"~"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_of_every_kind(tmp_path, monkeypatch, name):
    write(tmp_path / "plain.mp4")
    frames = [frame.sum() for frame in open_source(tmp_path / "plain.mp4")]
    folder = tmp_path / os.fsdecode(b"f\xe9%d:")
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    for place in (Path(), Path(folder.name), folder):
        path = place / os.fsdecode(name)
        if path.suffix == ".mp4":
            write(path)
        else:
            path.write_bytes((tmp_path / "plain.mp4").read_bytes())
        assert [frame.sum() for frame in open_source(path)] == frames
        assert [frame.sum() for frame in open_source(str(path))] == frames
    assert len(os.listdir(folder)) == 1


def test_images_with_names_that_are_not_text(tmp_path):
    folder = tmp_path / os.fsdecode(b"\xe9")
    folder.mkdir()
    cv2.imwrite(str(tmp_path / "1.png"), plain((0, 0, 7)))
    (folder / os.fsdecode(b"1\xff.png")).write_bytes((tmp_path / "1.png").read_bytes())
    assert [frame[0, 0].tolist() for frame in open_source(folder)] == [[7, 0, 0]]


@pytest.mark.parametrize(
    "fps", [0.0004, 0.001, 0.0017, 0.5, 1, 12.5, 23.976, 29.97002997, 59.94, 65.535, 65.536, 65.6789, 66.667, 105.6,
            119.88, 119.9214, 120.0371, 196.3, 239.9213, 480, 655.37, 999.9, 1234.567, 6553.61, 65535, 1e9]
)  # fmt: skip
def test_any_frame_rate(tmp_path, fps):
    write(tmp_path / "a.mp4", 3, fps)
    source = open_source(tmp_path / "a.mp4")
    assert len(list(source)) == 3
    assert source.fps == pytest.approx(min(max(fps, 0.002), 65535), rel=1e-3, abs=6e-4)


@pytest.mark.parametrize("fps", [0, -25, float("nan"), float("inf")])
def test_what_is_no_frame_rate(tmp_path, fps):
    with pytest.raises(ValueError, match="is no rate"):
        VideoWriter(tmp_path / "a.mp4", fps)


def test_frames_too_large_for_the_format(tmp_path):
    with pytest.raises(OSError, match=r"sides up to 8191.*\(8192, 16\)"), VideoWriter(tmp_path / "a.mp4", 25) as video:
        video.write(plain(0, 16, 8192))
    assert names(tmp_path) == []


@contextlib.contextmanager
def file_size_limit(limit):
    """Writes of this process beyond the limit fail as on a full disk. Also pytest's own, so only inside."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("limit", [0, 40, 6000, 100_000])
def test_a_video_that_does_not_arrive_replaces_none(tmp_path, limit):
    write(tmp_path / "a.mp4")
    before = (tmp_path / "a.mp4").read_bytes()
    rng = np.random.default_rng(0)
    with (
        file_size_limit(limit),
        pytest.raises(OSError, match=r"a\.mp4.*"),
        VideoWriter(tmp_path / "a.mp4", 25) as video,
    ):
        for _ in range(12):
            video.write(rng.integers(0, 256, (120, 160, 3), dtype=np.uint8))
    assert names(tmp_path) == ["a.mp4"] and (tmp_path / "a.mp4").read_bytes() == before


def test_a_video_with_too_few_frames_replaces_none(tmp_path, monkeypatch):
    """A writer that loses frames, as OpenCV's does without a word."""
    write(tmp_path / "a.mp4", 4)
    before = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(OSError, match="of 3 frames 2 arrived"), VideoWriter(tmp_path / "a.mp4", 25) as video:
        for _ in range(2):
            video.write(plain(9))
        video.count += 1
    assert names(tmp_path) == ["a.mp4"] and (tmp_path / "a.mp4").read_bytes() == before


def test_videos_into_links_devices_and_pipes(tmp_path):
    (tmp_path / "real.mp4").write_bytes(b"old")
    (tmp_path / "real.mp4").chmod(0o600)
    (tmp_path / "link.mp4").symlink_to("real.mp4")
    write(tmp_path / "link.mp4")
    assert (tmp_path / "link.mp4").is_symlink() and len(list(open_source(tmp_path / "real.mp4"))) == 5
    assert (tmp_path / "real.mp4").stat().st_mode & 0o777 == 0o600
    write("/dev/null")
    os.mkfifo(tmp_path / "fifo")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "fifo").read_bytes()))
    reader.start()
    write(tmp_path / "fifo")
    reader.join()
    (tmp_path / "copy.mp4").write_bytes(read[0])
    assert len(list(open_source(tmp_path / "copy.mp4"))) == 5
    assert names(tmp_path) == ["copy.mp4", "fifo", "link.mp4", "real.mp4"]


@pytest.fixture
def large(tmp_path):
    """A video whose index stands behind more data than a reader looks ahead."""
    rng = np.random.default_rng(0)
    with VideoWriter(tmp_path / "large.mp4", 25) as video:
        for _ in range(30):
            video.write(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8))
    assert (tmp_path / "large.mp4").stat().st_size > 1_000_000
    return tmp_path / "large.mp4"


def pump(path, fifo):
    def run():
        with open(fifo, "wb") as out, contextlib.suppress(BrokenPipeError):
            out.write(path.read_bytes())

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_pipes_are_sources(tmp_path, large):
    avi(tmp_path / "a.avi", "MJPG")
    # A pipe each: what still reads the one before would take the next one's bytes.
    for number, path in enumerate((large, tmp_path / "a.avi")):
        expected = [frame.sum() for frame in open_source(path)]
        fifo = tmp_path / f"fifo{number}"
        os.mkfifo(fifo)
        thread = pump(path, fifo)
        assert [frame.sum() for frame in open_source(fifo)] == expected
        thread.join()
    for name, content in (("empty", b""), ("text", b"no video at all")):
        (tmp_path / "none").write_bytes(content)
        os.mkfifo(tmp_path / name)
        thread = pump(tmp_path / "none", tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} cannot be read as a video"):
            open_source(tmp_path / name)
        thread.join()


def test_a_pipe_is_left_in_the_middle(tmp_path):
    avi(tmp_path / "a.avi", "MJPG", 3000)
    os.mkfifo(tmp_path / "fifo")
    thread = pump(tmp_path / "a.avi", tmp_path / "fifo")
    source = open_source(tmp_path / "fifo")
    next(iter(source))
    source.frames.close()
    thread.join()


def test_standard_input_is_a_source(large):
    code = "from ostrack_fast.video import open_source; print(len(list(open_source('-'))))"
    with open(large, "rb") as file:
        redirected = subprocess.run([sys.executable, "-c", code], stdin=file, capture_output=True, check=True)
    piped = subprocess.run([sys.executable, "-c", code], input=large.read_bytes(), capture_output=True, check=True)
    assert redirected.stdout == piped.stdout == b"30\n"


@pytest.fixture
def server(tmp_path):
    """Serves the folder over HTTP, files only as a whole: `SimpleHTTPRequestHandler` knows no ranges."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_addresses_are_sources(tmp_path, large, server):
    avi(tmp_path / "a.avi", "MJPG")
    for path in (large, tmp_path / "a.avi"):
        source = open_source(f"http://user:secret@{server}/{path.name}")
        assert source.name == f"http://{server}/{path.name}"
        assert len(list(source)) == {"large.mp4": 30, "a.avi": 12}[path.name] and source.broken == []
    for address in (f"http://{server}/absent.mp4", "http://127.0.0.1:9/a.mp4", "rtsp://me:secret@127.0.0.1:9/a"):
        with pytest.raises(OSError, match="cannot be read") as error:
            open_source(address)
        assert "secret" not in str(error.value)


def test_addresses_that_are_none():
    for address in ("https://127.0.0.1:9/a b", "http://[::1/a.mp4", "http://127.0.0.1:port/a.mp4"):
        with pytest.raises(OSError, match=f"{re.escape(address)} cannot be read"):
            open_source(address)


def test_a_download_that_stops_early_is_told(tmp_path, large):
    class Half(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(large.stat().st_size))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(large.read_bytes()[:300_000])

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Half) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(OSError, match=r"large\.mp4 cannot be read: the connection ended \d+ bytes early"):
            open_source(f"http://127.0.0.1:{server.server_port}/large.mp4")
        server.shutdown()


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), http.client.IncompleteRead(b"", 9)])
def test_a_pipe_that_breaks_off_is_told_behind_its_frames(tmp_path, error):
    class Breaking(io.BytesIO):
        def read(self, size=-1):
            data = super().read(size)
            if not data:
                raise error
            return data

    avi(tmp_path / "a.avi", "MJPG", 300)
    content = (tmp_path / "a.avi").read_bytes()
    frames = Capture.of_pipe(Pipe(Breaking(content[: len(content) // 2]))).frames()
    seen = 0
    with pytest.raises(OSError, match=r"the video breaks off after 1\d\d frames: "):
        for _ in frames:
            seen += 1
    assert 100 < seen < 200


def test_sources_that_cannot_be_read(tmp_path):
    for source in ("/dev/null", "/dev/zero"):
        with pytest.raises(ValueError, match="a device"):
            open_source(source)
    for source in ("", "9" * 30, "-1", "3.5"):
        with pytest.raises(FileNotFoundError):
            open_source(source)
    with pytest.raises(OSError, match="File name too long"):
        open_source("n" * 300)
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as one:
        one.bind(str(tmp_path / "s"))
        with pytest.raises(ValueError, match="a socket"):
            open_source(tmp_path / "s")


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

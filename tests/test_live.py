"""Live video: reading in the background, a camera's stream from another process, and what `track` prints meanwhile."""

import contextlib
import json
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest

from ostrack_fast.cli._latency import Latencies
from ostrack_fast.cli._run import _until
from ostrack_fast.interrupts import Interrupts
from ostrack_fast.video import FrameSource, VideoWriter, open_source
from ostrack_fast.video.h264 import has_h264
from ostrack_fast.video.live import LiveFrames


def source(frames, **facts):
    return FrameSource("made", 25.0, (8, 8), None, iter(frames), **facts)


def numbered(count, gate=None):
    for number in range(count):
        if gate is not None:
            gate.wait(30)
        yield np.full((8, 8, 3), number, np.uint8)


def test_every_frame_in_order():
    with LiveFrames(source(numbered(200)), newest=False) as frames:
        assert [int(frame[0, 0, 0]) for frame in frames] == list(range(200))
    assert frames.passed_over == 0


def test_the_newest_frame_wins():
    read = threading.Event()

    def camera():
        yield from numbered(100)
        read.set()

    with LiveFrames(source(camera()), newest=True) as frames:
        assert read.wait(30)
        while frames._reader.is_alive():
            time.sleep(0.001)
        assert [int(frame[0, 0, 0]) for frame in frames] == [99]
    assert frames.passed_over == 99


def test_no_more_than_a_few_frames_are_read_ahead():
    produced = []

    def recorded():
        for frame in numbered(100):
            produced.append(frame)
            yield frame

    with LiveFrames(source(recorded()), newest=False) as frames:
        next(frames)
        for _ in range(100):
            if len(produced) >= 6:
                break
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(produced) <= 6
    frames._reader.join(30)
    assert not frames._reader.is_alive(), "leaving ends the reading"


def test_what_stops_the_reading_is_raised_after_the_last_frame():
    def breaking():
        yield from numbered(3)
        raise OSError("the cable is out")

    with LiveFrames(source(breaking()), newest=False) as frames:
        assert [int(next(frames)[0, 0, 0]) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(OSError, match="cable"):
            next(frames)


def test_a_wish_to_stop_is_heard_while_a_stream_is_silent():
    silent, stop = threading.Event(), Interrupts()

    def falling_silent():
        yield from numbered(2)
        silent.wait()

    with LiveFrames(source(falling_silent()), newest=False) as frames:
        coming = _until(stop, frames)
        assert [int(next(coming)[0, 0, 0]) for _ in range(2)] == [0, 1]
        threading.Timer(0.3, setattr, (stop, "requested", True)).start()
        assert next(coming, None) is None and not silent.is_set() and frames._reader.is_alive()
        silent.set()


class Stream:
    """Stands in for OpenCV's capture of an address: some frames, then a read that ends when its time is up."""

    def __init__(self, address, backend, parameters):
        self.parameters = dict(zip(parameters[::2], parameters[1::2], strict=True))
        self.left = 3

    def read(self):
        self.left -= 1
        if self.left >= 0:
            return True, np.zeros((8, 8, 3), np.uint8)
        Stream.clock += self.parameters[cv2.CAP_PROP_READ_TIMEOUT_MSEC] / 1000
        return False, None

    def get(self, _):
        return 25.0

    def isOpened(self):
        return True

    def release(self):
        pass


def test_a_stream_that_falls_silent_is_told_after_one_wait(monkeypatch):
    Stream.clock = 0.0
    monkeypatch.setattr("ostrack_fast.video.capture.cv2.VideoCapture", Stream)
    monkeypatch.setattr("ostrack_fast.video.capture.monotonic", lambda: Stream.clock)
    opened = open_source("rtsp://camera/1")
    with pytest.raises(OSError, match="fell silent: after 3 frames none for 15 seconds"):
        list(opened)
    assert Stream.clock == 15


def test_latencies_without_keeping_them():
    random = np.random.default_rng(0)
    times = random.lognormal(-4, 1, 5000)
    latencies = Latencies()
    for each in times:
        latencies.add(each)
    latencies.add(0.0)
    latencies.add(1e9)
    for percent in (1, 50, 95, 99):
        assert latencies.percentile(percent) == pytest.approx(np.percentile(times, percent), rel=0.03)
    assert latencies.count == 5002 and len(latencies._bins) < 5000
    assert Latencies().percentile(50) == 0.0


# A camera as many are: one HTTP answer that never ends, of JPEG files, each when its time has come.
CAMERA = """
import sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import cv2, numpy as np

class Camera(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for number in range(int(sys.argv[1])):
            frame = np.full((96, 128, 3), 20, np.uint8)
            frame[30:60, 40 + number % 40 : 70 + number % 40] = (10, 120, 250)
            jpeg = cv2.imencode(".jpg", frame)[1].tobytes()
            head = f"--frame\\r\\nContent-Type: image/jpeg\\r\\nContent-Length: {len(jpeg)}\\r\\n\\r\\n"
            try:
                self.wfile.write(head.encode() + jpeg + b"\\r\\n")
            except OSError:
                return
            time.sleep(0.01)
    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Camera)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@contextlib.contextmanager
def camera(frames):
    """The address of a camera in another process, for `frames` frames a visitor."""
    process = subprocess.Popen([sys.executable, "-c", CAMERA, str(frames)], stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/video.mjpg"
    finally:
        process.kill()
        process.communicate()


def test_a_camera_in_another_process():
    with camera(60) as address:
        with LiveFrames(open_source(address), newest=False) as frames:
            every = [frame.shape for frame in frames]
        assert every == [(96, 128, 3)] * 60
        with LiveFrames(open_source(address), newest=True) as frames:
            count = 0
            for _ in frames:
                count += 1
                time.sleep(0.05)
        assert count < 60 and count + frames.passed_over == 60


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    import torch

    from ostrack_fast import build_ostrack
    from ostrack_fast.config import ModelConfig
    from ostrack_fast.model.checkpoint import save_weights

    torch.manual_seed(0)
    tiny = ModelConfig(template_size=32, search_size=64, embed_dim=32, depth=2, num_heads=1, head_channels=8)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(build_ostrack(tiny).state_dict(), tiny, path)
    return path


def run(*arguments, **how):
    command = [sys.executable, "-m", "ostrack_fast.cli", "track", *map(str, arguments), "--device", "cpu"]
    return subprocess.run(command, capture_output=True, text=True, **how)


def test_boxes_of_several_targets_as_they_come(tmp_path, weights):
    with camera(40) as address:
        done = run(address, "--box", "40,30,30,30", "--box", "80,50,20,20", "--weights", weights, "--frames", "every",
                   "--json-lines", "--boxes", tmp_path / "boxes.txt", "-o", tmp_path / "out.mp4")  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["frame"] for line in lines] == list(range(40))
    assert lines[0]["targets"] == [
        {"id": 0, "box": [40, 30, 30, 30], "score": None, "lost": False},
        {"id": 1, "box": [80, 50, 20, 20], "score": None, "lost": False},
    ]
    assert all(0 < target["score"] < 1 for line in lines[1:] for target in line["targets"])
    rows = [line.split(",") for line in (tmp_path / "boxes.txt").read_text().splitlines()]
    assert len(rows) == 80 and rows[0] == [
        "1",
        "1",
        "41.000",
        "31.000",
        "30.000",
        "30.000",
        "1.000000",
        "-1",
        "-1",
        "-1",
    ]
    assert float(rows[-1][2]) - 1 == pytest.approx(lines[-1]["targets"][1]["box"][0], abs=1e-3)
    assert "p50" in done.stderr and "p99" in done.stderr and "tracked 40 frames" in done.stderr
    assert len(list(open_source(tmp_path / "out.mp4"))) == 40


@pytest.mark.skipif(not has_h264(), reason="PyAV, of the extra video, is not installed")
@pytest.mark.parametrize("size", [(64, 48), (65, 47)])
def test_h264(tmp_path, size):
    with VideoWriter(tmp_path / "a.mp4", 29.97, "best") as video:
        for number in range(9):
            video.write(np.full((size[1], size[0], 3), 25 * number, np.uint8))
    assert video.codec == "h264"
    read = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    assert int(read.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little") in (b"avc1", b"h264")
    assert read.get(cv2.CAP_PROP_FPS) == pytest.approx(29.97, abs=1e-3)
    frames = list(open_source(tmp_path / "a.mp4"))
    assert len(frames) == 9 and frames[0].shape == (size[1] // 2 * 2, size[0] // 2 * 2, 3)
    assert all(abs(float(frame.mean()) - 25 * number) < 3 for number, frame in enumerate(frames))


def test_without_pyav_the_video_is_mpeg4(tmp_path, monkeypatch):
    monkeypatch.setattr("ostrack_fast.video.writer.has_h264", lambda: False)
    with VideoWriter(tmp_path / "a.mp4", 25, "best") as video:
        video.write(np.zeros((48, 64, 3), np.uint8))
    assert video.codec == "mp4v" and len(list(open_source(tmp_path / "a.mp4"))) == 1
    with pytest.raises(ValueError, match="pip install"):
        VideoWriter(tmp_path / "b.mp4", 25, "h264")
    with pytest.raises(ValueError, match="none of"):
        VideoWriter(tmp_path / "b.mp4", 25, "hevc")

"""A small network, a made video, and the server's application around them."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi", reason="the server needs the extra serve: pip install 'ostrack_fast[serve]'")
pytest.importorskip("av", reason="the server needs the extra serve: pip install 'ostrack_fast[serve]'")

from fastapi.testclient import TestClient

from ostrack_fast import MultiTracker, build_ostrack
from ostrack_fast.config import ModelConfig
from ostrack_fast.serve import Limits, create_app
from ostrack_fast.video.h264 import H264Encoder

TINY = ModelConfig(
    template_size=32, search_size=64, embed_dim=32, depth=2, num_heads=1, head_channels=8,
    ce_layers=(1,), ce_keep_ratio=(0.7,),
)  # fmt: skip
FRAMES, WIDTH, HEIGHT = 12, 160, 120
BOX = [40, 30, 30, 24]


def picture(number):
    """A frame whose brightness tells its number, with a bright square that moves."""
    frame = np.full((HEIGHT, WIDTH, 3), 15 * number + 20, np.uint8)
    frame[30:54, 40 + 2 * number : 70 + 2 * number] = (250, 120, 10)
    return frame


@pytest.fixture(scope="session")
def video(tmp_path_factory):
    """The bytes of an H.264 video."""
    path = tmp_path_factory.mktemp("video") / "made.mp4"
    encoder = H264Encoder(str(path), 25, (WIDTH, HEIGHT))
    for number in range(FRAMES):
        encoder.write(picture(number))
    encoder.close()
    return path.read_bytes()


@pytest.fixture(scope="session")
def make_tracker():
    torch.manual_seed(0)
    model = build_ostrack(TINY)
    return lambda: MultiTracker(model, "cpu", "float32")


@pytest.fixture
def serving(make_tracker):
    """serving(limits, token): a client of a new server on this machine's own name."""
    with contextlib.ExitStack() as open_clients:

        def serve(limits=None, token=None, base_url="http://127.0.0.1:8000"):
            app = create_app(make_tracker, limits or Limits(), token)
            return open_clients.enter_context(TestClient(app, base_url=base_url))

        yield serve


def answer(socket):
    """The next message of a session's websocket: its JSON, and the bytes of its picture."""
    data = socket.receive_bytes()
    length = int.from_bytes(data[:4], "little")
    return json.loads(data[4 : 4 + length]), data[4 + length :]


def ask(socket, **message):
    socket.send_json(message)
    return answer(socket)

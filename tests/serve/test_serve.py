"""The server of `ostrack-fast serve`, by FastAPI's own client."""

import contextlib
import csv
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from socket import SO_REUSEADDR, SOL_SOCKET
from socket import socket as Socket
from urllib.request import Request, urlopen

import av
import cv2
import numpy as np
import pytest
import torch
from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocketDisconnect
from websockets.sync.client import connect

from ostrack_fast import build_ostrack
from ostrack_fast.cli import main
from ostrack_fast.model.checkpoint import save_weights
from ostrack_fast.serve import Limits, app
from ostrack_fast.serve.session import VideoSession
from ostrack_fast.serve.sessions import Refused, Sessions
from ostrack_fast.serve.stored import StoredVideo

from .conftest import BOX, FRAMES, HEIGHT, TINY, WIDTH, answer, ask, picture


def opened(client, video):
    facts = client.post("/sessions/video", content=video)
    assert facts.status_code == 200, facts.text
    return facts.json()["id"]


def connected(client, name, **how):
    """The session's websocket; by its whole address, as the client takes a short one for another host's."""
    return client.websocket_connect(f"{str(client.base_url).replace('http', 'ws', 1)}/sessions/{name}", **how)


def played(socket, frame=0):
    """Play to the end; returns the state of every frame shown."""
    socket.send_json({"do": "play", "frame": frame})
    states = []
    while True:
        state, jpeg = answer(socket)
        if state.get("paused"):
            return states
        assert "error" not in state, state
        assert jpeg
        states.append(state)
        socket.send_json({"do": "seen"})


def number_of(jpeg):
    grey = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[:20].mean()
    return round((grey - 20) / 15)


def test_a_video_from_upload_to_download(serving, video):
    client = serving()
    facts = client.post("/sessions/video", content=video).json()
    assert (facts["frames"], facts["width"], facts["height"]) == (FRAMES, WIDTH, HEIGHT)
    assert facts["fps"] == pytest.approx(25)
    with connected(client, facts["id"]) as socket:
        state, jpeg = ask(socket, do="show", frame=7)
        assert state["frame"] == 7 and state["targets"] == [] and number_of(jpeg) == 7
        state, _ = ask(socket, do="box", frame=0, target=None, box=BOX)
        assert state["given"] == 0 and state["targets"] == [{"id": 0, "box": BOX, "score": None, "lost": False}]
        states = played(socket)
    assert [state["frame"] for state in states] == list(range(FRAMES))
    for state in states[1:]:
        (target,) = state["targets"]
        assert 0 < target["score"] < 1
        region = state["regions"]["0"]
        # ceil(0.7 * 16) of 16 cells are left, around the box.
        assert len(region["candidates"]) == 12 and region["grid"] == 4 and region["side"] > 50
    rows = list(csv.DictReader(io.StringIO(client.get(f"/sessions/{facts['id']}/boxes.csv").text)))
    assert [int(row["frame"]) for row in rows] == list(range(FRAMES)) and rows[0]["score"] == "nan"
    assert [float(row["x"]) for row in rows] == pytest.approx(
        [state["targets"][0]["box"][0] for state in states], abs=0.01
    )
    film = client.get(f"/sessions/{facts['id']}/video.mp4")
    assert film.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(film.content)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == FRAMES and frames[0].shape == (HEIGHT, WIDTH, 3)
    # The box is drawn: its orange edge is not in the original.
    assert np.abs(frames[0].astype(int) - picture(0)).max() > 100


def test_it_tracks_as_a_tracker_does(serving, video, make_tracker):
    client = serving()
    name = opened(client, video)
    with connected(client, name) as socket:
        ask(socket, do="box", frame=0, target=None, box=BOX)
        states = played(socket)
    frames = [frame.to_ndarray(format="rgb24") for frame in av.open(io.BytesIO(video)).decode(video=0)]
    tracker = make_tracker()
    tracker.add(frames[0], BOX)
    for state, frame in zip(states[1:], frames[1:], strict=True):
        assert state["targets"][0]["box"] == pytest.approx(tracker.track(frame)[0].box, abs=0.01)


def test_several_targets_and_a_correction(serving, video):
    client = serving()
    name = opened(client, video)
    with connected(client, name) as socket:
        ask(socket, do="box", frame=0, target=None, box=BOX)
        ask(socket, do="box", frame=4, target=None, box=[80, 60, 20, 20])
        first = played(socket)
        assert [len(state["targets"]) for state in first] == [1] * 4 + [2] * 8
        corrected, _ = ask(socket, do="box", frame=6, target=0, box=[50, 40, 36, 30])
        assert {target["id"]: target["box"] for target in corrected["targets"]}[0] == [50, 40, 36, 30]
        second = played(socket, 4)
        boxes = [[{t["id"]: t["box"] for t in state["targets"]} for state in run] for run in (first[4:], second)]
        assert boxes[0][:2] == boxes[1][:2], "what precedes the correction stays"
        assert [each[1] for each in boxes[0]] == [each[1] for each in boxes[1]], "and so does the other target"
        assert boxes[1][2][0] == [50, 40, 36, 30] and boxes[0][3][0] != boxes[1][3][0]
        # Back to before the correction: the older template is used up to it, and its boxes are found again.
        ask(socket, do="box", frame=0, target=0, box=BOX)
        third = played(socket)
        assert [state["targets"][0]["box"] for state in third[:6]] == [s["targets"][0]["box"] for s in first[:6]]
        assert third[6]["targets"][0]["box"] == [50, 40, 36, 30]
        assert third[8]["targets"][0]["box"] == second[4]["targets"][0]["box"]
        assert ask(socket, do="drop", target=1)[0] == {"dropped": 1}
        assert [t["id"] for t in ask(socket, do="show", frame=11)[0]["targets"]] == [0]


def jpeg(number):
    return cv2.imencode(".jpg", picture(number)[..., ::-1])[1].tobytes()


def test_a_webcam(serving):
    client = serving()
    name = client.post("/sessions/webcam").json()["id"]
    with connected(client, name) as socket:
        for number in range(8):
            socket.send_bytes(jpeg(number))
            state, none = answer(socket)
            assert state["frame"] == number and none == b""
            assert len(state["targets"]) == (number > 2)
            if number == 2:
                assert ask(socket, do="box", frame=2, target=None, box=BOX)[0]["given"] == 0
            if number == 5:
                assert "came last" in ask(socket, do="box", frame=2, target=0, box=BOX)[0]["error"]
                assert ask(socket, do="box", frame=5, target=0, box=BOX)[0]["targets"][0]["box"] == BOX
        assert "cannot" in ask(socket, do="play", frame=0)[0]["error"]
        socket.send_bytes(b"GIF89a")
        assert "JPEG" in answer(socket)[0]["error"]
    film = client.get(f"/sessions/{name}/video.mp4").content
    assert sum(1 for _ in av.open(io.BytesIO(film)).decode(video=0)) == 7
    assert len(client.get(f"/sessions/{name}/boxes.csv").text.splitlines()) == 1 + 6


def test_a_picture_of_gigabytes_is_not_decoded(serving, monkeypatch):
    sides = []
    decode = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: sides.append(1) or decode(data, flags))
    small = cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].tobytes()
    start = small.index(b"\xff\xc0") + 5
    client = serving()
    with connected(client, client.post("/sessions/webcam").json()["id"]) as socket:
        for claimed in ((30000, 30000), (65535, 16), (0, 0)):
            size = b"".join(side.to_bytes(2, "big") for side in claimed)
            socket.send_bytes(small[:start] + size + small[start + 4 :])
            assert "damaged, or has sides beyond" in answer(socket)[0]["error"]
        assert sides == []
        socket.send_bytes(small[:2] + b"\xff" * 3 + small[2:])
        assert answer(socket)[0]["size"] == [16, 16] and sides == [1]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_a_message_nested_without_end_is_told(serving, video, text):
    client = serving()
    with connected(client, opened(client, video)) as socket:
        socket.send_text(text)
        assert "recursion" in answer(socket)[0]["error"]
        assert ask(socket, do="show", frame=1)[0]["frame"] == 1


@pytest.mark.parametrize("header", [{"origin": "http://[::1"}, {"host": "[::1"}, {"origin": "//[", "host": "["}])
def test_headers_that_are_no_addresses_are_refused(serving, header):
    for token in (None, "abc"):
        assert serving(token=token).get("/", headers=header).status_code == 403


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"do": "box", "frame": 0, "target": None, "box": [1, 2, 3]}, "four numbers"),
        ({"do": "box", "frame": 0, "target": None, "box": [500, 20, 5, 5]}, "outside"),
        ({"do": "box", "frame": 0, "target": 3, "box": BOX}, "no target 3"),
        ({"do": "box", "frame": 99, "target": None, "box": BOX}, "no frame 99"),
        ({"do": "box", "frame": True, "target": None, "box": BOX}, "whole number"),
        ({"do": "show", "frame": "../../etc/passwd"}, "whole number"),
        ({"do": "drop", "target": 7}, "no target 7"),
        ({"do": "rm -rf /"}, "whole number"),
        ([1, 2], "JSON object"),
    ],
)
def test_what_a_page_must_not_send(serving, video, message, words):
    client = serving()
    with connected(client, opened(client, video)) as socket:
        socket.send_json(message)
        assert words in answer(socket)[0]["error"]
        assert ask(socket, do="show", frame=1)[0]["frame"] == 1, "the session goes on"


def test_the_next_frame_is_read_while_one_is_tracked(serving, video):
    """What is shown, and tracked in, is the frame of its number, also where the user jumps."""
    client = serving()
    name = opened(client, video)
    session = client.app.state.sessions.get(name)
    whole, were_read, one_more = session.advance, set(), threading.Condition()

    def read(number):
        with one_more:
            were_read.add(number)
            one_more.notify_all()
        return StoredVideo.frame(session.video, number)

    def advance(number, frame):
        assert round((frame[:20].mean() - 20) / 15) == number
        with one_more:
            assert one_more.wait_for(lambda: number + 1 in were_read, 30), "nobody reads ahead"
        return whole(number, frame)

    session.advance, session.video.frame = advance, read
    with connected(client, name) as socket:
        ask(socket, do="box", frame=0, target=None, box=BOX)
        for first in (0, 7, 3):
            were_read.clear()
            socket.send_json({"do": "play", "frame": first})
            for number in range(first, FRAMES):
                state, jpeg = answer(socket)
                assert state["frame"] == number == number_of(jpeg)
                socket.send_json({"do": "seen"})
            assert answer(socket)[0]["end"]


def test_two_users_at_once(serving, video):
    client = serving()
    results = {}

    def use(user):
        name = opened(client, video)
        with connected(client, name) as socket:
            ask(socket, do="box", frame=0, target=None, box=[40 + 20 * user, 30, 30, 24])
            results[user] = [state["targets"] for state in played(socket)]

    threads = [threading.Thread(target=use, args=(user,)) for user in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = dict(results)
    for user in (0, 1):
        use(user)
    assert together == results and results[0] != results[1] and len(results[0]) == FRAMES


def test_who_is_answered(serving, video):
    local = serving()
    assert local.get("/").status_code == 200 and "ostrack_fast" in local.get("/").text
    assert local.get("/app.js").status_code == local.get("/style.css").status_code == 200
    for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"origin": "http://127.0.0.1:9"}):
        assert local.get("/", headers=headers).status_code == 403
        assert local.post("/sessions/webcam", headers=headers).status_code == 403
        with pytest.raises(WebSocketDisconnect), connected(local, "x", headers=headers):
            pass
    assert local.post("/sessions/webcam", headers={"origin": "http://127.0.0.1:8000"}).status_code == 200

    remote = serving(token="s e;c=ret", base_url="http://192.0.2.7:8000")
    for address in ("/", "/?token=", "/?token=wrong", "/app.js"):
        assert remote.get(address).status_code == 403
    assert remote.post("/sessions/video", content=video).status_code == 403
    with pytest.raises(WebSocketDisconnect), connected(remote, "x"):
        pass
    page = remote.get("/", params={"token": "s e;c=ret"})
    assert page.status_code == 200 and "HttpOnly" in page.headers["set-cookie"]
    assert remote.get("/app.js").status_code == 200, "the cookie goes with the requests that follow"
    name = opened(remote, video)
    with connected(remote, name) as socket:
        assert ask(socket, do="show", frame=0)[0]["frame"] == 0


@pytest.mark.parametrize(
    "path",
    ["/../pyproject.toml", "/%2e%2e/app.py", "/..%2fapp.py", "/static/app.js", "/app.py", "//etc/passwd",
     "/sessions/..%2f..%2fetc%2fpasswd/boxes.csv", "/sessions/x/boxes.csv", "/sessions/x/video.mp4", "/docs",
     "/openapi.json"],
)  # fmt: skip
def test_no_path_leads_out(serving, path):
    answer = serving().get(path)
    assert answer.status_code == 404 and "import" not in answer.text


def test_what_is_no_video(serving, video, tmp_path):
    client = serving()
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n".encode()
    concat = f"ffconcat version 1.0\nfile '{secret}'\n".encode()
    for body in (b"", b"no video", video[: len(video) // 3], playlist, concat, b"\x89PNG\r\n\x1a\n" + bytes(99)):
        refused = client.post("/sessions/video", content=body)
        assert refused.status_code == 422 and "video" in refused.json()["detail"]
    assert len(client.app.state.sessions) == 0
    assert client.post("/sessions/camera").status_code == 404


def test_limits(serving, video):
    client = serving(Limits(upload_bytes=len(video) - 1))
    for content in (video, iter([video])):  # with and without a length in the header
        assert client.post("/sessions/video", content=content).status_code == 413
    assert len(client.app.state.sessions) == 0
    longer = serving(Limits(frames=FRAMES - 1)).post("/sessions/video", content=video)
    assert longer.status_code == 422 and "more than 11 frames" in longer.json()["detail"]

    client = serving(Limits(sessions=2, targets=1, frames=FRAMES))
    names = [opened(client, video), client.post("/sessions/webcam").json()["id"]]
    assert client.post("/sessions/webcam").status_code == 503
    assert client.delete(f"/sessions/{names[1]}").status_code == 200
    assert client.post("/sessions/webcam").status_code == 200
    with connected(client, names[0]) as socket:
        ask(socket, do="box", frame=0, target=None, box=BOX)
        assert "drop one first" in ask(socket, do="box", frame=0, target=None, box=BOX)[0]["error"]
    with connected(client, names[1]) as socket, pytest.raises(WebSocketDisconnect) as closed:
        socket.receive_bytes()
    assert closed.value.code == 4404


def test_sessions_end(make_tracker, video):
    now = [0.0]
    limits = Limits(idle_seconds=10, seconds=100, sessions=1)
    sessions = Sessions(make_tracker, limits, lambda: now[0])
    name = sessions.reserve()
    with pytest.raises(Refused):
        sessions.reserve()
    session = sessions.start(name, io.BytesIO(video))
    for moment in (5, 14, 23):
        now[0] = moment
        assert sessions.get(name) is session
        sessions.sweep()
    now[0] = 34
    sessions.sweep()
    assert len(sessions) == 0
    with pytest.raises(KeyError):
        sessions.get(name)
    name = sessions.reserve()
    sessions.start(name, None)
    for _ in range(12):
        now[0] += 9
        sessions.sweep()
        if len(sessions):
            sessions.get(name)
    assert len(sessions) == 0, "the time of a session is over however much it is used"


def test_a_slow_page_gets_no_more_than_it_takes(serving, video):
    client = serving()
    with connected(client, opened(client, video)) as socket:
        socket.send_json({"do": "play", "frame": 0})
        numbers = [answer(socket)[0]["frame"] for _ in range(3)]
        state, _ = ask(socket, do="pause")
        assert numbers == [0, 1, 2] and state == {"paused": True}, "no frame was sent before one was seen"


def test_a_frame_that_fails_is_told(serving, video):
    client = serving()
    name = opened(client, video)
    session = client.app.state.sessions.get(name)

    def broken(number):
        raise ValueError("the disk is gone")

    with connected(client, name) as socket:
        ask(socket, do="box", frame=0, target=None, box=BOX)
        whole, session.frame = session.frame, broken
        assert ask(socket, do="play", frame=1)[0] == {"error": "the disk is gone"}
        session.frame = whole
        assert len(played(socket, 1)) == FRAMES - 1


def test_any_frame_of_a_stored_video(video, tmp_path):
    stored = StoredVideo(io.BytesIO(video), 100)
    order = [0, 1, 2, 9, 3, 4, 4, 11, 0, 10]
    for number in order:
        assert round((stored.frame(number)[:20].mean() - 20) / 15) == number
    with pytest.raises(IndexError, match="no frame 12"):
        stored.frame(FRAMES)
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25, (WIDTH, HEIGHT))
    for number in range(FRAMES):
        writer.write(picture(number))
    writer.release()
    stored = StoredVideo(io.BytesIO((tmp_path / "a.avi").read_bytes()), 100)
    for number in (5, 2, 3, 11):
        assert round((stored.frame(number)[:20].mean() - 20) / 15) == number
    stored.close()


def test_a_killed_server_leaves_nothing(video, tmp_path):
    """The real command, killed while it tracks: no file, no process, and the port is free again."""
    weights, there = tmp_path / "tiny.safetensors", tmp_path / "there"
    torch.manual_seed(0)
    save_weights(build_ostrack(TINY).state_dict(), TINY, weights)
    there.mkdir()
    names = {name: str(there) for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME")}
    process = subprocess.Popen(
        [sys.executable, "-m", "ostrack_fast.cli", "serve", "--port", "0", "--device", "cpu", "--weights", weights],
        stdout=subprocess.PIPE, text=True, cwd=there, env={**os.environ, **names}, start_new_session=True,
    )  # fmt: skip
    try:
        address = re.search(r"http://(\S+):(\d+)/", process.stdout.readline())
        host, port = address[1], int(address[2])
        with urlopen(Request(f"{address[0]}sessions/video", data=video, method="POST"), timeout=60) as facts:
            name = json.load(facts)["id"]
        with connect(f"ws://{host}:{port}/sessions/{name}") as socket:
            socket.send(json.dumps({"do": "box", "frame": 0, "target": None, "box": BOX}))
            socket.send(json.dumps({"do": "play", "frame": 1}))
            for _ in range(3):
                socket.recv()
            with urlopen(f"{address[0]}sessions/{name}/video.mp4", timeout=60) as film:
                assert film.read(4), "a download is on its way too"
                process.kill()
                process.wait(60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert [str(path) for path in there.rglob("*") if path.is_file()] == []
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    with contextlib.closing(Socket()) as again:
        again.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        again.bind((host, port))


def test_no_file_is_left(serving, video, tmp_path, monkeypatch):
    """Not even while the server works: however it is killed, nothing lies about."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    client = serving()
    name, webcam = opened(client, video), client.post("/sessions/webcam").json()["id"]
    with connected(client, name) as socket:
        ask(socket, do="box", frame=0, target=None, box=BOX)
        played(socket)
    with connected(client, webcam) as socket:
        for number in range(3):
            socket.send_bytes(jpeg(number))
            answer(socket)
    assert client.get(f"/sessions/{name}/video.mp4").status_code == 200
    assert client.get(f"/sessions/{webcam}/video.mp4").status_code == 200
    assert os.listdir(tmp_path) == []


class FullDisk(io.BytesIO):
    def write(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_and_a_user_who_goes_are_no_faults_of_the_server(serving, video, monkeypatch):
    client = serving()
    name = opened(client, video)
    with monkeypatch.context() as patch:
        patch.setattr(app, "unnamed_file", FullDisk)
        answer = client.post("/sessions/video", content=video)
        assert answer.status_code == 507 and "cannot store the video: No space left" in answer.json()["detail"]
        patch.setattr(VideoSession, "film", lambda _: FullDisk().write(b""))
        assert client.get(f"/sessions/{name}/video.mp4").status_code == 507

    async def gone(*_):
        raise ClientDisconnect

    with monkeypatch.context() as patch:
        patch.setattr(app, "_receive", gone)
        assert client.post("/sessions/video", content=video).status_code == 400
    assert len(client.app.state.sessions) == 1, "sessions that did not come about hold no place"


def test_a_port_that_is_taken_is_told(capsys, monkeypatch):
    with Socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["ostrack-fast", "serve", "--device", "cpu", "--port", str(port)])
        with pytest.raises(SystemExit):
            main()
    error = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use; choose another --port" in error

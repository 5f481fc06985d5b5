"""The page of `ostrack-fast serve`, clicked through in Chromium; its pictures are in the test's temporary folder."""

import contextlib
import io
import re
import signal
import subprocess
import sys
import time
from importlib import resources

import av
import numpy as np
import pytest

from ostrack_fast.video import open_source
from ostrack_fast.video.h264 import H264Encoder

from .browser import CHROMIUM, Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the page cannot be clicked through")

DEMO = resources.files("ostrack_fast") / "assets" / "demo.mp4"
BOX = (73, 122, 191, 157)  # the demo's target


@contextlib.contextmanager
def served(*options):
    """The command itself, on a port that is free; its address."""
    command = [sys.executable, "-m", "ostrack_fast.cli", "serve", "--port", "0", "--device", "cpu", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield re.search(r"http://\S+", process.stdout.readline())[0]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert process.returncode == 130, "an interrupt, told as by every command"


@pytest.mark.slow
def test_clicked_through(tmp_path):
    """The real command with the weights that ship, on a short video and on Chromium's made webcam."""
    pictures = []

    def keep(name):
        browser.screenshot(tmp_path / name)
        pictures.append(name)

    encoder = H264Encoder(str(tmp_path / "made.mp4"), 25, (640, 360))
    for frame in list(open_source(str(DEMO)))[:20]:
        encoder.write(frame)
    encoder.close()
    with served() as address, Browser(tmp_path) as browser:
        browser.page("Page.navigate", url=address)
        browser.until("document.readyState === 'complete' && typeof app === 'object'")
        keep("1-empty.png")
        browser.choose_file("#file", tmp_path / "made.mp4")
        browser.until("app.shown === 0 && app.picture")
        draw(browser, BOX)
        browser.until("app.scores.size === 1")
        keep("2-drawn.png")
        browser.click("#play")
        browser.until("app.shown >= 5 && Object.keys(app.regions).length === 1")
        keep("3-playing.png")
        browser.until("!app.playing && app.shown === 19")
        scores = browser.run("[...app.scores.get(0).values()]")
        assert len(scores) == 20 and np.mean(scores) > 0.5
        # A correction at frame 8, and another target from there on.
        browser.run("$('time').value = 8; $('time').oninput()")
        browser.until("app.shown === 8")
        draw(browser, (80, 125, 185, 150))
        browser.until("app.targets[0].score === null")
        browser.click("#new")
        draw(browser, (420, 200, 90, 90))
        browser.until("app.scores.size === 2")
        browser.click("#play")
        browser.until("!app.playing && app.shown === 19 && app.targets.length === 2")
        keep("4-two-targets.png")
        browser.click("#boxes")
        browser.click("#video")
        rows = downloaded(tmp_path / "boxes.csv").decode().splitlines()
        assert len(rows) == 1 + 20 + 12
        with av.open(io.BytesIO(downloaded(tmp_path / "tracked.mp4"))) as container:
            assert sum(1 for _ in container.decode(video=0)) == 20
        # What the browser itself thinks of the file.
        browser.run("""new Promise((resolve, reject) => { const v = document.createElement('video');
            v.onloadeddata = () => resolve(); v.onerror = () => reject(v.error); v.src = $('video').href; })""")
        browser.click("#webcam")
        browser.until("app.webcam && app.shown > 3")
        draw(browser, (60, 60, 120, 120))
        browser.until("app.scores.size === 1 && [...app.scores.get(0).values()].length > 5")
        keep("5-webcam.png")
        assert browser.run("$('status').classList.contains('error')") is False
    assert len(pictures) == 5


def draw(browser, box):
    """Drag a box, in pixels of the video, with the mouse."""
    left, top, scale = browser.run(
        "(() => { const b = view.getBoundingClientRect(); return [b.x, b.y, b.width / view.width]; })()"
    )
    x, y, w, h = box
    browser.drag((left + scale * x, top + scale * y), (left + scale * (x + w), top + scale * (y + h)))


def downloaded(path):
    for _ in range(600):
        if path.exists():
            return path.read_bytes()
        time.sleep(0.1)
    raise AssertionError(f"{path.name} was not downloaded")

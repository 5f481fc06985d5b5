"""The window of `track`, by matplotlib's own events on a canvas without a screen, and once on a real display."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backend_bases import CloseEvent, KeyEvent, MouseButton, MouseEvent
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ostrack_fast import TrackResult
from ostrack_fast.cli._window import Window, Wish, open_window

FRAME = np.zeros((90, 160, 3), np.uint8)
SEEN = {0: TrackResult((10, 10, 30, 20), 0.8, False), 1: TrackResult((100, 40, 40, 40), 0.3, True)}


@pytest.fixture
def window():
    figure = Figure()
    FigureCanvasAgg(figure)
    window = Window(figure)
    window.show(FRAME, SEEN)
    figure.canvas.draw()
    return window


def mouse(window, name, place):
    figure = window._canvas.figure
    x, y = figure.axes[0].transData.transform(place)
    event = MouseEvent(f"{name}_event", figure.canvas, x, y, MouseButton.LEFT)
    figure.canvas.callbacks.process(event.name, event)


def drag(window, start, end):
    for name, place in (("button_press", start), ("motion_notify", end), ("button_release", end)):
        mouse(window, name, place)


def press(window, key):
    window._canvas.callbacks.process("key_press_event", KeyEvent("key_press_event", window._canvas, key))


@pytest.mark.parametrize(("start", "end"), [((20, 10), (60, 50)), ((60, 50), (20, 10))])
def test_a_dragged_box_is_in_pixels_of_the_frame(window, start, end):
    drag(window, start, end)
    ((target, box),) = window.wishes()
    assert target is None and box == pytest.approx((20, 10, 40, 40), abs=0.6)
    assert window.wishes() == []


def test_a_chosen_target_is_drawn_anew_or_dropped(window):
    drag(window, (120, 60), (121, 61))
    assert window.chosen == 1
    drag(window, (90, 30), (150, 80))
    ((target, box),) = window.wishes()
    assert target == 1 and box == pytest.approx((90, 30, 60, 50), abs=0.6)
    press(window, "1")
    assert window.chosen == 0
    press(window, "d")
    assert window.wishes() == [Wish(0, None)] and window.chosen is None
    press(window, "2")
    press(window, "n")
    press(window, "7")
    press(window, "d")
    assert window.chosen is None and window.wishes() == []
    press(window, "2")
    drag(window, (5, 80), (6, 81))
    assert window.chosen is None, "a click beside all targets chooses none"


def test_pause_and_end(window):
    press(window, " ")
    assert window.paused and not window.closed
    press(window, " ")
    assert not window.paused
    press(window, " ")
    window._canvas.callbacks.process("close_event", CloseEvent("close_event", window._canvas))
    assert window.closed and not window.paused


def test_frames_of_another_size_and_what_is_shown(window):
    for frame, results in ((np.full((60, 200, 3), 200, np.uint8), {0: SEEN[0]}), (FRAME, SEEN), (FRAME, {})):
        window.show(frame, results)
        window._canvas.draw()
        picture = np.asarray(window._canvas.buffer_rgba())[..., :3].astype(int)
        orange = (np.abs(picture - (255, 140, 0)).max(2) < 30).sum()
        assert (orange > 50) == (0 in results)


def test_no_display_says_what_to_do(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(ValueError, match="--box"):
        open_window(True)


ON_A_DISPLAY = """
import matplotlib
matplotlib.use("TkAgg")
import numpy as np
from ostrack_fast.cli._window import open_window
window = open_window(paused=True)
canvas = window._canvas
window.show(np.zeros((90, 160, 3), np.uint8), {})
window.wait(0.2)
widget = canvas.get_tk_widget()
widget.update()
x0, y0 = (int(v) for v in window._axes.transData.transform((20, 10)))
x1, y1 = (int(v) for v in window._axes.transData.transform((60, 50)))
height = widget.winfo_height()
for name, x, y in (("<ButtonPress-1>", x0, y0), ("<B1-Motion>", x1, y1), ("<ButtonRelease-1>", x1, y1)):
    widget.event_generate(name, x=x, y=height - y)
widget.focus_force()
widget.event_generate("<Key-q>")
widget.update()
window.wait(0.1)
((target, box),) = window.wishes()
print(target, [round(v) for v in box], window.closed)
"""


@pytest.mark.slow
def test_on_a_real_display():
    """A window of Tk on a virtual screen, with the events that its mouse and keys send."""
    if shutil.which("xvfb-run") is None:
        pytest.skip("no Xvfb here: no screen to open a window on")
    pytest.importorskip("tkinter", reason="this Python has no Tk")
    command = ["xvfb-run", "-a", sys.executable, "-c", ON_A_DISPLAY]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "MPLBACKEND": "TkAgg"})
    assert done.returncode == 0, done.stderr
    target, _, rest = done.stdout.strip().partition(" ")
    left, top, width, height = (int(value) for value in rest[1 : rest.index("]")].split(","))
    assert target == "None" and rest.endswith("True")
    assert abs(left - 20) <= 2 and abs(top - 10) <= 2 and abs(width - 40) <= 2 and abs(height - 40) <= 2

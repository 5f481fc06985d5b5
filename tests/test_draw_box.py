"""The box drawn with the mouse, on matplotlib's canvas without a screen."""

import numpy as np
import pytest
from matplotlib.backend_bases import MouseButton, MouseEvent
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ostrack_fast.cli._draw_box import box_selector, draw_box, selected_box


@pytest.fixture
def axes():
    figure = Figure()
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def drag(axes, start, end):
    for name, place in (("button_press_event", start), ("motion_notify_event", end), ("button_release_event", end)):
        x, y = axes.transData.transform(place)
        event = MouseEvent(name, axes.figure.canvas, x, y, MouseButton.LEFT)
        axes.figure.canvas.callbacks.process(name, event)


@pytest.mark.parametrize(("start", "end"), [((20, 10), (60, 50)), ((60, 50), (20, 10))])
def test_a_dragged_box_is_in_pixels_of_the_frame(axes, start, end):
    selector = box_selector(axes, np.zeros((90, 160, 3), np.uint8))
    axes.figure.canvas.draw()
    drag(axes, start, end)
    assert selected_box(selector) == pytest.approx((20, 10, 40, 40), abs=0.6)


def test_no_box_says_what_to_do(axes):
    with pytest.raises(ValueError, match="drag with the mouse"):
        selected_box(box_selector(axes, np.zeros((90, 160, 3), np.uint8)))


def test_no_display_says_what_to_do(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(ValueError, match="--box"):
        draw_box(np.zeros((9, 16, 3), np.uint8))

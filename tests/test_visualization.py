"""Pictures show the box where it is."""

from math import nan

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from ostrack_fast.tracker import TrackResult
from ostrack_fast.visualization import Thumbnails, annotate, draw_box, plot_run
from ostrack_fast.visualization.draw import LOST_COLOUR, TARGET_COLOUR
from ostrack_fast.visualization.sheet import save_figure

BOX = (60.0, 40.0, 80.0, 50.0)


def grey(height=180, width=240):
    return np.full((height, width, 3), 128, np.uint8)


def has(image, colour, tolerance=12):
    return (np.abs(image.astype(int) - colour).max(-1) <= tolerance).any()


def test_the_outline_lies_on_the_box():
    image = grey()
    drawn = draw_box(image, BOX)
    assert (image == 128).all()  # a copy is drawn on
    rows, columns = np.nonzero((drawn != 128).any(-1))
    assert abs(columns.min() - 60) <= 4 and abs(columns.max() - 140) <= 4
    assert abs(rows.min() - 40) <= 4 and abs(rows.max() - 90) <= 4
    assert (drawn[46:84, 66:134] == 128).all()
    assert has(drawn[38:43, 80:120], TARGET_COLOUR)


def test_views_are_drawn_on_too():
    flipped = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)[..., ::-1]
    np.testing.assert_array_equal(draw_box(flipped, BOX), draw_box(flipped.copy(), BOX))


def test_the_label_tells_lost_from_found():
    found = annotate(grey(), TrackResult(BOX, 0.9, False))
    lost = annotate(grey(), TrackResult(BOX, 0.1, True))
    assert has(found, TARGET_COLOUR) and not has(found, LOST_COLOUR)
    assert has(lost, LOST_COLOUR) and not has(lost, TARGET_COLOUR)
    assert (annotate(grey(), TrackResult(BOX, nan, False)) != found).any()
    assert (annotate(grey(), TrackResult(BOX, 0.9, False), "frame 1")[:20, :20] != found[:20, :20]).any()


@pytest.mark.parametrize("box", [(-50, -50, 60, 60), (230, 170, 90, 90), (-500, -500, 2000, 2000), (5, 5, 0.1, 0.1)])
def test_boxes_over_the_edge(box):
    assert annotate(grey(), TrackResult(box, 0.5, False), "x" * 200).shape == (180, 240, 3)


@pytest.mark.parametrize("length", [1, 3, 8, 100])
def test_thumbnails_spread_evenly_and_stay_few(length):
    thumbnails = Thumbnails(4)
    for index in range(length):
        thumbnails.add(index, grey(600, 800), TrackResult(BOX, 0.5, False))
        assert len(thumbnails._kept) < 8
    chosen = thumbnails.chosen()
    numbers = [index for index, _ in chosen]
    assert len(numbers) == min(4, length) and numbers == sorted(set(numbers)) and numbers[0] == 0
    assert numbers[-1] >= 0.75 * (length - 1)
    assert all(image.shape == (360, 480, 3) for _, image in chosen)


@pytest.mark.parametrize("count, length", [(1, 1), (3, 9), (8, 60)])
def test_a_run_on_one_page(tmp_path, count, length):
    images = [(index, grey()) for index in range(count)]
    scores = [nan, *np.linspace(0.9, 0.1, length - 1)]
    plot_run(tmp_path / "run.png", images, scores, 25.0, "a run", lost_below=0.2)
    assert min(cv2.imread(str(tmp_path / "run.png")).shape[:2]) > 200
    assert [path.name for path in tmp_path.iterdir()] == ["run.png"]


def test_a_name_that_looks_like_a_formula(tmp_path):
    figure = Figure()
    figure.add_subplot().plot([0, 1], label=r"$\frac$")
    figure.axes[0].legend()
    save_figure(figure, tmp_path / "a.png", dpi=50)
    plot_run(tmp_path / "run.png", [(0, grey())], [0.5], 25.0, r"$\frac$")


def test_a_picture_of_no_known_kind(tmp_path):
    with pytest.raises(ValueError, match="must end in one of"):
        plot_run(tmp_path / "run.mp3", [(0, grey())], [nan], 25.0, "a run")

"""Loss and re-detection: the decisions one by one, on an engine whose answers are given."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from ostrack_fast import MultiTracker, Tracker, build_ostrack
from ostrack_fast.appearance import colours, likeness
from ostrack_fast.config import ModelConfig
from ostrack_fast.redetection import Presence, Redetection

TINY = ModelConfig(
    template_size=32, search_size=64, embed_dim=32, depth=2, num_heads=1, head_channels=8,
    ce_layers=(1,), ce_keep_ratio=(0.7,),
)  # fmt: skip
BOX = (100.0, 80.0, 40.0, 30.0)
SETTINGS = Redetection(lost_after=3, found_after=2, windows=4)
RED, BLUE = (220, 40, 30), (40, 60, 220)


class Engine:
    """Finds whatever stands out near a box: the target, `at` its box, or a `twin` of other colours; else nothing."""

    cfg = TINY

    def __init__(self):
        self.at, self.twin, self.looked = BOX, None, []

    def frame(self):
        """A picture of what is there now."""
        picture = np.full((360, 640, 3), 110, np.uint8)
        for place, colour in ((self.twin, BLUE), (self.at, RED)):
            if place is not None:
                x, y, w, h = map(round, place)
                picture[y : y + h, x : x + w] = colour
        return picture

    def look(self, frame, row, boxes):
        self.looked += boxes
        return [self.seen_from(box) for box in boxes]

    def seen_from(self, box):
        half = 2 * (box[2] * box[3]) ** 0.5
        middle = (box[0] + box[2] / 2, box[1] + box[3] / 2)
        for place in (self.at, self.twin):
            if place is not None:
                away = max(abs(place[0] + place[2] / 2 - middle[0]), abs(place[1] + place[3] / 2 - middle[1]))
                if away < half:
                    return (*place, 0.8)
        return (*box, 0.45)


@pytest.fixture
def presence():
    engine = Engine()
    return Presence.begin(engine, SETTINGS, engine.frame(), BOX)


def step(presence, around):
    """A frame: what the engine finds around a box, judged."""
    return presence.judge(presence.engine.frame(), 0, presence.engine.seen_from(around[:4]))


def test_colours_tell_things_apart_and_stand_some_light():
    engine = Engine()
    engine.twin = (300.0, 200.0, 40.0, 30.0)
    frame = engine.frame()
    looks = colours(frame, BOX)
    assert looks.sum() == pytest.approx(1) and likeness(looks, looks) == pytest.approx(1)
    assert likeness(looks, colours(frame, engine.twin)) < 0.05
    assert likeness(looks, colours(frame, (104.0, 84.0, 36.0, 24.0))) > 0.9, "a shifted box"
    assert likeness(looks, colours((frame * 0.95).astype(np.uint8), BOX)) > 0.6, "less light"
    for box in ((-30.0, -30.0, 40.0, 40.0), (630.0, 350.0, 40.0, 40.0), (5.0, 5.0, 0.5, 0.5)):
        assert colours(frame, box).sum() == pytest.approx(1), "boxes that reach outside, or hold no whole pixel"


def test_low_scores_alone_are_no_loss(presence):
    for score in (0.9, *[0.1] * 20):
        assert presence.judge(presence.engine.frame(), 0, (*BOX, score)) == (*BOX, score) and not presence.lost


def test_a_few_frames_are_no_loss(presence):
    for hidden in (False, True, True, False, True, True, False):
        presence.engine.at = None if hidden else BOX
        assert step(presence, BOX)[:4] == BOX and not presence.lost


def lose(presence):
    """The target goes away, and something else of other colours is found in its place with a high score."""
    presence.engine.at, presence.engine.twin = None, (130.0, 90.0, 60.0, 50.0)
    for number in range(SETTINGS.lost_after):
        box = step(presence, BOX)
        assert presence.lost == (number == SETTINGS.lost_after - 1)
    return box


def test_a_lost_box_stays_in_size_and_place(presence):
    step(presence, BOX)
    box = lose(presence)
    for _ in range(40):
        assert box[:4] == BOX == presence.known and presence.lost
        box = step(presence, box)


def test_the_search_grows_to_the_whole_frame(presence):
    lose(presence)
    presence.engine.looked = []
    reaches = []
    for _ in range(60):
        before = len(presence.engine.looked)
        step(presence, BOX)
        now = presence.engine.looked[before:]
        assert 0 < len(now) <= SETTINGS.windows
        reaches.append(max(abs(x - BOX[0]) for x, *_ in now))
    side = 4 * (BOX[2] * BOX[3]) ** 0.5
    assert reaches[0] <= side and max(reaches) > 400
    # Every pixel of the frame lies well inside some window; the engine itself looks around the last box.
    middles = [(x + w / 2, y + h / 2, 2 * (w * h) ** 0.5) for x, y, w, h in (BOX, *presence.engine.looked)]
    for x in range(0, 640, 20):
        for y in range(0, 360, 20):
            assert any(max(abs(x - mx), abs(y - my)) <= 0.51 * half for mx, my, half in middles), (x, y)


def test_it_is_found_where_it_returns(presence):
    box = lose(presence)
    presence.engine.at = (500.0, 250.0, 44.0, 33.0)
    frame = 0
    while presence.lost and frame < 30:
        box, frame = step(presence, box), frame + 1
    assert not presence.lost and box[:4] == (500.0, 250.0, 44.0, 33.0) == presence.known
    assert frame > 2, "the search takes its time, and one frame is not enough"


def test_one_verified_frame_is_not_enough(presence):
    box = lose(presence)
    presence.engine.at, presence.engine.twin = BOX, None
    box = step(presence, box)
    assert presence.lost and box[:4] == BOX
    presence.engine.at = None
    box = step(presence, box)
    presence.engine.at = BOX
    box = step(presence, box)
    assert presence.lost, "they must come in a row"
    step(presence, box)
    assert not presence.lost


def frames(count):
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (120, 160, 3), dtype=np.uint8) for _ in range(count)]


@pytest.mark.parametrize("redetect", [False, Redetection(lost_likeness=0.0, lost_below=0.0)])
def test_without_a_loss_nothing_changes(redetect):
    """Off, or on for a target that is never lost: the same boxes to the last bit."""
    torch.manual_seed(0)
    model = build_ostrack(TINY)
    plain, watched = Tracker(model, "cpu", "float32"), Tracker(model, "cpu", "float32", redetect=redetect)
    stream = frames(12)
    for tracker in (plain, watched):
        tracker.initialize(stream[0], (50, 40, 30, 24))
    for frame in stream[1:]:
        expected, found = plain.track(frame), watched.track(frame)
        assert (found.box, found.score) == (expected.box, expected.score)


def test_many_targets_are_lost_each_by_itself():
    torch.manual_seed(0)
    model = build_ostrack(TINY)
    settings = Redetection(lost_likeness=9.0, lost_after=2, found_from=1.1)
    many, one = (kind(model, "cpu", "float32", redetect=settings) for kind in (MultiTracker, Tracker))
    stream = frames(8)
    first = many.add(stream[0], (20, 20, 30, 24))
    one.initialize(stream[1], (60, 50, 30, 24))
    many.track(stream[1])
    second = many.add(stream[1], (60, 50, 30, 24))
    for number, frame in enumerate(stream[2:]):
        found = many.track(frame)
        assert found[second] == one.track(frame)
        assert found[first].lost and found[second].lost == (number >= 1)
        if number == 3:
            many.drop(first)
            first = many.add(frame, (20, 20, 30, 24))
            many.place({first: (30, 30, 30, 24)})
            break
    assert not many.track(stream[-1])[first].lost


def test_targets_in_different_videos_are_not_found_again():
    """A lost target is searched for in one frame, and `track_each` has one for every target."""
    torch.manual_seed(0)
    many = MultiTracker(build_ostrack(TINY), "cpu", "float32", redetect=True)
    frame = frames(1)[0]
    target = many.add(frame, (20, 20, 30, 24))
    with pytest.raises(ValueError, match="different videos are tracked without redetect"):
        many.track_each({target: frame})
    assert not many.track(frame)[target].lost, "the tracker is as it was"


@pytest.mark.parametrize("name", [field.name for field in fields(Redetection)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1])
def test_settings_that_cannot_be_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} must lie in"):
        Redetection(**{name: value})


@pytest.mark.parametrize("name", [field.name for field in fields(Redetection)])
def test_settings_that_are_no_numbers_are_named(name):
    for value in ("3", None, [1]):
        with pytest.raises(TypeError, match=f"{name}=.* must be a (whole )?number"):
            Redetection(**{name: value})


def test_half_a_window_is_refused_before_a_target_is_lost():
    with pytest.raises(TypeError, match=r"windows=2\.5 must be a whole number"):
        Redetection(windows=2.5)

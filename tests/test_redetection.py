"""Loss and re-detection: the decisions one by one, on an engine whose answers are given."""

import numpy as np
import pytest
import torch

from ostrack_fast import MultiTracker, Tracker, build_ostrack
from ostrack_fast.config import ModelConfig
from ostrack_fast.redetection import Presence, Redetection, overlap

TINY = ModelConfig(
    template_size=32, search_size=64, embed_dim=32, depth=2, num_heads=1, head_channels=8,
    ce_layers=(1,), ce_keep_ratio=(0.7,),
)  # fmt: skip
BOX = (100.0, 80.0, 40.0, 30.0)
SETTINGS = Redetection(lost_below=0.4, lost_after=3, found_from=0.5, agreement=0.5, found_after=2, windows=4)


class Engine:
    """Sees a target only where it is: `at` its box, or None; `twin` is a place that looks like it from one side."""

    cfg = TINY

    def __init__(self):
        self.at, self.twin, self.looked, self.added = None, None, [], 0

    def look(self, frame, row, boxes):
        if row == 1:  # the way back, with the found box as template
            return [(*boxes[0], 0.9) if self.leads_back else (0, 0, 9, 9, 0.9)]
        self.looked += boxes
        return [self.seen_from(box) for box in boxes]

    def seen_from(self, box):
        side = 4 * (box[2] * box[3]) ** 0.5
        middle = (box[0] + box[2] / 2, box[1] + box[3] / 2)
        for place in (self.at, self.twin):
            if place is not None:
                away = max(abs(place[0] + place[2] / 2 - middle[0]), abs(place[1] + place[3] / 2 - middle[1]))
                if away < side / 2:
                    return (*place, 0.8)
        return (*box, 0.1)

    def add(self, frame, box):
        self.added += 1
        self.leads_back = self.at is not None and overlap(box, self.at) > 0.5
        return 1

    def drop(self, row):
        self.added -= 1


FRAME = np.zeros((360, 640, 3), np.uint8)


@pytest.fixture
def presence():
    engine = Engine()
    engine.at = BOX
    return Presence.begin(engine, SETTINGS, FRAME, BOX)


def step(presence, around):
    """A frame: what the engine finds around a box, judged."""
    return presence.judge(FRAME, 0, presence.engine.seen_from(around[:4]))


def test_one_low_score_is_no_loss(presence):
    for score, lost in ((0.9, False), (0.3, False), (0.3, False), (0.5, False), (0.3, False), (0.3, False)):
        drifted = (110.0, 80.0, 60.0, 50.0, score)
        assert presence.judge(FRAME, 0, drifted) == drifted and presence.lost is lost


def test_a_lost_box_stays_in_size_and_place(presence):
    presence.engine.at = None
    presence.judge(FRAME, 0, (*BOX, 0.9))
    boxes = [presence.judge(FRAME, 0, (90.0 - 9 * i, 70.0, 60.0 + 30 * i, 50.0, 0.2)) for i in range(40)]
    assert boxes[1][:4] == (81.0, 70.0, 90.0, 50.0), "two low scores may be noise"
    assert all(box[:4] == BOX for box in boxes[2:]) and presence.lost


def lose(presence):
    place = presence.engine.at
    presence.engine.at = None
    for _ in range(SETTINGS.lost_after):
        box = step(presence, BOX)
    presence.engine.at = place
    assert presence.lost
    return box


def test_the_search_grows_to_the_whole_frame(presence):
    lose(presence)
    presence.engine.at, presence.engine.looked = None, []
    reaches = []
    for _ in range(60):
        step(presence, BOX)
        now = presence.engine.looked[-SETTINGS.windows :]
        reaches.append(max(abs(x - BOX[0]) for x, *_ in now))
    side = 4 * (BOX[2] * BOX[3]) ** 0.5
    assert reaches[0] <= side and max(reaches) > 400
    assert all(count <= SETTINGS.windows for count in [len(presence.engine.looked) / 60])
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
    assert frame > 2 and presence.engine.added == 0


def test_what_looks_like_it_from_one_side_only_is_not_it(presence):
    box = lose(presence)
    presence.engine.at, presence.engine.twin = None, (300.0, 100.0, 40.0, 30.0)
    for _ in range(60):
        box = step(presence, box)
        assert presence.lost and box[:4] == BOX


def test_one_verified_frame_is_not_enough(presence):
    box = lose(presence)
    presence.engine.at = BOX
    box = step(presence, box)
    assert presence.lost and presence.verified == 1
    presence.engine.at = None
    box = step(presence, box)
    assert presence.lost and presence.verified == 0 and box[:4] == BOX


def frames(count):
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (120, 160, 3), dtype=np.uint8) for _ in range(count)]


@pytest.mark.parametrize("redetect", [False, Redetection(lost_below=0.0)])
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
    settings = Redetection(lost_below=1.0, lost_after=2, found_from=1.1)
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

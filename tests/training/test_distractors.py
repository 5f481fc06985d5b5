"""Distractors of the target's kind in pairs from videos: how often, where, of what, and what they leave alone."""

import shutil

import cv2
import numpy as np
import pytest
import torch

from ostrack_fast.training.canvas import make_cutout
from ostrack_fast.training.crops import CameraConfig, CropConfig
from ostrack_fast.training.dataset import DataConfig, PairDataset
from ostrack_fast.training.distractors import draw_look, paste_beside
from ostrack_fast.training.sources import bind_sources, build_sources
from ostrack_fast.training.videos import VideoFolder

TURNING = CameraConfig(probability=1, rotation=15, stretch=0.2, shear=0.1)
CROPS = CropConfig()


def built(videos, **settings):
    ((source, _),) = build_sources(bind_sources({"videos": {"path": ".", **settings}}, "data"), videos)
    return source


def pairs(plain, source, count, crops=CROPS):
    """Pairs of one seed of a source without distractors and of one with them, and where their search images differ."""
    for seed in range(count):
        one, other = (each.sample(np.random.default_rng(seed), crops) for each in (plain, source))
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            yield one, other, (one.search != other.search).any(-1)


def in_box(pair):
    """The pixels that the target's box touches."""
    x, y, w, h = pair.search_box.astype(np.float64) * pair.search.shape[0]
    inside = np.zeros(pair.search.shape[:2], dtype=bool)
    inside[max(int(y), 0) : int(np.ceil(y + h)), max(int(x), 0) : int(np.ceil(x + w))] = True
    return inside


def two_coloured():
    """A cut-out that is red at the left and blue at the right."""
    image = np.zeros((60, 80, 3), dtype=np.uint8)
    image[:, :40], image[:, 40:] = (250, 0, 0), (0, 0, 250)
    mask = np.zeros((60, 80), dtype=np.uint8)
    mask[8:52, 8:72] = 255
    return make_cutout(image, cv2.blur(mask, (3, 3)))


def test_a_search_image_has_a_distractor_as_often_as_is_set(videos):
    plain = built(videos)

    def share(probability, count):
        source = built(videos, distractors=probability)
        return np.mean([differs.any() for *_, differs in pairs(plain, source, count)])

    assert share(1, 50) > 0.95, "there is room beside a target of this size"
    assert abs(share(0.3, 200) - 0.3) < 0.1  # three standard deviations
    assert share(0, 10) == 0


def test_a_distractor_leaves_template_target_and_border_alone(videos):
    plain, source = VideoFolder(videos, camera=TURNING), VideoFolder(videos, camera=TURNING, distractors=1)
    seen = bordered = 0
    for one, other, differs in pairs(plain, source, 80):
        np.testing.assert_array_equal(one.template, other.template)
        np.testing.assert_array_equal(one.template_box, other.template_box)
        np.testing.assert_array_equal(one.search_box, other.search_box)
        assert not (differs & in_box(one)).any()
        black = (one.search == 0).all(-1)
        assert not (differs & black).any(), "the crop is black beyond the image"
        seen, bordered = seen + differs.any(), bordered + black.any()
    assert seen > 50 and bordered > 25


def test_a_distractor_looks_like_the_target(videos):
    plain, source = VideoFolder(videos, distractors=0), VideoFolder(videos, distractors=1)
    shares = []
    for one, other, differs in pairs(plain, source, 40):
        if differs.any():
            pasted = other.search[differs].astype(int)
            shares.append(((pasted[:, 0] > 120) & (pasted[:, 1:] < 90).all(-1)).mean())
            width, height = np.ptp(np.argwhere(differs), axis=0)[::-1]
            own = one.search_box[2:] * one.search.shape[0]
            assert (np.array([width, height]) < 2.5 * own).all()
    # The rest is the soft edge.
    assert len(shares) > 30 and np.mean(shares) > 0.75


def test_a_pair_depends_on_the_seed_and_its_index_alone(videos):
    config = DataConfig(seed=3)
    first, second = (PairDataset([(VideoFolder(videos, distractors=0.5), 1)], config) for _ in range(2))
    items = [first[i] for i in range(12)]
    for i in reversed(range(12)):
        for name, value in second[i].items():
            torch.testing.assert_close(value, items[i][name], rtol=0, atol=0)


def test_only_pairs_with_their_target_have_a_distractor(videos):
    crops = CropConfig(absent=0.5)
    found = {True: 0, False: 0}
    for one, other, differs in pairs(VideoFolder(videos), VideoFolder(videos, distractors=1), 60, crops):
        assert one.present == other.present
        found[one.present] += 1
        assert one.present or not differs.any()
    assert min(found.values()) > 5


def test_videos_without_masks_have_no_distractor(videos):
    shutil.rmtree(videos / "beta" / "mask")
    plain, source = VideoFolder(videos), VideoFolder(videos, distractors=1)
    assert source.cutouts(0) and not source.cutouts(1)
    drawn = []
    for seed in range(60):
        one, other = (each.sample(np.random.default_rng(seed), CROPS) for each in (plain, source))
        if one is not None:
            drawn.append((int(np.random.default_rng(seed).integers(2)), bool((one.search != other.search).any())))
    assert {video for video, pasted in drawn if pasted} == {0} and {video for video, _ in drawn} == {0, 1}
    shutil.rmtree(videos / "alpha" / "mask")
    with pytest.raises(ValueError, match=r"distractors=0\.2 are cut out by masks, but no video of .* has NAME/mask"):
        VideoFolder(videos, distractors=0.2)


def test_targets_cut_off_by_the_border_are_no_distractors(videos):
    """Pasted further inside they would end in a straight edge."""
    truth = videos / "alpha" / "groundtruth_rect.txt"
    lines = truth.read_text().splitlines()
    truth.write_text("\n".join(["0,53,40,30" if number < 12 else line for number, line in enumerate(lines)]))
    source = VideoFolder(videos, distractors=1)
    assert min(source.cutouts(0)) == 0 and min(source._whole[0]) >= 12


def test_the_look_is_that_of_frames_far_from_the_template():
    cutouts = {frame: frame for frame in range(0, 40, 2)}
    rng = np.random.default_rng(0)
    # 2 to 10 lie nearer to frame 4 than the other half of those that may be taken; 38 is the search frame.
    assert {draw_look(cutouts, 4, 38, rng) for _ in range(300)} == set(range(20, 38, 2))
    assert draw_look({4: 4, 38: 38}, 4, 38, rng) is None and draw_look({}, 4, 38, rng) is None


def test_a_distractor_is_soft_sometimes_mirrored_and_mostly_seen():
    box, left = np.array([80.0, 90.0, 50.0, 40.0]), []
    for seed in range(60):
        region = np.full((200, 240, 3), 120, dtype=np.uint8)
        assert paste_beside(region, box, two_coloured(), np.random.default_rng(seed))
        changed = (region != 120).any(-1)
        assert not changed[89:131, 79:131].any()
        height, width = np.ptp(np.argwhere(changed), axis=0) + 1
        assert changed.sum() > 0.4 * 0.3 * 50 * 40 and width < 130 and height < 110
        red, blue = (np.argwhere((region[..., channel] > 160) & changed) for channel in (0, 2))
        if min(len(red), len(blue)) > 50:
            left.append(red[:, 1].mean() < blue[:, 1].mean())
        soft = changed & (np.abs(region.astype(int) - 120).max(-1) < 80)
        assert soft.sum() > 0.02 * changed.sum()
    assert len(left) > 30 and 0.25 < np.mean(left) < 0.75


def test_where_most_of_a_distractor_would_be_cut_off_nothing_changes():
    for seed in range(20):
        region = np.full((100, 100, 3), 120, dtype=np.uint8)
        box = np.array([12.0, 12.0, 76.0, 76.0])
        assert not paste_beside(region, box, two_coloured(), np.random.default_rng(seed))
        assert (region == 120).all()

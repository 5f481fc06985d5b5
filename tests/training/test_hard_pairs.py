"""Pairs that teach what goes wrong in long videos: drifted boxes, absent targets, one image worse than the other."""

import numpy as np
import pytest
import torch

from ostrack_fast.training.augment import Augment, AugmentConfig
from ostrack_fast.training.crops import CropConfig, View, crop_elsewhere, draw_window
from ostrack_fast.training.dataset import DataConfig, PairDataset
from ostrack_fast.training.losses import LossConfig, ostrack_loss
from ostrack_fast.training.videos import VideoFolder

from .painted import PLAIN, STILL
from .test_composer import clean_composer


def red(item):
    """How many pixels of a search image have the painted targets' colour."""
    image = item["search"].numpy().astype(int)
    return int(((image[..., 0] > 150) & (image[..., 1:] < 90).all(-1)).sum())


def test_some_search_crops_are_scaled_further_than_the_others():
    rng, box = np.random.default_rng(0), (400.0, 400.0, 60.0, 60.0)

    def spread(far):
        crops = CropConfig(far=far, center_jitter=(0, 0))
        return np.log([draw_window(box, crops, True, rng)[0].side / 240 for _ in range(4000)]).std()

    # The variance of a mixture of two normal distributions of one mean, each over two factors.
    assert spread(0.3) == pytest.approx(((0.7 * 0.25**2 + 0.3 * 0.5**2) / 2) ** 0.5, rel=0.06)
    assert spread(0.0) == pytest.approx(0.25 / 2**0.5, rel=0.06)
    sides = [draw_window(box, CropConfig(far=1.0), False, rng)[0].side for _ in range(20)]
    assert set(sides) == {120}, "the template has no such jitter"


def test_a_crop_elsewhere_shows_nothing_of_the_target():
    image = np.full((240, 320, 3), 50, np.uint8)
    image[100:130, 200:240] = 255
    view, rng = View(image, np.array([200.0, 100, 40, 30]), None), np.random.default_rng(0)
    found = [crop_elsewhere(view, CropConfig(), rng) for _ in range(50)]
    assert all(crop is None or crop.max() <= 50 for crop in found) and sum(crop is not None for crop in found) > 10
    whole = View(image, np.array([10.0, 10, 300, 220]), None)
    assert crop_elsewhere(whole, CropConfig(), rng) is None


@pytest.mark.parametrize("kind", ["videos", "composer"])
def test_absent_targets_are_not_in_the_search_image(kind, videos, composer_parts):
    source = VideoFolder(videos, camera=STILL) if kind == "videos" else clean_composer(*composer_parts)
    dataset = PairDataset([(source, 1)], DataConfig(crops=CropConfig(absent=0.5), augment=PLAIN))
    items = [dataset[i] for i in range(40)]
    gone = [item for item in items if not item["present"]]
    assert 8 < len(gone) < 32
    assert not any(red(item) for item in gone)
    assert sum(red(item) > 0 for item in items if item["present"]) > 5
    assert all(item["present"] for item in (PairDataset([(source, 1)])[i] for i in range(5)))


def maps(batch):
    torch.manual_seed(0)
    return {
        "score_map": torch.rand(batch, 1, 8, 8).clamp(0.01, 0.99).requires_grad_(),
        "size_map": torch.rand(batch, 2, 8, 8).requires_grad_(),
        "offset_map": torch.rand(batch, 2, 8, 8).requires_grad_(),
        "pred_boxes": torch.tensor([[[0.4, 0.4, 0.3, 0.3]]]).repeat(batch, 1, 1).requires_grad_(),
        "ce_scores": [(torch.rand(batch, 64), torch.arange(64).expand(batch, -1))],
    }


@pytest.mark.parametrize("cells", ["predicted", "target"])
def test_an_absent_target_has_a_score_to_learn_and_no_box(cells):
    cfg, box = LossConfig(box_cells=cells, attention=0.5), torch.tensor([[0.3, 0.3, 0.3, 0.3], [0.6, 0.1, 0.2, 0.2]])
    out = maps(2)
    loss, terms = ostrack_loss(out, box, cfg, present=torch.tensor([True, False]))
    first = {k: [(s[:1], i[:1]) for s, i in v] if k == "ce_scores" else v[:1].detach() for k, v in out.items()}
    _, alone = ostrack_loss(first, box[:1], cfg)
    for name in ("giou", "l1", "attention", "iou"):
        torch.testing.assert_close(terms[name], alone[name])
    loss.backward()
    for name in ("size_map", "offset_map", "pred_boxes"):
        gradient = out[name].grad
        assert gradient is None or not gradient[1].any()
    # Every cell of the second score map is pressed down: there is no peak.
    assert (out["score_map"].grad[1] > 0).all() and (out["score_map"].grad[0] < 0).any()


def test_a_batch_without_any_target_has_a_finite_loss():
    loss, terms = ostrack_loss(maps(2), torch.full((2, 4), 0.5), present=torch.zeros(2, dtype=torch.bool))
    assert loss.isfinite() and terms["giou"] == terms["iou"] == 0 < terms["focal"]


def test_the_images_of_a_pair_may_be_degraded_apart():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)

    def degraded(apart):
        augment = Augment(AugmentConfig(gray=0, flip=0, brightness=0, jpeg=0.5, apart=apart))
        pairs = [augment((image, image), np.random.default_rng(seed)) for seed in range(60)]
        return [tuple(not np.array_equal(one.image, image) for one in pair) for pair in pairs]

    assert set(degraded(0.0)) == {(False, False), (True, True)}
    assert set(degraded(1.0)) == {(False, False), (False, True), (True, False), (True, True)}


def test_the_distance_of_a_videos_images_grows(videos):
    source = VideoFolder(videos, max_gap=20, camera=STILL)
    dataset = PairDataset([(source, 1)], DataConfig(crops=CropConfig(gap_growth=0.5), augment=PLAIN, length=1000))
    drawn, view = [], source.view
    source.view = lambda video, frame: drawn.append(frame) or view(video, frame)

    def gaps(indices):
        drawn.clear()
        for index in indices:
            dataset[index]
        return np.abs(np.diff(np.reshape(drawn, (-1, 2)), axis=1))

    # A tenth of 20 frames; one frame without a target in between adds five (see draw_frames).
    assert gaps(range(20)).max() <= 7 < 10 < gaps(range(500, 540)).max()

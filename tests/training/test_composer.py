"""Cut-outs and composed pairs: geometry against painted targets, occlusion, and the full mix of sources."""

import cv2
import numpy as np
import pytest
import torch

from ostrack_fast.training.augment import AugmentConfig
from ostrack_fast.training.canvas import make_cutout, render
from ostrack_fast.training.composer import Composer, ComposerConfig
from ostrack_fast.training.cutouts import (
    folder_cutouts,
    photo_cutout,
    plain_background_cutouts,
    random_shapes,
    video_cutouts,
    whole_cutouts,
)
from ostrack_fast.training.dataset import DataConfig, PairDataset
from ostrack_fast.training.geometry import bounds, linear_map, mask_outline, transform
from ostrack_fast.training.photos import PhotoRegions
from ostrack_fast.training.videos import VideoFolder

from .painted import PLAIN, RED, assert_box_marks_red, save, texture


def clean_composer(cutouts, photos, **changes):
    settings = {
        "photo_targets": 0,
        "distractors": (1,),
        "occlusion": 0,
        "camouflage": 0,
        "edge": 0,
        "size": (0.1, 0.3),
        **changes,
    }
    return Composer([(folder_cutouts(cutouts), 1)], [(photos, 1)], config=ComposerConfig(**settings))


def test_object_before_an_even_background_is_cut_out(tmp_path):
    image = np.full((100, 140, 3), 250, dtype=np.uint8)
    image[30:70, 40:110] = RED
    save(tmp_path / "a.png", image)
    save(tmp_path / "b.png", texture(np.random.default_rng(0), 96, 96))
    groups = plain_background_cutouts(tmp_path)
    assert len(groups) == 1
    np.testing.assert_allclose(bounds(groups[0].cutouts[0].outline)[2:], [70, 40], atol=2)


def test_rendered_cutout_fills_its_transformed_outline():
    alpha = np.zeros((100, 120), dtype=np.uint8)
    cv2.ellipse(alpha, (60, 50), (45, 25), 30, 0, 360, 255, -1)
    cutout = make_cutout(np.full((100, 120, 3), RED, dtype=np.uint8), alpha)
    for scale in (0.2, 0.6, 1.0, 2.5):
        matrix = np.column_stack((linear_map(0.7, 0.1, 0.1, scale), (140.3, 90.6)))
        layer = render(cutout, matrix, (600, 600))
        canvas = np.zeros((600, 600))
        canvas[layer.rows, layer.columns] = layer.alpha
        np.testing.assert_allclose(
            bounds(mask_outline(canvas > 0.5)), bounds(transform(matrix, cutout.outline)), atol=1.6
        )
    assert render(cutout, np.array([[1.0, 0, 900], [0, 1, 0]]), (300, 300)) is None


# At a quarter of the size half a pixel is left of the transparent margin, and the edge is a little darker.
@pytest.mark.parametrize(("scale", "darkest"), [(1.0, 195), (0.5, 195), (0.25, 165)])
def test_nothing_of_a_cutout_shows_beyond_its_image(scale, darkest):
    """A layer is the box around a turned cut-out: its corners are empty, and no black shines in at the edge."""
    cutout = make_cutout(np.full((130, 170, 3), 200, np.uint8), np.full((130, 170), 255, np.uint8))
    linear = linear_map(np.pi / 4, scale=scale)
    layer = render(cutout, np.column_stack((linear, (200, 200))), (400, 400))
    y, x = np.mgrid[layer.rows, layer.columns] + 0.5
    inside = (np.stack((x, y), -1) - 200) @ np.linalg.inv(linear).T
    height, width = cutout.images[0].shape[:2]
    beyond = ((inside < -1 / scale) | (inside > np.array([width, height]) + 1 / scale)).any(-1)
    assert beyond.sum() > 100 and layer.alpha[beyond].max() == 0
    assert layer.color[layer.alpha > 0.4].min() >= darkest


def test_shapes_cut_from_a_photo_end_before_their_image():
    shapes, photo = random_shapes(np.random.default_rng(0)), texture(np.random.default_rng(1), 200, 260)
    found = [photo_cutout(photo, shapes, np.random.default_rng(seed)) for seed in range(40)]
    alphas = [cutout.images[0][..., 3] for cutout in found if cutout is not None]
    assert len(alphas) > 20 and all(alpha.max() > 200 for alpha in alphas)
    assert all(not alpha[[0, -1]].any() and not alpha[:, [0, -1]].any() for alpha in alphas)


def test_composed_boxes_lie_on_the_pasted_target(composer_parts):
    dataset = PairDataset([(clean_composer(*composer_parts), 1)], DataConfig(augment=PLAIN))
    checked = 0
    for i in range(60):
        item = dataset[i]
        checked += assert_box_marks_red(item["template"].numpy(), item["template_box"].numpy(), 5)
        checked += assert_box_marks_red(item["search"].numpy(), item["search_box"].numpy(), 5)
    assert checked > 80


def test_occluder_leaves_half_of_the_target(composer_parts):
    cutouts, photos = composer_parts
    composer = clean_composer(cutouts, photos, max_occlusion=0.5)
    alpha = np.full((60, 80), 255, dtype=np.uint8)
    target_cutout = make_cutout(np.zeros((60, 80, 3), dtype=np.uint8), alpha)
    target = render(target_cutout, np.array([[1.0, 0, 100], [0, 1, 100]]), (256, 256))
    box = bounds(target_cutout.outline + 100)
    shares = []
    for seed in range(60):
        canvas = np.full((256, 256, 3), 7, dtype=np.uint8)
        composer._occlude(canvas, np.eye(2, 3), target, box, 70.0, np.random.default_rng(seed))
        changed = (canvas != 7).any(-1)[target.rows, target.columns]
        shares.append(changed.mean())
    # A pixel counts here as soon as it changes at all, in the composer by its alpha.
    assert max(shares) <= 0.56 and sum(share > 0.1 for share in shares) > 10


def test_every_source_and_the_full_mix(videos, composer_parts):
    cutouts, photos = composer_parts
    source = VideoFolder(videos)
    groups = video_cutouts(source)
    assert [len(g.cutouts) for g in groups] == [12, 15]
    assert len(whole_cutouts(photos)) == 3
    composer = Composer(
        [(folder_cutouts(cutouts), 1), (groups, 1), (plain_background_cutouts(photos), 1)], [(photos, 1)], source
    )
    dataset = PairDataset(
        [(source, 1), (PhotoRegions([photos]), 1), (composer, 2)], DataConfig(augment=AugmentConfig.robust())
    )
    for i in range(60):
        item = dataset[i]
        for name in ("template", "search"):
            box = item[f"{name}_box"]
            assert torch.isfinite(box).all() and (box[2:] > 0).all()
            assert ((box[:2] + box[2:] / 2 >= 0) & (box[:2] + box[2:] / 2 <= 1)).all()

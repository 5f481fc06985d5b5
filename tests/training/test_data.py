"""Training pairs: geometry against painted targets, determinism, resumption, errors."""

import json

import cv2
import numpy as np
import pytest
import torch

from ostrack_fast.boxes import crop_window
from ostrack_fast.training.augment import Augment, AugmentConfig, add_noise, adjust, flip_box, motion_blur, saturate
from ostrack_fast.training.composer import (
    Composer,
    ComposerConfig,
    PhotoRegions,
    coco_cutouts,
    folder_cutouts,
    make_cutout,
    plain_background_cutouts,
    render,
    video_cutouts,
    whole_cutouts,
)
from ostrack_fast.training.data import (
    CameraConfig,
    CocoImages,
    CropConfig,
    DataConfig,
    ImageStore,
    Pair,
    PairDataset,
    VideoFolder,
    bounds,
    cut,
    draw_window,
    linear_map,
    make_loader,
    mask_outline,
    read_boxes,
    transform,
)

RED = (230, 20, 20)
PLAIN = AugmentConfig(gray=0, flip=0, brightness=0)
STILL = CameraConfig(probability=0)


def texture(rng, height, width):
    """A gray-green photo without any red."""
    image = cv2.resize(rng.integers(0, 255, (height // 8, width // 8), dtype=np.uint8), (width, height))
    return np.stack((image // 4, image // 2 + 60, image // 3 + 40), axis=-1)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = image[..., [2, 1, 0, 3]] if image.shape[2] == 4 else image[..., ::-1]
    assert cv2.imwrite(str(path), channels)


def red_box(image):
    """xywh, in pixels from edge to edge, of what is red."""
    image = image.astype(np.int16)
    y, x = np.nonzero((image[..., 0] > 120) & (image[..., 1] < 90) & (image[..., 2] < 90))
    return np.array([x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()])


def assert_box_marks_red(image, box, tolerance):
    """The normalized box lies on the red pixels, if these do not touch the border of the crop."""
    size = image.shape[0]
    seen = red_box(image)
    if (seen[:2] > 0).all() and (seen[:2] + seen[2:] < size).all():
        expected = box.astype(np.float64) * size
        np.testing.assert_allclose(seen, expected, atol=tolerance)
        return 1
    return 0


@pytest.fixture
def videos(tmp_path):
    """Two videos of a moving red rectangle, with masks, and one that is too short."""
    rng = np.random.default_rng(0)
    for name, count in (("alpha", 24), ("beta", 30), ("short", 6)):
        background, lines = texture(rng, 240, 320), []
        for i in range(count):
            frame, box = background.copy(), (60 + 4 * i, 50 + 3 * i, 40 + i, 30)
            x, y, w, h = box
            frame[y : y + h, x : x + w] = RED
            save(tmp_path / name / "img" / f"{i:04}.png", frame)
            mask = np.zeros_like(frame)
            mask[y : y + h, x : x + w] = 255
            save(tmp_path / name / "mask" / f"{i:04}.png", mask)
            lines.append("nan,nan,nan,nan" if i == 7 else "\t".join(map(str, box)))
        (tmp_path / name / "groundtruth_rect.txt").write_text("\n".join(lines))
    return tmp_path


@pytest.fixture
def composer_parts(tmp_path):
    """A folder with red cut-outs (an ellipse and a rectangle) and one with photos."""
    rng = np.random.default_rng(1)
    for i in range(2):
        image = np.zeros((90, 120, 4), dtype=np.uint8)
        image[..., :3] = RED
        if i:
            image[12:70, 20:100, 3] = 255
        else:
            alpha = np.zeros((90, 120), dtype=np.uint8)
            cv2.ellipse(alpha, (60, 45), (50, 30), 20, 0, 360, 255, -1)
            image[..., 3] = alpha
        save(tmp_path / "cutouts" / f"{i}.png", image)
    for i in range(3):
        save(tmp_path / "photos" / f"{i}.png", texture(rng, 240, 320))
    return tmp_path / "cutouts", tmp_path / "photos"


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


def test_window_follows_the_published_formulas():
    crops = CropConfig(center_jitter=(0, 0), scale_jitter=(0, 0))
    box = (33.0, 41.5, 37.0, 22.0)
    window, inside = draw_window(box, crops, True, np.random.default_rng(0))
    assert (window.left, window.top, window.side) == crop_window(box, 4.0)
    scale = 256 / window.side
    expected = np.array([127.5 - 18.5 * scale, 127.5 - 11 * scale, 37 * scale, 22 * scale]) / 256
    np.testing.assert_allclose(inside, expected, rtol=1e-6)


def test_jitter_has_the_published_spread():
    crops, rng = CropConfig(), np.random.default_rng(0)
    box = (200.0, 200.0, 60.0, 60.0)
    drawn = [draw_window(box, crops, True, rng) for _ in range(2000)]
    kept = [d for d in drawn if d is not None]
    sides = np.log([w.side / 240 for w, _ in kept])
    # The side is the geometric mean of two log-normal factors of deviation 0.25.
    assert abs(sides.std() - 0.25 / np.sqrt(2)) < 0.01
    centers = np.array([b[0] + b[2] / 2 for _, b in kept])
    # Uniform within 1.5 jittered sizes of a crop 4 sizes wide: 0.125 to 0.875.
    assert 0.12 < centers.min() < 0.14 and 0.86 < centers.max() < 0.88


def test_draw_outside_the_crop_is_refused():
    crops = CropConfig(center_jitter=(0, 40))
    drawn = [draw_window((50, 50, 20, 20), crops, True, np.random.default_rng(i)) for i in range(50)]
    assert any(d is None for d in drawn)
    for window_and_box in drawn:
        if window_and_box is not None:
            box = window_and_box[1]
            assert 0 <= box[0] + box[2] / 2 <= 1 and 0 <= box[1] + box[3] / 2 <= 1


def test_cut_is_black_outside_and_never_reads_the_last_row_and_column():
    image = np.full((40, 50, 3), 200, dtype=np.uint8)
    image[-1], image[:, -1] = 255, 255
    still = CropConfig(center_jitter=(0, 0), scale_jitter=(0, 0))
    window, _ = draw_window((30, 20, 20, 20), still, True, np.random.default_rng(0))
    crop = cut(image, window)
    assert crop.shape == (80, 80, 3) and window.side == 80
    assert set(np.unique(crop)) == {0, 200}
    assert (crop[-window.top : -window.top + 39, : 49 - window.left] == 200).all()
    assert not crop[: -window.top].any() and not crop[:, 49 - window.left :].any()


def test_video_boxes_lie_on_the_painted_target(videos):
    dataset = PairDataset([(VideoFolder(videos, camera=STILL), 1)], DataConfig(augment=PLAIN))
    checked = 0
    for i in range(40):
        item = dataset[i]
        assert item["template"].shape == (128, 128, 3) and item["template"].dtype == torch.uint8
        assert item["search"].shape == (256, 256, 3) and item["search_box"].dtype == torch.float32
        # One image pixel is up to five crop pixels wide here, and only its centre is compared.
        checked += assert_box_marks_red(item["template"].numpy(), item["template_box"].numpy(), 3)
        checked += assert_box_marks_red(item["search"].numpy(), item["search_box"].numpy(), 3)
    assert checked > 40


def test_video_boxes_follow_a_turning_camera(videos):
    camera = CameraConfig(probability=1, rotation=15, stretch=0.2, shear=0.1)
    dataset = PairDataset([(VideoFolder(videos, camera=camera), 1)], DataConfig(augment=PLAIN))
    checked = 0
    for i in range(40):
        item = dataset[i]
        checked += assert_box_marks_red(item["template"].numpy(), item["template_box"].numpy(), 5)
    assert checked > 20


def test_flipped_boxes_lie_on_the_painted_target(videos):
    augment = AugmentConfig(gray=0, flip=1, brightness=0)
    dataset = PairDataset([(VideoFolder(videos, camera=STILL), 1)], DataConfig(augment=augment))
    assert (
        sum(assert_box_marks_red(dataset[i]["search"].numpy(), dataset[i]["search_box"].numpy(), 3) for i in range(20))
        > 5
    )


def test_video_sampling_skips_short_videos_and_absent_targets(videos):
    source = VideoFolder(videos)
    assert source.names == ["alpha", "beta"]
    assert 7 not in source.visible[0] and len(source.visible[0]) == 23
    drawn, view = [], source.view
    source.view = lambda video, frame: drawn.append((video, frame)) or view(video, frame)
    rng = np.random.default_rng(0)
    for _ in range(100):
        source.sample(rng, CropConfig())
    for (a, first), (b, second) in zip(drawn[::2], drawn[1::2], strict=True):
        assert a == b and first < second and 7 not in (first, second)


def test_search_interval_widens_until_a_target_is_visible(tmp_path):
    boxes = ["nan,nan,nan,nan"] * 40
    for i in (0, 1, 2, 3, 30):
        boxes[i] = "20,20,30,30"
    for i in range(40):
        save(tmp_path / "v" / "img" / f"{i:04}.png", texture(np.random.default_rng(i), 80, 80))
    (tmp_path / "v" / "groundtruth_rect.txt").write_text("\n".join(boxes))
    source = VideoFolder(tmp_path, max_gap=2)
    frames, view = set(), source.view
    source.view = lambda video, frame: frames.add(frame) or view(video, frame)
    for i in range(40):
        source.sample(np.random.default_rng(i), CropConfig())
    assert 30 in frames


def coco_folder(tmp_path):
    image = texture(np.random.default_rng(0), 240, 320)
    image[80:140, 100:180] = RED
    save(tmp_path / "images" / "a.png", image)
    return tmp_path / "images"


def check_coco(source):
    dataset = PairDataset([(source, 1)], DataConfig(augment=PLAIN))
    assert (
        sum(assert_box_marks_red(dataset[i]["search"].numpy(), dataset[i]["search_box"].numpy(), 2) for i in range(20))
        > 5
    )


def test_coco_json(tmp_path):
    images = coco_folder(tmp_path)
    corners = [100, 80, 180, 80, 180, 140, 100, 140]
    document = {
        "images": [{"id": 5, "file_name": "a.png"}],
        "annotations": [
            {"image_id": 5, "category_id": 3, "bbox": [100, 80, 80, 60], "segmentation": [corners], "iscrowd": 0},
            {"image_id": 5, "category_id": 3, "bbox": [0, 0, 200, 200], "segmentation": {}, "iscrowd": 1},
            {"image_id": 5, "category_id": 3, "bbox": [0, 0, 5, 50], "iscrowd": 0},
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(document))
    source = CocoImages(images, path)
    assert len(source.objects) == 1
    check_coco(source)
    assert len(coco_cutouts(source)) == 1
    path.write_text(json.dumps({"images": []}))
    with pytest.raises(ValueError, match="not a COCO instances file"):
        CocoImages(images, path)


def test_coco_label_folder(tmp_path):
    images, labels = coco_folder(tmp_path), tmp_path / "labels"
    labels.mkdir()
    (labels / "a.box.txt").write_text(f"0 {140 / 320} {110 / 240} {80 / 320} {60 / 240}\n")
    points = " ".join(f"{x / 320} {y / 240}" for x, y in ((100, 80), (180, 80), (180, 140), (100, 140)))
    (labels / "a.poly.txt").write_text(f"7 {points}\n7 0.1 0.1 0.2 0.1 0.2 0.2\n")
    source = CocoImages(images, labels)
    assert len(source.objects) == 1 and len(source.objects[0][3]) == 1
    check_coco(source)
    (labels / "a.box.txt").write_text("0 0.5 0.5 0.1\n")
    with pytest.raises(ValueError, match="not class cx cy w h"):
        CocoImages(images, labels)
    with pytest.raises(FileNotFoundError, match="neither"):
        CocoImages(images, tmp_path / "nothing")


def test_outline_of_a_mask_is_tight():
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[4:9, 6:13] = 1
    mask[9, 8] = 1
    np.testing.assert_array_equal(bounds(mask_outline(mask)), [6, 4, 7, 6])
    assert mask_outline(np.zeros((5, 5))) is None


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


def test_object_before_an_even_background_is_cut_out(tmp_path):
    image = np.full((100, 140, 3), 250, dtype=np.uint8)
    image[30:70, 40:110] = RED
    save(tmp_path / "a.png", image)
    save(tmp_path / "b.png", texture(np.random.default_rng(0), 96, 96))
    groups = plain_background_cutouts(tmp_path)
    assert len(groups) == 1
    np.testing.assert_allclose(bounds(groups[0].cutouts[0].outline)[2:], [70, 40], atol=2)


def test_sample_depends_on_seed_and_index_only(composer_parts):
    source = clean_composer(*composer_parts)
    config = DataConfig(augment=AugmentConfig.robust(), length=24)
    dataset = PairDataset([(source, 1)], config)
    expected = [dataset[i] for i in range(24)]
    for i in (5, 0, 23):
        again = PairDataset([(source, 1)], config)[i]
        assert all(torch.equal(again[key], expected[i][key]) for key in again)
    other = PairDataset([(source, 1)], DataConfig(augment=config.augment, seed=1, length=24))
    assert not torch.equal(other[0]["search"], expected[0]["search"])
    for workers, start in ((0, 0), (2, 0), (1, 8)):
        batches = list(make_loader(dataset, 4, workers, start))
        assert len(batches) == (24 - start) // 4
        for key in expected[0]:
            flat = torch.cat([batch[key] for batch in batches])
            assert torch.equal(flat, torch.stack([item[key] for item in expected[start:]])), (workers, start, key)


class Numbered:
    """A source of one gray level."""

    def __init__(self, level):
        self.level = level

    def sample(self, rng, crops):
        image, box = np.full((32, 32, 3), self.level, dtype=np.uint8), np.array([0.4, 0.4, 0.2, 0.2], dtype=np.float32)
        return Pair(image, box, image, box)


class Never:
    def sample(self, rng, crops):
        return None


def test_sources_are_mixed_by_ratio_and_redrawn():
    dataset = PairDataset([(Numbered(10), 3), (Numbered(20), 1), (Never(), 4)], DataConfig(augment=PLAIN))
    levels = [int(dataset[i]["search"][0, 0, 0]) for i in range(800)]
    assert abs(levels.count(10) / 800 - 0.75) < 0.05 and set(levels) == {10, 20}


def test_dataset_errors():
    with pytest.raises(ValueError, match="at least one"):
        PairDataset([])
    with pytest.raises(ValueError, match="ratios must be positive"):
        PairDataset([(Numbered(0), 0)])
    with pytest.raises(RuntimeError, match="no usable pair"):
        PairDataset([(Never(), 1)])[0]
    dataset = PairDataset([(Numbered(0), 1)], DataConfig(length=8))
    with pytest.raises(IndexError):
        dataset[8]
    with pytest.raises(ValueError, match="start=9"):
        make_loader(dataset, 2, start=9)
    with pytest.raises(ValueError, match="at least 16"):
        CropConfig(template_size=8)
    with pytest.raises(ValueError, match="gray"):
        AugmentConfig(gray=2)


def test_folder_errors(videos, tmp_path):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        VideoFolder(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no usable video"):
        VideoFolder(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="holds no image"):
        PhotoRegions([tmp_path / "empty"])
    truth = videos / "alpha" / "groundtruth_rect.txt"
    lines = truth.read_text().splitlines()
    truth.write_text("\n".join(lines[:-1]))
    with pytest.raises(ValueError, match="24 images but 23 boxes"):
        VideoFolder(videos)
    truth.write_text("\n".join([*lines[:-1], "1 2 3"]))
    with pytest.raises(ValueError, match=r"txt:24.*3 numbers"):
        VideoFolder(videos)
    truth.write_text("\n".join([*lines[:-1], "1 2 3 x"]))
    with pytest.raises(ValueError, match="not four numbers"):
        VideoFolder(videos)
    truth.write_text("\n".join(lines))
    (videos / "alpha" / "img" / "0000.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"0000\.png is not an image"):
        VideoFolder(videos)


def test_separators_of_ground_truth(tmp_path):
    path = tmp_path / "gt.txt"
    path.write_text("1,2,3,4\n1\t2\t3\t4\n1 2  3 4\n1, 2, 3, 4\nNaN,nan,nan,nan\n")
    boxes = read_boxes(path)
    np.testing.assert_array_equal(boxes[:4], np.tile([1, 2, 3, 4], (4, 1)))
    assert np.isnan(boxes[4]).all()


def test_images_beyond_the_memory_limit_are_decoded_on_demand(tmp_path):
    images = [texture(np.random.default_rng(i), 40, 40) for i in range(3)]
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, images, strict=True):
        save(path, image)
    store = ImageStore(paths, memory_limit=5000)
    for i, image in enumerate(images):
        np.testing.assert_array_equal(store[i], image)
    paths[0].unlink()
    np.testing.assert_array_equal(store[0], images[0])
    paths[2].unlink()
    with pytest.raises(ValueError, match="not an image"):
        store[2]


def test_augment_operations():
    image = np.full((64, 64, 3), (100, 150, 200), dtype=np.uint8)
    np.testing.assert_array_equal(adjust(image, 1.2)[0, 0], [120, 180, 240])
    np.testing.assert_array_equal(adjust(image, 1.0, tint=np.array([0.5, 1, 2]))[0, 0], [50, 150, 255])
    assert adjust(np.zeros_like(image), 1.3, 0.5).max() == 0
    gray = saturate(image, 0.0)[0, 0]
    assert np.ptp(gray) <= 1 and abs(int(gray[0]) - 141) <= 1
    noisy = add_noise(image, 10.0, np.random.default_rng(0)).astype(np.float64) - image
    assert abs(noisy.std() - 10) < 1 and abs(noisy.mean()) < 1
    dot = np.zeros((33, 33, 3), dtype=np.uint8)
    dot[16, 16] = 250
    streak = motion_blur(dot, 8.0, 0.0)[..., 0]
    assert np.count_nonzero(streak[16]) == 9 and np.count_nonzero(streak) == 9
    np.testing.assert_allclose(flip_box(np.array([0.1, 0.2, 0.3, 0.4])), [0.6, 0.2, 0.3, 0.4])


def test_published_augmentation_keeps_pairs_aligned():
    rng = np.random.default_rng(0)
    ramp = np.tile(np.arange(50, 114, dtype=np.uint8)[None, :, None], (64, 1, 3)) + np.uint8([0, 20, 40])
    augment, flipped, gray = Augment(AugmentConfig()), 0, 0
    for _ in range(400):
        (a, b), flips = augment((ramp, ramp), rng)
        assert flips[0] == flips[1]
        assert (a[0, 0, 0] > a[0, -1, 0]) == flips[0] == (b[0, 0, 0] > b[0, -1, 0])
        flipped += flips[0]
        is_gray = np.ptp(a[5, 5]) == 0
        assert is_gray == (np.ptp(b[5, 5]) == 0)
        gray += is_gray
        assert 0.78 < a[..., 1].mean() / ramp[..., 1].mean() < 1.22
    assert abs(flipped / 400 - 0.5) < 0.1 and 5 <= gray <= 40

"""Small folders of painted training data."""

import cv2
import numpy as np
import pytest

from ostrack_fast.training.config import OptimConfig, TrainConfig
from ostrack_fast.training.crops import CropConfig
from ostrack_fast.training.losses import LossConfig

from .painted import RED, save, texture
from .tiny_run import MODEL


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


@pytest.fixture(scope="session")
def square(tmp_path_factory):
    """A folder with one video of a bright square that moves over noise."""
    root = tmp_path_factory.mktemp("videos")
    (root / "square" / "img").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = []
    for i in range(24):
        frame = rng.integers(0, 90, (96, 128, 3), dtype=np.uint8)
        x, y = 20 + 2 * i, 30 + i
        frame[y : y + 20, x : x + 24] = (250, 240, 60)
        cv2.imwrite(str(root / "square" / "img" / f"{i:04d}.png"), frame)
        lines.append(f"{x},{y},24,20")
    (root / "square" / "groundtruth_rect.txt").write_text("\n".join(lines))
    return root


@pytest.fixture
def config(square, tmp_path):
    return TrainConfig(
        model=MODEL,
        data={"videos": {"path": "."}},
        data_root=str(square),
        output=str(tmp_path / "run"),
        crops=CropConfig(template_size=32, search_size=64),
        loss=LossConfig(box_cells="target", attention=0.1),
        optim=OptimConfig(lr=1e-3, ema=0.9, decay_epochs=1.0),
        epochs=2,
        pairs_per_epoch=24,
        batch_size=4,
        ce_start_epoch=0.5,
        ce_warmup_epochs=1.0,
        workers=0,
    )

"""A video made of noise with a bright square that moves two pixels a frame."""

from pathlib import Path

import cv2
import numpy as np
import pytest


def write_video(folder: Path, frames: int = 6, origin: int = 0, separator: str = ",") -> np.ndarray:
    """Writes `img/` and `groundtruth_rect.txt`; returns the boxes, (frames,4), counted from 0."""
    (folder / "img").mkdir(parents=True)
    noise = np.random.default_rng(0)
    boxes = np.array([[20 + 2 * i, 30 + i, 16, 12] for i in range(frames)], dtype=float)
    for i, (x, y, w, h) in enumerate(boxes.astype(int)):
        image = noise.integers(0, 60, (96, 128, 3), dtype=np.uint8)
        image[y : y + h, x : x + w] = (250, 160, 40)
        # Numbered without leading zeros from 8 on: 10 must follow 9.
        cv2.imwrite(str(folder / "img" / f"{i + 8}.png"), image[..., ::-1])
    lines = (separator.join(f"{v:g}" for v in (x + origin, y + origin, w, h)) for x, y, w, h in boxes)
    (folder / "groundtruth_rect.txt").write_text("\n".join(lines) + "\n")
    return boxes


@pytest.fixture
def videos(tmp_path):
    """A folder of two videos, `one_A` (counts from 1, tabs) and `zero_B` (absent in its frames 2 and 3)."""
    write_video(tmp_path / "data" / "one_A", origin=1, separator="\t")
    write_video(tmp_path / "data" / "zero_B", frames=5)
    truth = tmp_path / "data" / "zero_B" / "groundtruth_rect.txt"
    lines = truth.read_text().splitlines()
    lines[2], lines[3] = "nan,nan,nan,nan", ""
    truth.write_text("\n".join(lines) + "\n")
    return tmp_path / "data"

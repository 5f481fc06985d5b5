"""A frame as a CUDA graph against the same frame run step by step: the same boxes, to the bit, over 1,000 frames."""

import numpy as np
import pytest
import torch

from ostrack_fast import Engine, OSTrack

BOXES = [(50.0, 30.5, 20.0, 28.0), (5.0, 8.0, 30.0, 17.0), (80.0, 60.0, 25.0, 25.0), (20.0, 50.0, 11.0, 40.0)]
SIZES = [(96, 128), (240, 320), (61, 45)]


def picture(random, height, width):
    """What a camera might send: noise, a smooth picture, one colour, or black with a bright square somewhere."""
    kind = random.integers(4)
    if kind == 0:
        return random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == 1:
        rows, columns = np.mgrid[:height, :width] / random.uniform(3, 40)
        waves = [np.sin(rows + random.uniform(0, 9)) * np.cos(columns * random.uniform(0.3, 3)) for _ in range(3)]
        return np.uint8(127 + 120 * np.stack(waves, axis=2))
    frame = np.full((height, width, 3), random.integers(0, 256, 3) if kind == 2 else 0, np.uint8)
    if kind == 3:
        y, x = random.integers(height), random.integers(width)
        frame[y : y + 20, x : x + 30] = random.integers(0, 256, 3)
    return frame


@pytest.mark.parametrize(
    ("device", "dtype", "frames"),
    [
        pytest.param("cpu", "float32", 12, id="cpu"),
        pytest.param("cuda", "float32", 1000, id="cuda-float32", marks=pytest.mark.gpu),
        pytest.param("cuda", "float16", 1000, id="cuda-float16", marks=pytest.mark.gpu),
    ],
)
def test_replayed_frames_equal_eager_ones(device, dtype, frames, no_tf32):
    """On the CPU, where there are no graphs, `step` must be what it does, and nothing of the frame before."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    random = np.random.default_rng(0)
    engine = Engine(OSTrack.from_pretrained("small"), device, dtype)
    engine.add(picture(random, *SIZES[0]), BOXES[0])
    for number in range(frames):
        size = SIZES[number // 7 % len(SIZES)]
        frame = picture(random, *size)
        if number % 60 in (3, 20, 30):  # targets come and go
            engine.add(frame, BOXES[engine.count])
        elif number % 60 in (40, 50, 55):
            engine.drop(0)
        if random.random() < 0.05:  # they jump
            engine.place(random.uniform((0, 0, 3, 3), (size[1], size[0], 60, 60), (engine.count, 4)).tolist())
        rows = engine.count if device == "cpu" else min(len(engine._targets.box), 1 << (engine.count - 1).bit_length())
        with torch.no_grad():
            eager = engine._locator(engine._targets.rows(slice(rows)), torch.from_numpy(frame).to(device))[0][
                : engine.count
            ].tolist()
        assert engine.step(frame) == eager, f"frame {number}"

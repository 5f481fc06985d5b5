"""The public API is typed: a user's file passes `mypy --strict`, and mistakes in it are found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ostrack_fast

USER = """
from __future__ import annotations

import numpy as np
import torch

from ostrack_fast import Engine, MultiTracker, OSTrack, Tracker, TrackResult, accelerate, build_ostrack
from ostrack_fast.config import ModelConfig
from ostrack_fast.export import Deviation, export_model
from ostrack_fast.video import VideoWriter, open_source


def follow(path: str, box: tuple[float, float, float, float]) -> list[float]:
    source = open_source(path)
    frames = iter(source)
    tracker = Tracker("small", device="cpu", dtype=torch.float32)
    first: np.ndarray = next(frames)
    tracker.initialize(first, box)
    results: list[TrackResult] = [tracker.track(frame) for frame in frames]
    with VideoWriter("out.mp4", source.fps) as video:
        video.write(first)
    x, y, width, height = results[0].box
    return [result.score for result in results if not result.lost] + [x, y, width, height]


def many(frame: np.ndarray) -> dict[int, TrackResult]:
    tracker = MultiTracker("small")
    target: int = tracker.add(frame, (1, 2, 3, 4))
    found = tracker.track(frame)
    tracker.drop(target)
    return found


def network(template: torch.Tensor, search: torch.Tensor) -> torch.Tensor:
    model: OSTrack = build_ostrack(ModelConfig(depth=2))
    engine = Engine(model, "cpu", "float32")
    engine.set_template(template)
    maps: dict[str, torch.Tensor] = engine.forward(search)
    accelerate(model)
    deviation: Deviation = export_model(model, "out.onnx", dtype="float16", batch=None)
    Tracker.from_onnx("out.onnx", providers=["CPUExecutionProvider"])
    return maps["score_map"] * deviation.score
"""

MISTAKES = """
from ostrack_fast import Tracker

tracker = Tracker("small")
tracker.initialise
score: str = tracker.track(1).score
"""


def strict(path):
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--cache-dir", "cache", str(path)]
    environment = dict(os.environ)
    home = Path(ostrack_fast.__file__).parents[1]
    if home.name != "site-packages":
        # mypy does not see an editable installation by itself; and it should judge the user's file alone.
        environment["MYPYPATH"] = str(home)
        command.append("--follow-imports=silent")
    done = subprocess.run(command, capture_output=True, text=True, cwd=path.parent, env=environment)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_a_users_file_passes_mypy_strict_and_its_mistakes_are_found(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed")
    (tmp_path / "user.py").write_text(USER)
    code, said = strict(tmp_path / "user.py")
    assert code == 0, said
    (tmp_path / "wrong.py").write_text(MISTAKES)
    code, said = strict(tmp_path / "wrong.py")
    assert code == 1
    for found in ('"Tracker" has no attribute "initialise"', "incompatible type", 'expression has type "float"'):
        assert found in said, said

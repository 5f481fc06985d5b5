"""The C++ example builds against OpenCV and gives the tracker's boxes."""

import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from ostrack_fast import Tracker

from .conftest import boxed, tiny

EXAMPLE = Path(__file__).parents[2] / "examples" / "cpp"
BOX = (50, 30, 40, 36)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The built example."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("cmake is not installed")
    if not EXAMPLE.is_dir():
        pytest.skip("the examples are not here: the tests run outside of a checkout")
    build = tmp_path_factory.mktemp("example")
    configured = subprocess.run([cmake, "-S", EXAMPLE, "-B", build], capture_output=True, text=True)
    if configured.returncode and "OpenCV" in configured.stderr:
        pytest.skip("OpenCV's C++ headers are not installed (Debian: libopencv-dev)")
    assert configured.returncode == 0, configured.stderr
    built = subprocess.run([cmake, "--build", build], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return build / "track"


@pytest.mark.slow
def test_the_example_tells_what_it_cannot_read(program, tmp_path):
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: usage: track FILE.onnx")
    command = [program, tmp_path / "none.onnx", tmp_path / "none.mp4", "1,2,3,4", "128", "256"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "no frame can be read from" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny, boxed])
def test_the_example_gives_the_trackers_boxes(program, make, tmp_path):
    pytest.importorskip("onnxscript", reason="needs the packages of the extra export")
    from ostrack_fast.export import export_model

    model, path = make(), tmp_path / "tiny.onnx"
    export_model(model, path, layout="opencv-dnn")
    frames = np.random.default_rng(0).integers(0, 256, (4, 120, 160, 3), dtype=np.uint8)
    for index, frame in enumerate(frames):
        cv2.imwrite(str(tmp_path / f"{index:08d}.png"), frame[..., ::-1])
    command = [program, path, tmp_path / "%08d.png", ",".join(map(str, BOX)), "128", "256"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = np.loadtxt(done.stdout.splitlines(), delimiter=",")
    tracker = Tracker(model, "cpu", "float32")
    tracker.initialize(frames[0], BOX)
    expected = [(*BOX, 1.0), *((*result.box, result.score) for result in map(tracker.track, frames[1:]))]
    np.testing.assert_allclose(found, expected, atol=0.05)

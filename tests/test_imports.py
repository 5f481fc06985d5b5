"""What `import ostrack_fast` and a tracker load: nothing that they do not need."""

import subprocess
import sys

import pytest

HEAVY = ("timm", "torch._inductor", "torchvision", "matplotlib", "huggingface_hub")


@pytest.mark.parametrize(
    "code",
    [
        "import ostrack_fast",
        "from ostrack_fast import Engine, MultiTracker, OSTrack, Tracker, TrackResult, accelerate, build_ostrack",
        "from ostrack_fast import Tracker; Tracker(device='cpu')",
        "from ostrack_fast import accelerate, build_ostrack; accelerate(build_ostrack('small'), device='cpu')",
    ],
)
def test_heavy_modules_stay_out(code):
    """In a fresh process, by the modules that are there afterwards."""
    code += f"\nimport sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

"""What a replacement's speed hangs on: whose threads it runs on, and timings in turns."""

import os
import subprocess
import sys

import pytest
import torch

from ostrack_fast.ops.threads import gnu_parallel
from ostrack_fast.swap import swapped
from ostrack_fast.swap.swapped import Session

# The number of threads, which tells whether the kernels made some: in a process of its own, where none are yet.
SCRIPT = """
import os
import torch
from torch import nn
from ostrack_fast import accelerate
from ostrack_fast.swap import swapped

torch.set_num_threads(2)
x, network = torch.randn(1, 900, 64), nn.Linear(64, 8).eval()
network(x)
before = len(os.listdir("/proc/self/task"))
swapped.Session.speed = lambda self, key, original, replacement: 2.0
report = accelerate(network, mode="ops", dtype="float32", inputs=(x,))
assert report.covered == 1
with torch.no_grad():
    network(x)
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(gnu_parallel() == 0, reason="PyTorch's OpenMP runtime here has no GOMP_parallel")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two processors")
def test_a_replacement_runs_on_pytorchs_threads():
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["0"]


def test_what_shows_no_gain_is_timed_again(monkeypatch):
    calls = {"original": 0, "replacement": 0}
    session = Session(torch.float32)
    clock = [0.0]

    def run(name):
        calls[name] += 1
        # The replacement is disturbed until its eighth run, and twice as fast as the original from then on.
        clock[0] += 2.0 if name == "original" else 5.0 if calls[name] < 8 else 1.0

    monkeypatch.setattr(swapped.time, "perf_counter", lambda: clock[0])
    speed = session.speed(("some",), lambda: run("original"), lambda: run("replacement"))
    assert speed == 2 and calls == {"original": 10, "replacement": 10}
    assert session.speed(("same",), lambda: run("original"), lambda: run("original")) == 1 and calls["original"] == 40

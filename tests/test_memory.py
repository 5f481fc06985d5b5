"""A tracker that loads its weights itself never holds them twice."""

import gc
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from ostrack_fast import OSTrack, Tracker
from ostrack_fast.model.frozen import FrozenOSTrack


def tensor_bytes():
    """Of all memory behind CPU tensors that Python knows."""
    storages = {}
    for each in gc.get_objects():
        plain = type(each) in (torch.Tensor, torch.nn.Parameter)  # none of FakeTensor and its like, without memory
        if plain and each.device.type == "cpu" and each.layout == torch.strided:
            storage = each.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def test_weights_are_never_in_memory_twice(monkeypatch):
    """When the blocks are packed, their plain weights are gone; in the end those of the head are gone too."""
    gc.collect()  # else what other tests left goes in the meantime
    before = tensor_bytes()
    at_head = []
    freeze_head = FrozenOSTrack._freeze_head
    monkeypatch.setattr(
        FrozenOSTrack, "_freeze_head", lambda *args: (at_head.append(tensor_bytes() - before), freeze_head(*args))
    )
    tracker = Tracker("small", "cpu", "float32")
    weights = 4 * tracker.engine.network.parameters
    assert weights < at_head[0] < 1.2 * weights
    gc.collect()
    assert weights < tensor_bytes() - before < 1.2 * weights


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_given_model_and_its_tracker_do_not_change_each_other(dtype):
    """A model that is judged between epochs goes on training."""
    model = OSTrack.from_pretrained("small")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tracker = Tracker(model, "cpu", dtype)
    frame = np.random.default_rng(0).integers(0, 256, (240, 320, 3), "uint8")
    tracker.initialize(frame, (100, 80, 60, 40))
    found = tracker.track(frame)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        value.zero_()
    tracker.initialize(frame, (100, 80, 60, 40))
    again = tracker.track(frame)
    assert again.box == found.box and again.score == found.score


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of a process")
def test_a_tracker_takes_less_than_150_mb_beyond_pytorch():
    """All that the system counts, at its peak: weights, libraries, a full HD frame. Triton would be 70 MB of it."""
    program = """
import sys, torch, numpy
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1000
before = peak()
from ostrack_fast import Tracker
tracker = Tracker("small", "cpu", "float32")
frame = numpy.random.default_rng(0).integers(0, 256, (1080, 1920, 3), "uint8")
tracker.initialize(frame, (900, 500, 80, 60))
for _ in range(3):
    tracker.track(frame)
print(peak() - before, "triton" in sys.modules)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    megabytes, triton = ran.stdout.split()
    assert float(megabytes) < 150 and triton == "False", ran.stdout

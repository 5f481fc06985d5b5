"""PyTorch's threads rest between its ops while modules of a network are replaced, and only then."""

import os
import subprocess
import sys

import pytest
import torch

from ostrack_fast.ops.threads import thread_count
from ostrack_fast.swap import swapped
from ostrack_fast.swap.swapped import Session

# How much CPU time threads use in pauses: in a process of its own, since how they wait is settled when it starts.
SCRIPT = """
import time
import torch
from torch import nn
from ostrack_fast import accelerate
from ostrack_fast.swap import swapped

torch.set_num_threads(len(__import__("os").sched_getaffinity(0)))
numbers = torch.zeros(1 << 20)

def waiting():
    begun = time.process_time()
    for _ in range(5):
        numbers.add_(1)
        time.sleep(0.02)
    return time.process_time() - begun

def show(name):
    print(name, min(waiting() for _ in range(3)))

show("before")
swapped._TIMINGS = swapped._ROUNDS = 1
swapped.Session(torch.float32).speed((), lambda: show("original timed"), lambda: show("replacement timed"))
show("nothing replaced")
swapped.Session.speed = lambda self, *arguments: 2.0
networks = [nn.Linear(64, 8).eval() for _ in range(2)]
reports = [accelerate(each, mode="ops", dtype="float32", inputs=(torch.randn(1, 9, 64),)) for each in networks]
assert reports[0].covered == 1
show("replaced")
reports[0].restore()
show("one restored")
reports[1].restore()
show("restored")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libgomp, whose threads these are, is Linux's")
@pytest.mark.skipif(thread_count() < 2, reason="needs two processors: a lone thread waits for no other")
def test_pytorchs_threads_wait_briefly_while_modules_are_replaced():
    settled = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "OMP_THREAD_LIMIT")
    environment = {name: value for name, value in os.environ.items() if name not in settled}
    found = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    used = {name: float(number) for name, _, number in (line.rpartition(" ") for line in found.stdout.splitlines())}
    if used["before"] < 0.01:
        pytest.skip(f"PyTorch's threads do not wait at full speed here: {used['before']:.3f} s in 5 pauses of 0.02 s")
    for name in ("replacement timed", "replaced", "one restored"):
        assert used[name] < used["before"] / 3, used
    for name in ("original timed", "nothing replaced", "restored"):
        assert used[name] > used["before"] / 3, used


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

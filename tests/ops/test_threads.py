"""Kernels use no more threads than PyTorch's number and the container's limit allow."""

import os
import subprocess
import sys
from math import inf

import pytest
import torch

from ostrack_fast import ops
from ostrack_fast.ops import native
from ostrack_fast.ops.native import pytorch_threads
from ostrack_fast.ops.threads import cpu_limit, gnu_parallel


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, inf),
        # The tightest of a group and those around it.
        ("0::/a/b\n", {"a/cpu.max": "100000 100000\n", "a/b/cpu.max": "300000 100000\n"}, 1.0),
        (
            "4:cpu,cpuacct:/x\n0::/\n",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "50000\n", "cpu,cpuacct/x/cpu.cfs_period_us": "25000\n"},
            2.0,
        ),
        (
            "4:cpu,cpuacct:/x\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "25000\n"},
            inf,
        ),
        # The host's name of a container's group, which is the root inside.
        ("4:cpu:/docker/0123\n", {"cpu/cpu.cfs_quota_us": "30000\n", "cpu/cpu.cfs_period_us": "10000\n"}, 3.0),
        ("5:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": "1\n", "cpuset/cpu.cfs_period_us": "1\n"}, inf),
        ("nonsense\n", {"cpu.max": "what\n"}, inf),
    ],
)
def test_the_limit_of_control_groups(tmp_path, groups, files, limit):
    write(tmp_path, {"proc": groups, **{f"sys/{name}": text for name, text in files.items()}})
    assert cpu_limit(tmp_path / "proc", tmp_path / "sys") == limit


def test_without_control_groups(tmp_path):
    assert cpu_limit(tmp_path / "none", tmp_path) == inf


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity of processes")
def test_the_affinity_is_respected():
    code = (
        "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nimport torch\ntorch.set_num_threads(8)\n"
        "from ostrack_fast.ops.threads import thread_count\nprint(thread_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


COUNTS = """
import os, torch
from ostrack_fast import ops
from ostrack_fast.ops.native import pytorch_threads
torch.set_num_threads(2)
ids = torch.stack([torch.randperm(256) for _ in range(4)])
tokens = torch.randn(4, 256, 64)
wanted = torch.zeros(4, 64, 256).scatter_(2, ids[:, None].expand(-1, 64, -1), tokens.transpose(1, 2))
def restored():
    with ops.use("native"):
        return torch.equal(ops.restore(tokens, ids, 16).flatten(2), wanted)
def threads():
    return len(os.listdir("/proc/self/task"))
torch.randn(1 << 20).add_(1)  # PyTorch's threads are there
before = threads()
with pytorch_threads():
    inside = restored(), threads() - before
    with pytorch_threads():
        inside += (restored(), threads() - before)
    inside += (restored(), threads() - before)
print(*inside, restored(), threads() - before)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="the threads of a process are counted in /proc")
def test_kernels_run_on_the_threads_that_pytorch_has():
    """And on their own, which are made when they are first wanted, where they are not told to."""
    if gnu_parallel() == 0:
        pytest.skip("PyTorch's OpenMP runtime here has no GOMP_parallel")
    done = subprocess.run([sys.executable, "-c", COUNTS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "0", "True", "0", "True", "0", "True", "1"]


def test_without_such_a_runtime_kernels_keep_their_threads(monkeypatch):
    monkeypatch.setattr(native, "gnu_parallel", lambda: 0)
    with pytorch_threads(), ops.use("native"):
        assert native._C.cpu_use_openmp(0) == 0
        assert ops.restore(torch.ones(1, 1, 4), torch.zeros(1, 1, dtype=torch.int64), 1).sum() == 4


def test_an_error_inside_ends_it():
    with pytest.raises(ValueError, match="off"), pytorch_threads():
        raise ValueError("off")
    assert native._C.cpu_use_openmp(0) == 0

"""Kernels use no more threads than PyTorch's number and the container's limit allow."""

import os
import subprocess
import sys
from math import inf

import pytest

from ostrack_fast.ops.threads import cpu_limit


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

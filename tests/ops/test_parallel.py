"""The thread pool of the CPU kernels: a process that forks leaves its threads behind, and helpers may not help."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"

FORKS = """
import os, threading, torch
from ostrack_fast import ops
torch.set_num_threads(2)
torch.manual_seed(0)
qkv, expected = torch.randn(1, 320, 3, 2, 64), None
stop = threading.Event()

def attend():
    with ops.use("native"):
        return ops.attention(qkv)[0]

def keep_the_pool_busy():
    while not stop.is_set():
        attend()

expected = attend()
busy = threading.Thread(target=keep_the_pool_busy)
busy.start()
for number in range(60):
    child = os.fork()
    if child == 0:
        torch.set_num_threads(2)
        os._exit(0 if all(torch.equal(attend(), expected) for _ in range(3)) else 1)
    _, status = os.waitpid(child, 0)
    if status != 0:
        break
stop.set()
busy.join()  # PyTorch takes its registered operators back at exit, from under a thread that still calls them
assert status == 0, (number, status)
print("60 children")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_computes_while_its_parent_did():
    """Also where a thread of the parent held the pool's mutex at that moment."""
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "60 children" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(("name", "printed"), [("shares", "each once"), ("solitude", "alone as told")])
def test_the_pool_does_as_it_promises(tmp_path, name, printed):
    if shutil.which("g++") is None or not CSRC.is_dir():
        pytest.skip("needs g++ and the kernels' sources")
    program = tmp_path / name
    source = HERE / f"{name}.cpp"
    command = ["g++", "-std=c++17", f"-I{CSRC}", str(source), "-o", str(program), "-pthread"]
    subprocess.run(command, check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == f"{printed}\n", done.stdout + done.stderr

"""What Windows lacks is not needed: file locks, owners, hang-up signals, forked processes."""

import subprocess
import sys

from .test_architecture import MODULES

# Takes from Python what its Windows builds do not have, then imports every module and writes files.
_WITHOUT = """
import multiprocessing, os, signal, sys, time

ABSENT = ("fcntl", "resource", "termios")
sys.modules.update(dict.fromkeys(ABSENT))
for name in ("chown", "O_NOFOLLOW", "sched_getaffinity", "fork", "killpg", "setsid"):
    delattr(os, name)
del signal.SIGHUP

import importlib
for name in sys.argv[2:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:  # the package of an extra may be missing
        if error.name.partition(".")[0] in ("ostrack_fast", *ABSENT):
            raise

from pathlib import Path
from ostrack_fast import files
from ostrack_fast.interrupts import Interrupts
folder = Path(sys.argv[1])
(folder / ".ostrack_fast-old.txt").touch()
os.utime(folder / ".ostrack_fast-old.txt", (0, 0))
(folder / ".ostrack_fast-new.txt").touch()
with Interrupts():
    for text in ("one", "two"):
        files.check_writable(folder / "file.txt")
        files.write_text(folder / "file.txt", text)
print(sorted(os.listdir(folder)), (folder / "file.txt").read_text())
"""


def test_everything_imports_and_files_are_written_without_what_windows_lacks(tmp_path):
    # The benchmarks of a GPU's first minutes run on Linux alone; the compiled module is not there on every machine.
    names = [name for name in MODULES if not name.endswith(("_C", "__main__")) and ".kernels" not in name]
    done = subprocess.run([sys.executable, "-c", _WITHOUT, str(tmp_path), *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    # A temporary file of today may be another run's.
    assert done.stdout == "['.ostrack_fast-new.txt', 'file.txt'] two\n"

"""The Triton kernels without a GPU: compiled for GPUs that are not here, and run by Triton's interpreter.

Triton decides at import whether kernels are compiled or interpreted, so the tests in `interpreted/` need a process of
their own. It is started with the session and `test_interpreted.py` waits for it.
"""

import os
import pathlib
import subprocess
import sys

import pytest

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
HERE = pathlib.Path(__file__).parent

if not INTERPRETING:
    collect_ignore = ["interpreted"]


class Interpreting:
    """A pytest run over `interpreted/`, under way beside the other tests."""

    process: subprocess.Popen | None = None

    def start(self) -> subprocess.Popen:
        if self.process is None:
            command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(HERE / "interpreted")]
            self.process = subprocess.Popen(
                command,
                env={**os.environ, "TRITON_INTERPRET": "1"},
                cwd=HERE,  # not the checkout's root, whose sources Python would import instead of what is installed
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        return self.process


interpreting = Interpreting()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start early what takes longest: beside the other tests, or with xdist as the first that a process waits for."""
    waiting = [item for item in items if item.path == HERE / "test_interpreted.py"]
    if not waiting or INTERPRETING or config.option.collectonly:
        return
    if hasattr(config, "workerinput"):
        items[:] = waiting + [item for item in items if item not in waiting]
    else:
        interpreting.start()


@pytest.fixture
def interpreting_process() -> subprocess.Popen | None:
    """None where this process is the interpreting one."""
    return None if INTERPRETING else interpreting.start()


def pytest_unconfigure() -> None:
    if interpreting.process is not None and interpreting.process.poll() is None:  # the waiting test did not come to run
        interpreting.process.kill()
        interpreting.process.communicate()

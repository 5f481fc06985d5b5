"""The Triton kernels without a GPU: compiled for GPUs that are not here, and run by Triton's interpreter.

Triton decides at import whether kernels are compiled or interpreted, so the tests in `interpreted/` need a process of
their own. It is started with the session and `test_interpreted.py` waits for it.
"""

import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
HERE = pathlib.Path(__file__).parent

if not INTERPRETING:
    collect_ignore = ["interpreted"]


@pytest.fixture(scope="session", autouse=True)
def interpreting_process(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen | None]:
    """A pytest run over `interpreted/`, under way beside the other tests; None where nothing waits for it."""
    if INTERPRETING or not any(item.path == HERE / "test_interpreted.py" for item in request.session.items):
        yield None
        return
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(HERE / "interpreted")]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    yield process
    if process.poll() is None:  # the waiting test did not come to run
        process.kill()
        process.communicate()

"""Makes the tests use the installed package, and tells which backends can run here."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _leave_the_checkout() -> None:
    """Take the checkout off sys.path if the package is installed elsewhere.

    `python -m pytest` puts the working folder first on sys.path. After `pip install .` the compiled module and the
    kernels are in site-packages only, so the sources lying here must not hide the installed package. After
    `pip install -e .` the installed package is the checkout, and nothing needs to change.
    """
    if "ostrack_fast" in sys.modules:
        return
    others = [entry for entry in sys.path if Path(entry or os.getcwd()).resolve() != ROOT]
    ours, sys.path[:] = list(sys.path), others
    importlib.invalidate_caches()
    if importlib.util.find_spec("ostrack_fast") is None:
        sys.path[:] = ours  # not installed at all: the sources still serve, with the reference kernels


_leave_the_checkout()

# After the line above, so that these come from the package under test.
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

from ostrack_fast import ops  # noqa: E402
from ostrack_fast.ops import native  # noqa: E402

# What a shell starts in the background or by nohup ignores these signals, and so would every command the tests
# interrupt. A handler is not handed down.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

# A slow machine is no failure.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Work outside the checkout: a Python started there would import its sources instead of what is installed."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)


def _missing(name: str, device: str) -> str | None:
    """Why a backend cannot be tested here. On the CPU native and reference must run: nothing is skipped there."""
    if device == "cpu":
        return None
    if not torch.cuda.is_available():
        return "no CUDA device"
    if name == "native" and native.build_info()["cuda"] is None:
        return "the compiled module was built without CUDA"
    if name == "triton" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return None


@pytest.fixture(
    params=[
        pytest.param(("reference", "cpu"), id="reference-cpu"),
        pytest.param(("native", "cpu"), id="native-cpu"),
        pytest.param(("native", "cuda"), id="native-cuda", marks=pytest.mark.gpu),
        pytest.param(("triton", "cuda"), id="triton-cuda", marks=pytest.mark.gpu),
    ]
)
def device(request: pytest.FixtureRequest):
    """A device on which every op of the test runs in the backend of the parameter."""
    name, where = request.param
    reason = _missing(name, where)
    if reason is not None:
        pytest.skip(reason)
    with ops.use(name):
        yield torch.device(where)


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest):
    """Runs the test with PyTorch, and so the C++ kernels, on this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def no_tf32():
    """On a GPU convolutions of float32 multiply float32 numbers, as matrix products do anyway."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


# `pytest -n auto` (pytest-xdist) shares the test files among processes, one for each core.
def pytest_xdist_auto_num_workers() -> int:
    """One process a core, and no more than eight: each holds PyTorch and the weights of its tests."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """A file's tests share fixtures, so a process gets whole files, in the order in which they were collected."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def pytest_configure(config: pytest.Config) -> None:
    """Processes that share the machine share its cores too, unless OMP_NUM_THREADS says how many threads to use."""
    shared = getattr(config, "workerinput", None)
    if shared is not None and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, (os.cpu_count() or 1) // shared["workercount"])
        os.environ["OMP_NUM_THREADS"] = str(threads)  # for the commands that tests start
        torch.set_num_threads(threads)


# What a reason to skip names when the processor's instruction set is the cause.
_INSTRUCTION_SET = re.compile(r"AVX|AMX|VNNI|NEON|OSTRACK_FAST_CPU_CAPABILITY", re.IGNORECASE)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much of the code this processor could not test: on another machine those tests may fail."""
    skipped = terminalreporter.getreports("skipped")
    count = sum(bool(_INSTRUCTION_SET.search(str(report.longrepr))) for report in skipped)
    terminalreporter.write_line(
        f"{count} tests were left out because this processor lacks an instruction set they need"
    )
    if terminalreporter.config.option.markexpr == "not slow":
        left_out = terminalreporter.config.stash.get(_SLOW, 0)
        terminalreporter.write_line(f'{left_out} slow tests were left out: pytest -m "" runs them too')


_SLOW = pytest.StashKey[int]()


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count the slow tests. (With xdist each process collects all tests, and hands the count over when it ends.)"""
    if items:
        stash, slow = items[0].config.stash, sum(item.get_closest_marker("slow") is not None for item in items)
        stash[_SLOW] = stash.get(_SLOW, 0) + slow


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["slow"] = session.config.stash.get(_SLOW, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    node.config.stash[_SLOW] = getattr(node, "workeroutput", {}).get("slow", 0)

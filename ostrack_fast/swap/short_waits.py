"""How long PyTorch's threads keep their cores busy between two of its ops.

After each parallel op libgomp's threads, which PyTorch's wheels for Linux compute with, wait for the next one at full
speed: for 12 ms on a Zen 3, longer than a layer takes. Kernels of this package run on threads of their own, which get
half a core each meanwhile. Where there are more OpenMP threads than processors, libgomp waits for microseconds instead
(GOMP_SPINCOUNT in its manual). It does not know of our threads, but it does of a team as large as PyTorch's that
another thread has used: while this team rests, the threads of both are counted.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_GRAIN = 1 << 15  # elements that PyTorch gives each thread at least

_lock = threading.RLock()
_owners = weakref.WeakSet[object]()
_resting: tuple[threading.Thread, threading.Event] | None = None


def hold(owner: object) -> None:
    """PyTorch's threads wait briefly from now on, until the owner's `release`."""
    with _lock:
        _owners.add(owner)
        _set(True)


def release(owner: object) -> None:
    """What `hold` began ends here, unless another owner needs it."""
    with _lock:
        _owners.discard(owner)
        _set(len(_owners) > 0)


@contextmanager
def temporarily(short: bool) -> Iterator[None]:
    """Inside, PyTorch's threads wait briefly, or as long as they do by themselves, whoever holds."""
    with _lock:
        _set(short)
        try:
            yield
        finally:
            _set(len(_owners) > 0)


def _set(short: bool) -> None:
    global _resting
    if short and _resting is None:
        begun, end = threading.Event(), threading.Event()
        thread = threading.Thread(target=_rest, args=(begun, end), name="ostrack_fast short waits", daemon=True)
        thread.start()
        begun.wait()
        _resting = thread, end
    elif not short and _resting is not None:
        thread, end = _resting
        _resting = None
        end.set()
        thread.join()  # its team ends with it


def _rest(begun: threading.Event, end: threading.Event) -> None:
    try:
        torch.zeros(_GRAIN * torch.get_num_threads(), dtype=torch.float32, device="cpu").add_(1)
    finally:
        begun.set()
    end.wait()

"""Interrupts that let the work in hand finish its files."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

# Ctrl-C, a request to end, and a closed terminal, which Windows does not tell by a signal.
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

# Keys pressed again and again within this many seconds are one wish to stop.
_ONE_WISH = 2.0
_last_wish = float("-inf")


def _is_new_wish() -> bool:
    global _last_wish
    before, _last_wish = _last_wish, time.monotonic()
    return _last_wish - before >= _ONE_WISH


def last_wish() -> float:
    """When somebody last wanted to stop, by `time.monotonic`."""
    return _last_wish


class Interrupts:
    """Ctrl-C (SIGINT), SIGTERM and a closed terminal (SIGHUP) as a request to stop. A context manager.

    Within it these signals interrupt nothing, however often they come: they set `requested`, which the work looks at
    between its steps, so that it can finish its files. Signals that the process was started to ignore (`nohup`)
    remain ignored. In other threads than the main one, which Python delivers no signals to, it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Interrupts:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        _is_new_wish()  # noted for `interrupt_once`: it may be repeated when this is left


def interrupt_once() -> None:
    """Make a signal that stops raise KeyboardInterrupt, once: the same wish, repeated, does not disturb the way out.

    Python's own handler of Ctrl-C would raise again while the first interrupt is being told, or what was in use is
    finalized, and end in a traceback; SIGTERM and a closed terminal would end the process where it stands, and leave
    its temporary files. Only the handlers that the system and Python begin with are replaced.
    """
    for number in STOPPING:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    if _is_new_wish():
        raise KeyboardInterrupt

"""Interrupts that let the work in hand finish its files."""

from __future__ import annotations

import signal
import threading
from types import FrameType


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
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True

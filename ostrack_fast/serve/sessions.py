"""The sessions that are open, and the limits of all of them."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import BinaryIO

from ..tracker import MultiTracker
from .session import Limits, Session, VideoSession, WebcamSession


class Refused(Exception):
    """The server cannot take one more session."""


@dataclass
class _Open:
    session: Session | None
    begun: float
    used: float


class Sessions:
    """All sessions of the server, each under a name that cannot be guessed.

    Args:
        make_tracker: makes the tracker of a new session.
        limits: see `Limits`.
        clock: seconds, for tests.
    """

    def __init__(
        self, make_tracker: Callable[[], MultiTracker], limits: Limits, clock: Callable[[], float] = monotonic
    ):
        self.limits = limits
        self._make_tracker, self._clock = make_tracker, clock
        self._open: dict[str, _Open] = {}

    def __len__(self) -> int:
        return len(self._open)

    def reserve(self) -> str:
        """The name of a session to come; it counts from now on. Raises Refused."""
        self.sweep()
        if len(self._open) >= self.limits.sessions:
            raise Refused(f"{len(self._open)} sessions are open, as many as this server grants: try again later")
        name = secrets.token_urlsafe(18)
        self._open[name] = _Open(None, self._clock(), self._clock())
        return name

    def start(self, name: str, video: BinaryIO | None) -> Session:
        """Open the reserved session on a video, or on a webcam: None. Raises ValueError for what is no video."""
        tracker = self._make_tracker()
        session = WebcamSession(tracker, self.limits) if video is None else VideoSession(tracker, self.limits, video)
        if name not in self._open:
            session.close()
            raise ValueError("the session was closed meanwhile")
        self._open[name].session = session
        return session

    def get(self, name: str) -> Session:
        """A session, which counts as used now. Raises KeyError."""
        entry = self._open[name]
        if entry.session is None:
            raise KeyError(name)
        entry.used = self._clock()
        return entry.session

    def close(self, name: str) -> None:
        """Close a session, or give up a reserved name. One that is closed already stays so."""
        with suppress(KeyError):
            session = self._open.pop(name).session
            if session is not None:
                session.close()

    def sweep(self) -> None:
        """Close what is idle or too old."""
        now = self._clock()
        for name, entry in list(self._open.items()):
            if now - entry.used > self.limits.idle_seconds or now - entry.begun > self.limits.seconds:
                self.close(name)

    def close_all(self) -> None:
        for name in list(self._open):
            self.close(name)

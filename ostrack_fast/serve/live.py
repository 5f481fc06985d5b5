"""One user's websocket: what the page asks for, and the frames and boxes that it gets.

The page sends JSON: {"do": "show", "frame": n}, {"do": "play", "frame": n}, {"do": "pause"},
{"do": "box", "frame": n, "target": t or null, "box": [x, y, width, height]}, {"do": "drop", "target": t}, and
{"do": "seen"} for every frame that it was sent; from a webcam it sends each picture as a JPEG file. Every answer is one
binary message: the length of its JSON in four bytes (little endian), the JSON, and of a video the frame as JPEG. Boxes
are in pixels of the original frame.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from math import isfinite
from time import perf_counter
from typing import Any

import cv2
import numpy as np
from fastapi import WebSocket, WebSocketDisconnect

from .session import Session, VideoSession, WebcamSession

_SHOWN_WIDTH = 1280
# Frames that are on their way to the page: a slow connection must not fill this machine's memory.
_UNSEEN = 3
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 80]


class Live:
    """Serves one session over one websocket until either ends.

    Args:
        used: called with every frame; raises KeyError once the session is closed.
    """

    def __init__(self, socket: WebSocket, session: Session, used: Callable[[], object]):
        self._socket, self._session, self._used = socket, session, used
        self._asked: asyncio.Queue[Any] = asyncio.Queue(maxsize=64)
        self._next: int | None = None  # the frame to play next; None while paused
        self._unseen = 0
        # The next frame is decoded and encoded while this one is tracked.
        self._reader = ThreadPoolExecutor(1, "frames")
        self._ahead: tuple[int, Future[tuple[np.ndarray, bytes]]] | None = None

    async def run(self) -> None:
        listening = asyncio.create_task(self._listen())
        try:
            while True:
                asked: str | bytes | None = None
                if self._next is None or self._unseen >= _UNSEEN or not self._asked.empty():
                    asked = await self._asked.get()
                    if asked is None:
                        return
                await self._work(asked)
                self._used()
        except WebSocketDisconnect:
            return  # the page is gone
        except KeyError:
            await self._socket.close(4408, "the session was closed: it was idle, or its time was over")
        finally:
            listening.cancel()
            self._reader.shutdown(wait=False, cancel_futures=True)

    async def _listen(self) -> None:
        """Put what the page sends into the queue, None at the end."""
        while True:
            message = await self._socket.receive()
            if message["type"] != "websocket.receive":
                await self._asked.put(None)
                return
            await self._asked.put(message.get("bytes") or message.get("text") or "")

    async def _work(self, asked: str | bytes | None) -> None:
        """Do what was asked, or else play on; what cannot be done pauses, and is told to the page."""
        try:
            if asked is None:
                await self._play()
            elif isinstance(asked, bytes):
                await self._take(asked)
            else:
                await self._do(_parsed(asked))
        except (ValueError, TypeError, LookupError, FloatingPointError, OSError, RecursionError) as error:
            self._next = None
            words = error.args[0] if error.args else error
            await self._send({"error": str(words)}, None)

    async def _do(self, asked: dict[str, Any]) -> None:
        session, what = self._session, asked.get("do")
        if what == "seen":
            self._unseen = max(0, self._unseen - 1)
            return
        if what == "pause":
            self._next = None
            await self._send({"paused": True}, None)
            return
        if what == "drop":
            await asyncio.to_thread(session.drop, _integer(asked, "target"))
            await self._send({"dropped": asked["target"]}, None)
            return
        number = _integer(asked, "frame")
        if what == "box":
            target = None if asked.get("target") is None else _integer(asked, "target")
            given = await asyncio.to_thread(session.give, number, target, asked.get("box"))
            await self._send({**self._state(number), "given": given}, None)
        elif what == "play" and isinstance(session, VideoSession):
            self._next = number
        elif what == "show" and isinstance(session, VideoSession):
            await self._show(number, track=False)
        else:
            raise ValueError(f"a session of this kind cannot {str(what)[:20]!r}")

    async def _take(self, jpeg: bytes) -> None:
        if not isinstance(self._session, WebcamSession):
            raise ValueError("this session is of a video: it takes no pictures")
        begin = perf_counter()
        number = await asyncio.to_thread(self._session.take, jpeg)
        await self._send({**self._state(number), "ms": 1000 * (perf_counter() - begin)}, None)

    async def _play(self) -> None:
        """Show the next frame, tracked if it is not yet; what was tracked before plays at the video's own rate."""
        number, begin = self._next, perf_counter()
        assert number is not None and isinstance(self._session, VideoSession)
        video = self._session.video
        if number >= video.length:
            self._next = None
            await self._send({"paused": True, "end": True}, None)
            return
        self._next = number + 1
        tracked = await self._show(number, track=True)
        if not tracked:
            await asyncio.sleep(max(0.0, 1 / video.fps - (perf_counter() - begin)))

    async def _show(self, number: int, track: bool) -> bool:
        state, jpeg, tracked = await asyncio.to_thread(self._frame, number, track)
        self._unseen += 1
        await self._send(state, jpeg)
        return tracked

    def _frame(self, number: int, track: bool) -> tuple[dict[str, Any], bytes, bool]:
        frame, jpeg = self._read(number, more=track)
        begin = perf_counter()
        tracked = track and self._session.advance(number, frame)
        state = self._state(number, regions=tracked)
        if tracked:
            state["ms"] = 1000 * (perf_counter() - begin)
        return state, jpeg, tracked

    def _read(self, number: int, more: bool) -> tuple[np.ndarray, bytes]:
        """A frame and its JPEG file; with `more`, the frame after it is read from now on. Errors as `Session.frame`."""
        ahead, self._ahead = self._ahead, None
        reading = ahead[1] if ahead and ahead[0] == number else self._reader.submit(self._fetch, number)
        found = reading.result()
        if more:
            self._ahead = number + 1, self._reader.submit(self._fetch, number + 1)
        return found

    def _fetch(self, number: int) -> tuple[np.ndarray, bytes]:
        frame = self._session.frame(number)
        return frame, _jpeg(frame)

    def _state(self, number: int, regions: bool = True) -> dict[str, Any]:
        """What the page draws over a frame."""
        targets = [
            {
                "id": name,
                "box": [round(value, 2) for value in result.box],
                "score": round(result.score, 4) if isfinite(result.score) else None,
                "lost": result.lost,
            }
            for name, result in self._session.at(number).items()
        ]
        state: dict[str, Any] = {"frame": number, "targets": targets, "size": self._session.size}
        if regions:
            state["regions"] = {name: vars(region) for name, region in self._session.regions.items()}
        return state

    async def _send(self, state: dict[str, Any], jpeg: bytes | None) -> None:
        text = json.dumps(state).encode()
        await self._socket.send_bytes(len(text).to_bytes(4, "little") + text + (jpeg or b""))


def _parsed(text: str) -> dict[str, Any]:
    asked = json.loads(text)
    if not isinstance(asked, dict):
        raise ValueError("a message must be a JSON object")
    return asked


def _integer(asked: dict[str, Any], name: str) -> int:
    value = asked.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name!r} must be a whole number")
    return value


def _jpeg(frame: np.ndarray) -> bytes:
    if frame.shape[1] > _SHOWN_WIDTH:
        scale = _SHOWN_WIDTH / frame.shape[1]
        frame = cv2.resize(frame, (_SHOWN_WIDTH, max(1, round(scale * frame.shape[0]))), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), _JPEG)[1].tobytes()

"""The server: a page, an upload, and for each session a websocket that carries frames and boxes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any, BinaryIO

from fastapi import FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect

from ..tracker import MultiTracker
from .guard import Guard
from .live import Live
from .session import Limits, Session, unnamed_file
from .sessions import Refused, Sessions

_PAGE = {
    "": ("index.html", "text/html"),
    "app.js": ("app.js", "text/javascript"),
    "style.css": ("style.css", "text/css"),
}
_PIECE = 1 << 20
_SWEEP_SECONDS = 5
_UPLOAD_SECONDS = 600


def create_app(
    make_tracker: Callable[[], MultiTracker], limits: Limits | None = None, token: str | None = None
) -> FastAPI:
    """The web application, for any ASGI server.

    Args:
        make_tracker: makes the tracker of each new session.
        limits: see `Limits`.
        token: without it, only requests to this machine's own name are answered; with it, whoever opens `/?token=...`.
    """
    sessions = Sessions(make_tracker, limits or Limits())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(_sweep(sessions))
        yield
        sweeping.cancel()
        sessions.close_all()

    app = FastAPI(title="ostrack_fast", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, token=token)
    app.state.sessions = sessions

    @app.get("/")
    @app.get("/{name}")
    def page(name: str = "") -> Response:
        if name not in _PAGE:
            raise HTTPException(404, "there is no such page")
        file, kind = _PAGE[name]
        return FileResponse(str(resources.files("ostrack_fast.serve") / "static" / file), media_type=kind)

    @app.post("/sessions/{kind}")
    async def start(kind: str, request: Request) -> dict[str, Any]:
        if kind not in ("video", "webcam"):
            raise HTTPException(404, "a session is of a video or of a webcam")
        return await _start(sessions, request if kind == "video" else None)

    @app.delete("/sessions/{name}")
    async def end(name: str) -> dict[str, Any]:
        await asyncio.to_thread(sessions.close, name)
        return {}

    @app.get("/sessions/{name}/boxes.csv")
    def boxes(name: str) -> Response:
        return PlainTextResponse(_session(sessions, name).table(), media_type="text/csv", headers=_as_file("boxes.csv"))

    @app.get("/sessions/{name}/video.mp4")
    def video(name: str) -> Response:
        try:
            file = _session(sessions, name).film()
        except ValueError as error:
            raise HTTPException(409, str(error)) from None
        except OSError as error:
            raise _no_room(error) from None
        return StreamingResponse(_pieces(file), media_type="video/mp4", headers=_as_file("tracked.mp4"))

    @app.websocket("/sessions/{name}")
    async def live(socket: WebSocket, name: str) -> None:
        await socket.accept()
        try:
            session = sessions.get(name)
        except KeyError:
            await socket.close(4404, "there is no such session, or it was closed")
            return
        await Live(socket, session, lambda: sessions.get(name)).run()

    return app


async def _start(sessions: Sessions, upload: Request | None) -> dict[str, Any]:
    try:
        name = sessions.reserve()
    except Refused as error:
        raise HTTPException(503, str(error)) from None
    file: BinaryIO | None = None
    try:
        if upload is not None:
            file = unnamed_file()
            await asyncio.wait_for(_receive(upload, file, sessions.limits.upload_bytes), _UPLOAD_SECONDS)
        session = await asyncio.to_thread(sessions.start, name, file)
    except BaseException as error:
        sessions.close(name)
        if file is not None:
            file.close()
        if isinstance(error, ValueError):
            raise HTTPException(422, str(error)) from None
        if isinstance(error, ClientDisconnect):
            raise HTTPException(400, "the video did not arrive") from None  # which nobody reads
        if isinstance(error, asyncio.TimeoutError):
            raise HTTPException(408, f"the video did not arrive within {_UPLOAD_SECONDS} seconds") from None
        if isinstance(error, OSError):
            raise _no_room(error) from None
        raise
    facts: dict[str, Any] = {"id": name}
    if upload is not None:
        stored = session.video  # type: ignore[attr-defined]
        facts |= {"frames": stored.length, "fps": stored.fps, "width": stored.size[0], "height": stored.size[1]}
    return facts


async def _receive(upload: Request, file: BinaryIO, limit: int) -> None:
    """Write the body of a request to a file. Raises HTTPException where it is larger than the limit."""
    too_large = HTTPException(413, f"the video is larger than {limit / 2**20:.0f} MiB, which is what this server takes")
    if int(upload.headers.get("content-length", "0")) > limit:
        raise too_large
    size = 0
    async for piece in upload.stream():
        size += len(piece)
        if size > limit:
            raise too_large
        await asyncio.to_thread(file.write, piece)
    file.seek(0)


async def _sweep(sessions: Sessions) -> None:
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        await asyncio.to_thread(sessions.sweep)


def _session(sessions: Sessions, name: str) -> Session:
    try:
        return sessions.get(name)
    except KeyError:
        raise HTTPException(404, "there is no such session, or it was closed") from None


def _no_room(error: OSError) -> HTTPException:
    """The answer where a temporary file cannot be written."""
    return HTTPException(507, f"this server cannot store the video: {error.strerror or error}")


def _as_file(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def _pieces(file: BinaryIO) -> Any:
    with file:
        while piece := file.read(_PIECE):
            yield piece

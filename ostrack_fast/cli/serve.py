"""`ostrack-fast serve`: track in the browser."""

from __future__ import annotations

import socket
from typing import Annotated
from urllib.parse import quote

import typer

from ._weights import Config


def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; any other than this machine's needs --token.")] = (
        "127.0.0.1"
    ),
    token: Annotated[str | None, typer.Option(help="Who opens the page must know it.")] = None,
    weights: Annotated[str, typer.Option(help="Name of weights that ship with the package, or a file.")] = "small",
    config: Config = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16, bfloat16 or int8.")] = "auto",
    max_sessions: Annotated[int, typer.Option(help="Users at a time.", min=1)] = 4,
    max_upload: Annotated[int, typer.Option(help="Size of a video, MiB.", min=1)] = 512,
    max_frames: Annotated[int, typer.Option(help="Length of a video, frames.", min=1)] = 20_000,
    max_minutes: Annotated[float, typer.Option(help="Length of a session, minutes.", min=0.1)] = 60,
) -> None:
    """Open a page where anyone with a browser can track in a video or with the webcam.

    Ctrl-C ends the server. It writes no file: what users send and what they download is in unnamed temporary files.
    """
    try:
        import uvicorn

        from ..serve import Limits, create_app
        from ..serve.guard import is_loopback
    except ImportError as error:
        raise ImportError(f"{error.name} is missing: pip install 'ostrack_fast[serve]'") from None
    if not is_loopback(host) and not token:
        raise ValueError(f"whoever reaches {host} could use this server: choose a --token, or leave --host out")

    from ..model import OSTrack
    from ..tracker import MultiTracker

    model = OSTrack.from_pretrained(weights, config)
    limits = Limits(upload_bytes=max_upload << 20, frames=max_frames, sessions=max_sessions, seconds=60 * max_minutes)
    app = create_app(lambda: MultiTracker(model, device, dtype), limits, token)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        made = socket.create_server((host, port), family=family)
    except OSError as error:
        why = f"cannot listen on {host}, port {port}: {(error.strerror or '').partition(' (')[0]}"
        raise OSError(f"{why}; choose another --port (0 takes a free one) or --host") from None
    with made as listening:
        shown, taken = f"[{host}]" if ":" in host else host, listening.getsockname()[1]
        print(f"open http://{shown}:{taken}/{f'?token={quote(token)}' if token else ''}", flush=True)
        server = uvicorn.Server(
            uvicorn.Config(
                app, log_level="warning", ws_max_size=8 << 20, server_header=False, timeout_graceful_shutdown=2
            )
        )
        server.run(sockets=[listening])

"""Who is answered: whoever sits at this machine, or knows the token."""

from __future__ import annotations

from http.cookies import SimpleCookie
from ipaddress import ip_address
from secrets import compare_digest
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

_COOKIE = "ostrack_fast_token"
_HEADERS = [
    (b"content-security-policy", b"default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own, which no other machine can reach."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _split(address: str) -> SplitResult:
    """The parts of an address; of what is none, such as `http://[::1`, nothing."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


class Guard:
    """ASGI middleware: refuses what lacks the token, or what another web site's page sends.

    A page of another site may open a websocket to any address, this machine's own included: so the `Origin` that the
    browser states must be ours, and without a token the `Host` must be this machine's own, lest another name leads
    here. `/?token=...` leaves the token in a cookie, which goes with every later request.

    Args:
        app: what is guarded.
        token: None where only this machine is served.
    """

    def __init__(self, app: Any, token: str | None):
        self._app, self._token = app, token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [None])[0]
        refusal = self._refusal(headers, given)
        if refusal is None:
            await self._app(scope, receive, self._with_headers(send, given))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 4403, "reason": refusal})
        else:
            head = [(b"content-type", b"text/plain; charset=utf-8"), *_HEADERS]
            await send({"type": "http.response.start", "status": 403, "headers": head})
            await send({"type": "http.response.body", "body": refusal.encode() + b"\n"})

    def _refusal(self, headers: dict[str, str], given: str | None) -> str | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin is not None and _split(origin).netloc != host:
            return "this request comes from another site"
        if self._token is None:
            name = _split(f"//{host}").hostname or ""
            return None if is_loopback(name) else "open http://127.0.0.1: only this machine is served without a token"
        cookie = SimpleCookie(headers.get("cookie", "")).get(_COOKIE)
        known = given if given is not None else cookie.value if cookie else ""
        if compare_digest(known.encode(), self._token.encode()):
            return None
        return "the token is missing or wrong: open the address that ostrack-fast serve printed, /?token=..."

    def _with_headers(self, send: Any, given: str | None) -> Any:
        """`send`, with the headers of every answer; and with the cookie where the token came in the address."""
        extra = list(_HEADERS)
        if self._token is not None and given is not None:
            cookie = SimpleCookie({_COOKIE: given})[_COOKIE].OutputString()
            extra.append((b"set-cookie", f"{cookie}; HttpOnly; SameSite=Strict; Path=/".encode()))

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        return sending

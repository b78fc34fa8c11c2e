"""ASGI middleware: the headers that every answer carries, and a record of every answer.

Knows nothing of what is served.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# What a page may do. Code comes from here only; ``https:`` is for model files of a hub, data never
# code.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' 'wasm-unsafe-eval'",
        "worker-src 'self'",
        "connect-src 'self' https:",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "media-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'self'",
    )
)
ALWAYS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
# Cross-origin isolation: SharedArrayBuffer, and with it WebAssembly's threads, need both.
ISOLATION = {
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
}


class AddHeaders:
    """Sets ``ALWAYS`` on every answer, errors included; ``ISOLATION`` where ``isolated``."""

    def __init__(self, app: ASGIApp, *, isolated: bool) -> None:
        self.app = app
        self.headers = ALWAYS | (ISOLATION if isolated else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        await self.app(scope, receive, send_with_headers)


@dataclass(frozen=True, slots=True)
class Access:
    """One answered request. ``sent``: bytes of the body, fewer where the client left."""

    method: str
    path: str
    status: int
    sent: int
    range: str | None = None


class RecordAccess:
    """Calls ``record`` once for each request, as its answer ends, from the server's thread."""

    def __init__(self, app: ASGIApp, *, record: Callable[[Access], None]) -> None:
        self.app, self.record = app, record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        wanted = Headers(scope=scope).get("range")
        status, sent, recorded = 0, 0, False

        def record() -> None:
            nonlocal recorded
            recorded = True
            self.record(Access(scope["method"], scope["path"], status, sent, wanted))

        async def counting_send(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b""))
                if not message.get("more_body", False):
                    record()  # before the client can know that it is the end
            await send(message)

        try:
            await self.app(scope, receive, counting_send)
        finally:
            if not recorded:
                record()

"""Runs an app on a loopback port in a thread: ``with serving(app) as base_url``."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from fanlight.errors import DeviceError

_START_SECONDS = 10


@contextmanager
def serving(app: ASGIApp, *, port: int = 0) -> Iterator[str]:
    """The base URL, ``http://127.0.0.1:PORT``, no slash at the end. At exit connections are cut.

    ``port`` 0 takes a free one. Only this machine can reach it. Raises DeviceError when the port is
    taken.
    """
    with _bound(port) as listener:
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=1
        )
        server = _Server(config)
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name="fanlight-server", daemon=True
        )
        thread.start()
        try:
            _wait_until_started(server, thread)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(_START_SECONDS)


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does; then what it gave up waiting for is closed as well."""
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await asyncio.sleep(0)  # the loop's turn in which aborted transports close


def _bound(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        raise DeviceError(
            "can't listen",
            where=f"127.0.0.1:{port}",
            got=error.strerror,
            hint="Choose another port; 0 takes any that is free.",
        ) from error
    return listener


def _wait_until_started(server: uvicorn.Server, thread: threading.Thread) -> None:
    waiting = threading.Event()
    for _ in range(_START_SECONDS * 100):
        if server.started:
            return
        if not thread.is_alive():
            break
        waiting.wait(0.01)
    raise DeviceError("the server did not start", where="127.0.0.1")

"""The app: what is served where.

    /                     fanlight/web/: pages, workers, vendored packages
    /vendor/fanlight.zip  the package's Python for the browser, made anew when a source has changed
    /vendor/bundle.js     what all of that consists of, by hash
    /models/NAME          model files, whole or by Range
    /models.json          their addresses and sizes, for the page's list

In: models by name, or a folder of them. Out: an ASGI app.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from os import PathLike, stat_result
from pathlib import Path
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from fanlight.errors import InputError
from fanlight.server.bundle import PACKAGE, bundle_script, python_files, python_zip
from fanlight.server.headers import Access, AddHeaders, RecordAccess

WEB = PACKAGE / "web"
# The system's own table may lack some of these or say otherwise.
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".gz": "application/octet-stream",  # a snapshot: unpacked by the page itself
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
    ".zip": "application/zip",
}
_REVALIDATE = "no-cache"  # kept, but asked for every time: a 304 costs nothing on loopback
# How long a browser that has the page believes that there is no newer one, and asks nothing at all.
_VERSION = "max-age=600"
_NEVER_KEEP = "no-store"  # the page's own store keeps models; a second copy would be waste


def create_app(
    models: Mapping[str, Path] | Path | None = None,
    *,
    isolated: bool = True,
    on_access: Callable[[Access], None] | None = None,
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost"),
) -> Starlette:
    """The ASGI app.

    ``models``: name → file, or a folder whose files are served by their relative path; symbolic
    links out of it are not followed. ``isolated=False`` leaves out the headers for cross-origin
    isolation, as a plain static host does. ``on_access`` is called after each answer, from the
    server's thread. ``hosts``: names by which the server may be called; others get 400, so that no
    page elsewhere can pose as this origin. Raises InputError for a model that isn't a file.
    """
    middleware = [Middleware(AddHeaders, isolated=isolated)]
    if on_access:
        middleware.insert(0, Middleware(RecordAccess, record=on_access))
    made = _Made()
    middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts)))
    routes = [
        Route("/vendor/fanlight.zip", made.zip),
        Route("/vendor/bundle.js", made.bundle),
        Route("/models.json", _catalogue(models or {})),
        _model_files(models or {}),
        Mount("/", _WebFiles(directory=WEB, html=True)),
    ]
    return Starlette(routes=routes, middleware=middleware)


class _WebFiles(StaticFiles):
    def file_response(
        self,
        full_path: str | PathLike[str],
        stat_result: stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        worker = Path(full_path).name == "service_worker.js"
        response.headers["cache-control"] = _VERSION if worker else _REVALIDATE
        media_type = MEDIA_TYPES.get(Path(full_path).suffix)
        if media_type and response.status_code != 304:
            response.headers["content-type"] = media_type
        return response


class _ModelFolder(StaticFiles):
    def file_response(
        self,
        full_path: str | PathLike[str],
        stat_result: stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        return _as_model(response)


def _model_files(models: Mapping[str, Path] | Path) -> BaseRoute:
    if isinstance(models, Path):
        if not models.is_dir():
            raise InputError("not a folder", where="models", got=models)
        return Mount("/models", _ModelFolder(directory=models))
    files = dict(models)
    for name, path in files.items():
        if not path.is_file():
            raise InputError("not a file", where=f"model {name!r}", got=path)

    async def answer(request: Request) -> Response:
        path = files.get(request.path_params["name"])
        if path is None:
            raise HTTPException(404)
        return _as_model(FileResponse(path))

    return Route("/models/{name:path}", answer)


def _catalogue(models: Mapping[str, Path] | Path) -> Callable[[Request], Response]:
    """Of a folder, the GGUF files that are there when it is asked."""

    def answer(_: Request) -> Response:
        if isinstance(models, Path):
            found = {path.relative_to(models).as_posix(): path for path in models.rglob("*.gguf")}
        else:
            found = dict(models)
        rows = [
            {"url": f"models/{quote(name)}", "size": path.stat().st_size}
            for name, path in sorted(found.items())
            if path.is_file()
        ]
        return JSONResponse(rows, headers={"cache-control": _NEVER_KEEP})

    return answer


def _as_model(response: Response) -> Response:
    response.headers["cache-control"] = _NEVER_KEEP
    if response.status_code != 304:
        response.headers["content-type"] = "application/octet-stream"
    return response


class _Made:
    """Endpoints of what is made from the package's files, anew when a source is new. They run in
    threads, as that takes a while."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: tuple[tuple[str, int, int], ...] = ()
        self._zip = b""

    def zip(self, request: Request) -> Response:
        """``fanlight.zip``."""
        return _answer(request, self._fresh(), ".zip", _REVALIDATE)

    def bundle(self, request: Request) -> Response:
        """``bundle.js``."""
        return _answer(request, bundle_script(self._fresh()), ".js", _VERSION)

    def _fresh(self) -> bytes:
        with self._lock:
            seen = tuple(
                (str(path), stat.st_mtime_ns, stat.st_size)
                for path in python_files()
                for stat in [(PACKAGE / path).stat()]
            )
            if seen != self._seen:
                self._zip = python_zip()
                self._seen = seen
            return self._zip


def _answer(request: Request, content: bytes, suffix: str, keep: str) -> Response:
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"etag": etag, "cache-control": keep}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=MEDIA_TYPES[suffix], headers=headers)

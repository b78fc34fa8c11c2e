"""The development server over real HTTP: headers, types, ranges, the zip, the record."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import re
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from starlette.types import Receive, Scope, Send

from fanlight.errors import DeviceError, InputError
from fanlight.server.app import create_app
from fanlight.server.headers import Access
from fanlight.server.serving import serving

MODEL = bytes(range(256)) * 1000


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


def get(url: str, method: str = "GET", **headers: str) -> Answer:
    """Nothing is followed, decoded or kept."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        connection.request(
            method, parts.path, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "deep").mkdir()
    (folder / "deep" / "a.gguf").write_bytes(MODEL)
    return folder


@pytest.fixture(scope="module")
def seen() -> list[Access]:
    return []


@pytest.fixture(scope="module")
def base(folder: Path, seen: list[Access]) -> Iterator[str]:
    app = create_app({"tiny.gguf": folder / "deep" / "a.gguf"}, on_access=seen.append)
    with serving(app) as url:
        yield url


@pytest.mark.parametrize(
    "path",
    ["/errors.js", "/no/such/page", "/models/tiny.gguf", "/models/none", "/vendor/fanlight.zip"],
)
def test_every_answer_carries_the_headers(base: str, path: str) -> None:
    headers = get(base + path).headers
    assert "script-src 'self' 'wasm-unsafe-eval';" in headers["content-security-policy"]
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-embedder-policy"] == "require-corp"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-content-type-options"] == "nosniff"


def test_isolation_can_be_left_out() -> None:
    with serving(create_app(isolated=False)) as url:
        headers = get(url + "/errors.js").headers
    assert "cross-origin-opener-policy" not in headers
    assert "cross-origin-embedder-policy" not in headers
    assert "content-security-policy" in headers


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/errors.js", "text/javascript; charset=utf-8"),
        ("/vendor/tokenizers.mjs", "text/javascript; charset=utf-8"),
        ("/vendor/pyodide/pyodide.asm.wasm", "application/wasm"),
        ("/vendor/pyodide/pyodide-lock.json", "application/json"),
        ("/vendor/fanlight.zip", "application/zip"),
        ("/models/tiny.gguf", "application/octet-stream"),
    ],
)
def test_media_types(base: str, path: str, media_type: str) -> None:
    answer = get(base + path, method="HEAD")
    assert (answer.status, answer.headers["content-type"]) == (200, media_type)


@pytest.mark.parametrize("path", ["/errors.js", "/vendor/fanlight.zip"])
def test_code_is_revalidated(base: str, path: str) -> None:
    first = get(base + path)
    assert first.headers["cache-control"] == "no-cache"
    again = get(base + path, If_None_Match=first.headers["etag"])
    assert (again.status, again.body) == (304, b"")


def test_a_model_whole_and_in_ranges(base: str) -> None:
    url = f"{base}/models/tiny.gguf"
    whole = get(url)
    assert (whole.status, whole.body) == (200, MODEL)
    assert whole.headers["accept-ranges"] == "bytes"
    assert whole.headers["cache-control"] == "no-store"
    etag = whole.headers["etag"]
    part = get(url, Range="bytes=1000-1999", If_Range=etag)
    assert (part.status, part.body) == (206, MODEL[1000:2000])
    assert part.headers["content-range"] == f"bytes 1000-1999/{len(MODEL)}"
    assert part.headers["etag"] == etag
    tail = get(url, Range="bytes=255990-")
    assert (tail.status, tail.body) == (206, MODEL[255990:])
    assert get(url, Range="bytes=999999-").status == 416
    changed = get(url, Range="bytes=0-9", If_Range='"another"')
    assert (changed.status, len(changed.body)) == (200, len(MODEL))


def test_a_folder_of_models(folder: Path) -> None:
    with serving(create_app(folder)) as url:
        assert get(f"{url}/models/deep/a.gguf", Range="bytes=0-3").body == MODEL[:4]
        assert get(f"{url}/models/deep").status == 404


def test_the_models_are_listed(base: str, folder: Path) -> None:
    assert json.loads(get(base + "/models.json").body) == [
        {"url": "models/tiny.gguf", "size": len(MODEL)}
    ]
    with serving(create_app(folder)) as of_folder:
        rows = json.loads(get(of_folder + "/models.json").body)
        assert rows == [{"url": "models/deep/a.gguf", "size": len(MODEL)}]
        assert len(get(f"{of_folder}/{rows[0]['url']}").body) == len(MODEL)
    with serving(create_app()) as empty:
        assert json.loads(get(empty + "/models.json").body) == []


@pytest.mark.parametrize(
    "path",
    [
        "/../app.py", "/%2e%2e/server/app.py", "/..%2fserver/app.py", "/models/../../app.py",
        "/models/%2e%2e/%2e%2e/etc/passwd", "/models//etc/passwd", "/%00",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["names", "folder"])
def test_nothing_else_can_be_reached(folder: Path, kind: str, path: str) -> None:
    models = folder if kind == "folder" else {"a": folder / "deep" / "a.gguf"}
    with serving(create_app(models)) as url:
        assert get(url + path).status == 404


def test_only_reading(base: str) -> None:
    for path in ("/errors.js", "/models/tiny.gguf", "/vendor/fanlight.zip"):
        assert get(base + path, method="POST").status == 405


def test_another_host_name_is_refused(base: str) -> None:
    assert get(f"{base}/errors.js", Host="evil.example").status == 400


def test_models_must_be_files(folder: Path) -> None:
    with pytest.raises(InputError, match="not a file"):
        create_app({"none": folder / "none"})
    with pytest.raises(InputError, match="not a folder"):
        create_app(folder / "none")


def test_the_record_counts_requests_and_bytes(base: str, seen: list[Access]) -> None:
    seen.clear()
    get(f"{base}/models/tiny.gguf", Range="bytes=0-99")
    get(f"{base}/none")
    ranged, missing = seen
    assert ranged == Access("GET", "/models/tiny.gguf", 206, 100, "bytes=0-99")
    assert (missing.path, missing.status, missing.range) == ("/none", 404, None)


def test_a_taken_port_is_named(base: str) -> None:
    port = urlsplit(base).port
    assert port
    with (
        pytest.raises(DeviceError, match=rf"127\.0\.0\.1:{port}"),
        serving(create_app(), port=port),
    ):
        pass


def test_a_connection_that_never_ends_is_cut() -> None:
    """A client that stops reading, as a closed tab does, in the middle of an endless answer."""

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})

    with socket.socket() as client:
        with serving(endless) as url:
            client.connect(("127.0.0.1", urlsplit(url).port))
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.recv(10)
        client.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            while client.recv(1 << 20):
                pass


def test_only_this_machine_can_reach_it(base: str) -> None:
    assert urlsplit(base).hostname == "127.0.0.1"


def test_a_page_needs_nothing_from_elsewhere() -> None:
    """No file of ours imports or loads code by an absolute URL."""
    web = Path(sys.modules["fanlight"].__path__[0]) / "web"
    pattern = re.compile(r"""(?:from|import\(?|src=|importScripts\()\s*["'`](?:https?:)?//""")
    files = [p for p in web.rglob("*") if p.suffix in (".js", ".mjs", ".html")]
    ours = [p for p in files if not p.is_relative_to(web / "vendor")]
    assert ours
    assert [p for p in ours if pattern.search(p.read_text("utf-8"))] == []


def test_the_zip_has_the_core_and_nothing_else(base: str) -> None:
    with zipfile.ZipFile(io.BytesIO(get(f"{base}/vendor/fanlight.zip").body)) as archive:
        names = archive.namelist()
    assert {"fanlight/__init__.py", "fanlight/compiler.py", "fanlight/ir/graph.py"} <= set(names)
    assert names == sorted(names)
    unwanted = ("fanlight/web/", "fanlight/cli/", "fanlight/server/", "fanlight/bench/")
    assert [name for name in names if name.startswith(unwanted) or "chromium" in name] == []


def test_the_core_runs_from_the_zip_alone(base: str, tmp_path: Path) -> None:
    """No other package, in an interpreter of its own."""
    path = tmp_path / "fanlight.zip"
    path.write_bytes(get(f"{base}/vendor/fanlight.zip").body)
    code = f"import sys; sys.path.insert(0, {str(path)!r})\n"
    code += "import fanlight.pipelines, fanlight.compiler; print(fanlight.pipelines.__file__)"
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", code],
        cwd=tmp_path, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(path) in done.stdout

"""``fanlight serve``: a process that answers on loopback until Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fanlight.server.app import create_app
from fanlight.server.serving import serving
from tests.cli.test_cli import arguments, run

MODEL = b"GGUF" * 100


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.gguf", "deep/b c.gguf", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(MODEL)
    return tmp_path


@contextmanager
def server(*words: str | Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        arguments("serve", "--port", "0", *words), text=True, stdout=subprocess.PIPE
    )
    with process:
        yield process
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def lines(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().strip() for _ in range(count)]


def test_a_folder(folder: Path) -> None:
    with server(folder) as process:
        base, first, second = lines(process, 3)
        assert base.startswith("http://127.0.0.1:")
        assert first == f"{base}?model=/models/a.gguf&auto=1"
        assert second == f"{base}?model=/models/deep/b%20c.gguf&auto=1"
        with urllib.request.urlopen(base) as page:
            assert page.headers["cross-origin-opener-policy"] == "same-origin"
        with urllib.request.urlopen(f"{base}models/deep/b%20c.gguf") as model:
            assert model.read() == MODEL


def test_one_model(folder: Path) -> None:
    with server(folder / "a.gguf") as process:
        base, model = lines(process, 2)
        assert model == f"{base}?model=/models/a.gguf&auto=1"


def test_what_is_wrong_is_said(folder: Path) -> None:
    done = run("serve", folder / "none.gguf")
    assert done.returncode == 2
    assert "no such model" in done.stderr
    done = run("serve", folder / "a.gguf", folder / "a.gguf")
    assert "two models of one name" in done.stderr


def test_a_port_in_use() -> None:
    with serving(create_app({})) as base:
        port = base.rpartition(":")[2]
        done = run("serve", "--port", port)
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "Choose another port" in done.stderr

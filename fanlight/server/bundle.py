"""``fanlight.zip``: the part of the package that Python in the browser needs; ``bundle.js``: what
the page consists of, by hash.

In: the package's folder. Out: a zip with ``fanlight/...`` inside, and a script; the same bytes for
the same sources. The standard library only, and nothing of ours: ``scripts/vendor.py`` loads this
file before anything is installed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from functools import lru_cache
from pathlib import Path, PurePosixPath

PACKAGE = Path(__file__).parent.parent

# What the browser does without: folders end in a slash. What is left imports these lazily or not at
# all.
EXCLUDED = (
    "bench/",
    "cli/",
    "server/",
    "web/",
    "formats/dequant.py",  # numpy; the definition for tests
    "hub/download.py",  # files on disk; the page's store is JavaScript
    "ir/interpreter.py",  # numpy; the definition for tests
    "runtime/chromium.py",
    "runtime/chunks.py",  # feeds the two below
    "runtime/gpu.py",  # wgpu
    "runtime/gpu_device.py",
    "runtime/gpu_parts.py",
    "runtime/wasm.py",  # wasmtime
    "text/template_sandbox.py",  # jinja2; the page has @huggingface/jinja
)
_SUFFIXES = (".py", ".json")
# Of ``web/``: not the page's. The script can't hold its own hash, nor that of its only reader.
_NOT_SERVED = ("types", "vendor/python", "vendor/bundle.js", "service_worker.js")
_NOT_SERVED_SUFFIXES = (".txt", ".d.ts", ".d.mts", ".partial")
_SNAPSHOT_FORM = b"1"  # counted up when web/snapshot.js or scripts/snapshot_worker.js makes another
VARIANTS = ("jspi", "plain")  # of a snapshot: see web/python_boot.js
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold


def excluded(file: str) -> bool:
    """True for a file of the package (``ir/graph``, no suffix) that the browser doesn't get."""
    parts = file.split("/")
    folders = {"/".join(parts[: n + 1]) + "/" for n in range(len(parts))}
    return f"{file}.py" in EXCLUDED or bool(folders & set(EXCLUDED))


def python_files(package: Path = PACKAGE) -> list[PurePosixPath]:
    """Paths inside the package of all files that go into the zip, sorted."""
    found = []
    for folder, folders, names in os.walk(package):
        here = PurePosixPath(Path(folder).relative_to(package).as_posix())
        folders[:] = [
            name for name in folders if name != "__pycache__" and f"{here / name}/" not in EXCLUDED
        ]
        found += [
            here / name
            for name in names
            if name.endswith(_SUFFIXES) and str(here / name) not in EXCLUDED
        ]
    return sorted(found)


def python_zip(package: Path = PACKAGE) -> bytes:
    """The zip's bytes; they depend on the files' names and contents only."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for path in python_files(package):
            info = zipfile.ZipInfo(f"fanlight/{path}", _EPOCH)
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, (package / path).read_bytes())
    return out.getvalue()


def build_python_zip(destination: Path, package: Path = PACKAGE) -> None:
    """Writes the zip to ``destination``, whole or not at all; an equal file is left alone."""
    write_whole(destination, python_zip(package))


def python_id(content: bytes) -> str:
    """The name of a zip's bytecode and snapshots: ``vendor/python/ID/``."""
    return hashlib.sha256(_SNAPSHOT_FORM + content).hexdigest()[:16]


def bundle_script(content: bytes, web: Path = PACKAGE / "web") -> bytes:
    """``vendor/bundle.js``: sets ``fanlightBundle``, typed in ``web/bundle.js``. ``content``: the
    zip of the sources, which the folder's own may be older than."""
    python = _python_paths(web, python_id(content))
    files = {path: _hash(web / path) for path in _served(web)}
    files |= {path: _hash(web / path) for path in python.values() if path and (web / path).exists()}
    files["vendor/fanlight.zip"] = hashlib.sha256(content).hexdigest()[:16]
    if python["zip"] != "vendor/fanlight.zip":
        del files["vendor/fanlight.zip"]
    version = hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()[:16]
    made = {"version": version, "python": python, "files": dict(sorted(files.items()))}
    return f"self.fanlightBundle = {json.dumps(made, indent=1)};\n".encode()


def _python_paths(web: Path, made: str) -> dict[str, str | None]:
    folder = f"vendor/python/{made}"
    if not (web / folder / "fanlight.zip").is_file():
        return {"id": made, "zip": "vendor/fanlight.zip", "jspi": None, "plain": None}
    paths = {name: f"{folder}/{name}.gz" for name in VARIANTS}
    there = {name: path if (web / path).is_file() else None for name, path in paths.items()}
    return {"id": made, "zip": f"{folder}/fanlight.zip", **there}


def _served(web: Path) -> list[str]:
    found = [path.relative_to(web).as_posix() for path in web.rglob("*") if path.is_file()]
    return [
        path
        for path in sorted(found)
        if not path.startswith(_NOT_SERVED) and not path.endswith(_NOT_SERVED_SUFFIXES)
    ]


def _hash(path: Path) -> str:
    status = path.stat()
    return _hash_of(path, status.st_mtime_ns, status.st_size)


@lru_cache(1024)
def _hash_of(path: Path, time: int, size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def write_whole(destination: Path, content: bytes) -> None:
    """Writes a file whole or not at all; an equal one is left alone."""
    if destination.is_file() and destination.read_bytes() == content:
        return
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(f"{destination.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    os.replace(partial, destination)

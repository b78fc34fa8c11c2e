"""``fanlight.zip``: the part of the package that Python in the browser needs.

In: the package's folder. Out: a zip with ``fanlight/...`` inside, the same bytes for the same
sources. The standard library only, and nothing of ours: ``scripts/vendor.py`` loads this file
before anything is installed.
"""

from __future__ import annotations

import io
import os
import zipfile
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
    "runtime/wasm.py",  # wasmtime
    "text/template_sandbox.py",  # jinja2; the page has @huggingface/jinja
)
_SUFFIXES = (".py", ".json")
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
    content = python_zip(package)
    if destination.is_file() and destination.read_bytes() == content:
        return
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(f"{destination.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    os.replace(partial, destination)

"""The order of the rooms: each imports from those before it, the core from the standard library."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import fanlight
from fanlight.server.bundle import excluded, python_files

PACKAGE = Path(fanlight.__file__).parent
# First to last, as in docs/design.md. A name is a file or a folder of the package.
ROOMS = """
    errors dtypes shapes plan ir formats archs importers passes kernels codegen compiler
    runtime web hub text vision audio tasks chat pipelines inference sync worker api
    server cli bench
""".split()
# Files with another place than their folder's, and why.
PLACES = {
    "__init__": "api",  # what users see
    "_version": "errors",
    "server/bundle": "errors",  # the zip's maker: plain Python, loaded by the build
}
# Types only: a launch holds a function that the target made.
TYPING_ONLY = {("kernels/launch", "codegen")}
# Extra packages, and the files that may import them: inside functions or for types only, except in
# files that the browser doesn't get (bundle.EXCLUDED); the last test here makes sure that those are
# themselves imported lazily.
EXTRAS = {
    "numpy": {
        "ir/interpreter",
        "formats/dequant",
        "runtime/gpu",
        "runtime/wasm",
        "inference/tensor",
    },
    "ml_dtypes": {"ir/interpreter", "inference/tensor"},
    "wgpu": {"runtime/gpu", "runtime/gpu_device"},
    "wasmtime": {"runtime/wasm"},
    "tokenizers": {"text/encoders", "text/tokenizer"},
    "jinja2": {"text/chat_template", "text/template_sandbox"},
    "playwright": {"runtime/chromium", "bench/*", "cli/*"},
    "huggingface_hub": {"hub/*"},
    "starlette": {"server/*"},
    "uvicorn": {"server/*"},
    "typer": {"cli/*"},
    "rich": {"cli/*", "bench/*"},
    "psutil": {"bench/*"},
}
BROWSER_ONLY = {"js", "pyodide", "pyodide_js"}  # Pyodide's own, inside functions


@dataclass(frozen=True)
class Import:
    """``file`` imports ``module``. ``lazy``: in a function; ``typing``: if TYPE_CHECKING."""

    file: str
    line: int
    module: str
    lazy: bool
    typing: bool

    def __str__(self) -> str:
        return f"fanlight/{self.file}.py:{self.line} imports {self.module}"


def imports_of(file: str, source: str) -> list[Import]:
    """All imports of a file named without ``.py``, wherever in it they stand."""
    return list(_walk(file, ast.parse(source), lazy=False, typing=False))


def _walk(file: str, node: ast.AST, *, lazy: bool, typing: bool) -> Iterator[Import]:
    match node:
        case ast.Import(names=names):
            for alias in names:
                yield Import(file, node.lineno, alias.name, lazy, typing)
        case ast.ImportFrom(module=module, names=names, level=level):
            base = module or ""
            if level:
                parts = ("fanlight", *file.split("/"))[:-level]
                base = ".".join([*parts, *([module] if module else [])])
            for alias in names:
                yield Import(file, node.lineno, f"{base}.{alias.name}", lazy, typing)
    lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        for child in node.body:
            yield from _walk(file, child, lazy=lazy, typing=True)
        for child in node.orelse:
            yield from _walk(file, child, lazy=lazy, typing=typing)
        return
    for inner in ast.iter_child_nodes(node):
        yield from _walk(file, inner, lazy=lazy, typing=typing)


def room_of(path: str) -> str:
    """The room of a file (``ir/graph``) or of a module inside the package."""
    if path in PLACES:
        return PLACES[path]
    for parent in (path.rsplit("/", 1)[0], path.split("/")[0]):
        if parent in PLACES:
            return PLACES[parent]
    return path.split("/")[0]


def _place(room: str) -> int:
    assert room in ROOMS, f"{room} has no place yet: add it to ROOMS and to docs/design.md"
    return ROOMS.index(room)


def violations(imports: list[Import]) -> list[str]:
    """One line for each import that breaks a rule."""
    found = []
    for entry in imports:
        top, *rest = entry.module.split(".")
        if top == "fanlight":
            wrong = _order(entry, "/".join(rest) or "__init__")
        elif top in sys.stdlib_module_names:
            wrong = ""
        else:
            wrong = _extra(entry, top)
        if wrong:
            found.append(f"{entry}: {wrong}")
    return found


def _order(entry: Import, target: str) -> str:
    here = room_of(entry.file)
    # "from fanlight import name" is a module, or else a name of the package itself.
    there = room_of(target)
    if "/" not in target and there not in ROOMS:
        there = "errors" if target in ("__version__", "*") else PLACES["__init__"]
    if entry.typing and (entry.file, there) in TYPING_ONLY:
        return ""
    if _place(there) > _place(here):
        return f"{there} comes after {here}"
    return ""


def _extra(entry: Import, top: str) -> str:
    if top in BROWSER_ONLY:
        return (
            "" if entry.lazy or entry.typing else f"{top} exists in Pyodide only: import it lazily"
        )
    allowed = EXTRAS.get(top)
    if allowed is None:
        return f"{top} is neither of the standard library nor a known extra"
    if entry.file not in allowed and f"{entry.file.split('/')[0]}/*" not in allowed:
        return f"{top} may be imported by {', '.join(sorted(allowed))} only"
    if not (entry.lazy or entry.typing or excluded(entry.file)):
        return f"{top} must be imported inside the function that needs it"
    return ""


def _sources() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE).with_suffix("")
        if inside.parts[0] != "web":
            name = inside.as_posix().removesuffix("/__init__")
            yield name, path.read_text(encoding="utf-8")


def test_rooms_hold_their_order() -> None:
    found = [wrong for file, source in _sources() for wrong in violations(imports_of(file, source))]
    assert not found, "\n".join(found)


def test_the_design_names_the_same_rooms() -> None:
    design = (PACKAGE.parent / "docs" / "design.md").read_text(encoding="utf-8")
    rooms_listed = design[design.index("map of rooms") :]
    missing = [room for room in ROOMS if room != "api" and f"`{room}`" not in rooms_listed]
    assert not missing


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("ir/graph", "from fanlight.codegen import wgsl", "codegen comes after ir"),
        ("ir/graph", "import fanlight.compiler", "compiler comes after ir"),
        ("ir/graph", "from fanlight import compiler", "compiler comes after ir"),
        ("ir/graph", "from fanlight import pipeline", "api comes after ir"),
        ("ir/graph", "from ..kernels import lower", "kernels comes after ir"),
        ("ir/graph", "def f():\n    from fanlight.cli import main", "cli comes after ir"),
        ("ir/graph", "import requests", "neither of the standard library"),
        ("ir/graph", "def f():\n    import numpy", "may be imported by"),
        ("text/encoders", "import tokenizers.models", "inside the function"),
        ("runtime/pyodide", "import js", "lazily"),
        ("ir/graph", "try:\n    import wgpu\nexcept ImportError:\n    pass", "may be imported by"),
    ],
)
def test_a_planted_violation_is_found(file: str, source: str, complaint: str) -> None:
    found = violations(imports_of(file, source))
    assert len(found) == 1
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("compiler", "import json\nfrom fanlight.ir import graph\nfrom fanlight import plan"),
        ("text/encoders", "def f():\n    import tokenizers"),
        ("text/encoders", "if TYPE_CHECKING:\n    import tokenizers"),
        ("ir/interpreter", "import numpy as np"),
        ("server/app", "from starlette.routing import Route\nfrom .bundle import python_zip"),
        ("cli/main", "from fanlight import pipeline, __version__"),
    ],
)
def test_what_is_allowed(file: str, source: str) -> None:
    assert violations(imports_of(file, source)) == []


def test_the_browser_has_all_that_its_modules_import() -> None:
    """At import time: what is lazy may be CPython's only."""
    inside = {path.with_suffix("").as_posix().removesuffix("/__init__") for path in python_files()}
    missing = []
    for name in sorted(inside):
        file = PACKAGE / f"{name}.py"
        source = (file if file.is_file() else PACKAGE / name / "__init__.py").read_text("utf-8")
        for entry in imports_of(name, source):
            path = "/".join(entry.module.split(".")[1:])
            if entry.lazy or entry.typing or not entry.module.startswith("fanlight."):
                continue
            if not {path, path.rsplit("/", 1)[0]} & inside:
                missing.append(str(entry))
    assert not missing, "not in fanlight.zip:\n" + "\n".join(missing)

"""``fanlight serve [MODEL…]``: the page on this machine, with the headers that threads need."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from fanlight.errors import InputError, MissingDependencyError

PORT = 8017


def serve(
    models: Annotated[
        list[Path] | None, typer.Argument(help="GGUF files, or one folder of them.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = PORT,
) -> None:
    """Serve the page and models to browsers on this machine, until Ctrl-C."""
    try:
        from fanlight.server.app import create_app
        from fanlight.server.serving import serving
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"serving the page needs {error.name}", hint='Run: pip install "fanlight[server]"'
        ) from error
    found = named(models or [])
    names = sorted(found) if isinstance(found, dict) else _inside(found)
    with suppress(KeyboardInterrupt), serving(create_app(found), port=port) as base:
        print(f"{base}/", flush=True)
        for name in names:
            print(f"{base}/?model={quote(f'/models/{name}')}&auto=1", flush=True)
        threading.Event().wait()


def named(models: list[Path]) -> dict[str, Path] | Path:
    """What the app takes: a folder, or files by name. Raises InputError for what is not there, and
    for two files of one name."""
    if len(models) == 1 and models[0].is_dir():
        return models[0]
    found: dict[str, Path] = {}
    for path in models:
        if not path.is_file():
            hint = "Give GGUF files, or one folder of them."
            raise InputError("no such model", got=path, hint=hint)
        if path.name in found:
            hint = "Rename one, or serve their folder."
            raise InputError("two models of one name", got=path.name, hint=hint)
        found[path.name] = path
    return found


def _inside(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf"))

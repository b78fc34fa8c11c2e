"""``fanlight serve [MODEL…]``: the page on this machine, with the headers that threads need."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from fanlight.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from starlette.applications import Starlette

PORT = 8017


def serve(
    models: Annotated[
        list[Path] | None, typer.Argument(help="GGUF files, or one folder of them.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = PORT,
) -> None:
    """Serve the page and models to browsers on this machine, until Ctrl-C."""
    try:
        from fanlight.server.serving import serving
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"serving the page needs {error.name}", hint='Run: pip install "fanlight[server]"'
        ) from error
    app, names = build(models or [])
    with serving(app, port=port) as base:
        print(f"{base}/", flush=True)
        for name in names:
            print(f"{base}/?model={quote(f'/models/{name}')}&auto=1", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


def build(models: list[Path]) -> tuple[Starlette, list[str]]:
    """The app, and the names of its models. Raises InputError for what is not there, and for two
    files of one name."""
    from fanlight.server.app import create_app

    if len(models) == 1 and models[0].is_dir():
        folder = models[0]
        found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf"))
        return create_app(folder), found
    names = [path.name for path in models]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                "two models of one name", got=name, hint="Rename one, or serve their folder."
            )
    for path in models:
        if not path.is_file():
            raise InputError(
                "no such model", got=path, hint="Give GGUF files, or one folder of them."
            )
    return create_app(dict(zip(names, models, strict=True))), names

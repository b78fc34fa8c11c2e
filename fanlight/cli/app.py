"""The program's table of subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from fanlight import __version__
from fanlight.cli.inspect import inspect
from fanlight.cli.run import run
from fanlight.cli.run_onnx import run_onnx
from fanlight.cli.serve import serve

app = typer.Typer(
    name="fanlight",
    help="AI models, compiled by Python for WebGPU and WebAssembly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(run)
app.command("run-onnx")(run_onnx)
app.command()(inspect)
app.command()(serve)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass

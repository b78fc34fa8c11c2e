"""The command line: ``fanlight run``, ``run-onnx``, ``inspect``, ``serve``: a file for each.

Exit status: 0; 1 for an error of ours (one message on stderr); 2 for wrong usage; 130 after Ctrl-C.
Needs the extra ``cli``.
"""

from __future__ import annotations

import sys

from fanlight.errors import FanlightError, InputError, MissingDependencyError


def main() -> None:
    """The program ``fanlight``."""
    try:
        _app()
    except FanlightError as error:
        print(f"fanlight: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)


def _app() -> None:
    try:
        from fanlight.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        raise MissingDependencyError(
            f"the command line needs {error.name}", hint='Run: pip install "fanlight[cli]"'
        ) from error
    app()

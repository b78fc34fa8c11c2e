"""Runs fanlight/web/text.js in Node, bare or under Pyodide. Its vendored libraries are those of
``scripts/setup``."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


def node(command: str, **request: Any) -> Any:
    """The answer of ``node.mjs`` to one command."""
    return _run("node.mjs", {"command": command, **request})


def pyodide(code: str, value: Any, mount: Path) -> Any:
    """What ``code`` makes in Pyodide of ``value``: it finds ``input``, JSON text, and the folder
    ``mount`` at /files, and ends in an expression of JSON text."""
    return _run("pyodide.mjs", {"code": code, "input": json.dumps(value), "mount": str(mount)})


def _run(script: str, request: dict[str, Any]) -> Any:
    done = subprocess.run(
        ["node", str(_HERE / script)],
        input=json.dumps(request),
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)

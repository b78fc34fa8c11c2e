"""Runs fanlight/web/text.js in Node. Its vendored libraries are those of ``scripts/setup``."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

_SCRIPT = Path(__file__).with_name("node.mjs")


def node(command: str, **request: Any) -> Any:
    """The answer of ``node.mjs`` to one command."""
    done = subprocess.run(
        ["node", str(_SCRIPT)],
        input=json.dumps({"command": command, **request}),
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)

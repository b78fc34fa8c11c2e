"""Build hook: fills ``fanlight/web/vendor/`` before a wheel or sdist is made: npm packages, and
snapshots of Python where there is a Chromium to make them.

An sdist carries all of it, so a wheel made from one needs neither.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class VendorHook(BuildHookInterface):  # type: ignore[misc]  # no types there
    """Named by ``[tool.hatch.build.hooks.custom]``."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects files."""
        sys.path.insert(0, str(Path(self.root) / "scripts"))
        importlib.import_module("vendor").vendor()
        if version == "editable":  # scripts/setup makes them when it has found a browser
            return
        snapshot = importlib.import_module("snapshot")
        try:
            snapshot.make()
        except snapshot.SnapshotError as error:
            self.app.display_warning(f"Python will start slowly in pages: no snapshot ({error})")

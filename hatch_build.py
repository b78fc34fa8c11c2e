"""Build hook: vendors npm packages into ``fanlight/web/vendor/`` before a wheel or sdist is made.

An sdist carries the vendored files and their stamp, so a wheel made from one needs no npm.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class VendorHook(BuildHookInterface):  # type: ignore[misc]  # no types there
    """Named by ``[tool.hatch.build.hooks.custom]``."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects files."""
        path = Path(self.root) / "scripts" / "vendor.py"
        spec = importlib.util.spec_from_file_location("fanlight_vendor", path)
        assert spec is not None and spec.loader is not None, path
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.vendor()

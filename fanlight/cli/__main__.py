"""``python -m fanlight.cli``."""

from __future__ import annotations

from fanlight.cli import main

main()

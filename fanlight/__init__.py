"""Fanlight: AI inference in the web browser, written in Python.

``await fanlight.pipeline("text-generation", model)`` in CPython and in Pyodide;
``fanlight.sync.pipeline`` blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fanlight.pipelines import pipeline

__all__ = ["__version__", "pipeline"]


def __getattr__(name: str) -> Any:
    """``pipeline`` on first use, so that ``import fanlight`` stays light."""
    if name == "pipeline":
        from fanlight.pipelines import pipeline

        return pipeline
    raise AttributeError(f"module 'fanlight' has no attribute {name!r}")

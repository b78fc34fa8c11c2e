"""Fanlight: AI inference in the web browser, written in Python.

``await fanlight.pipeline("text-generation", model)`` and
``await fanlight.InferenceSession.create(model)``, in CPython and in Pyodide;
``fanlight.sync.pipeline`` blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fanlight.inference.session import InferenceSession
    from fanlight.inference.tensor import Tensor
    from fanlight.pipelines import pipeline

__all__ = ["InferenceSession", "Tensor", "__version__", "pipeline"]


def __getattr__(name: str) -> Any:
    """The rest on first use, so that ``import fanlight`` stays light."""
    if name == "pipeline":
        from fanlight.pipelines import pipeline

        return pipeline
    if name == "InferenceSession":
        from fanlight.inference.session import InferenceSession

        return InferenceSession
    if name == "Tensor":
        from fanlight.inference.tensor import Tensor

        return Tensor
    raise AttributeError(f"module 'fanlight' has no attribute {name!r}")

"""The operators, by subject; importing this fills the registry's table."""

from fanlight.importers.onnx.operators import (
    elementwise,
    indexing,
    linear,
    movement,
    reduction,
)

__all__ = ["elementwise", "indexing", "linear", "movement", "reduction"]

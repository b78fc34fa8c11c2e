"""The operators, by subject; importing this fills the registry's table."""

from fanlight.importers.onnx.operators import (
    convolution,
    elementwise,
    indexing,
    linear,
    movement,
    normalization,
    pooling,
    quantization,
    reduction,
)

__all__ = [
    "convolution",
    "elementwise",
    "indexing",
    "linear",
    "movement",
    "normalization",
    "pooling",
    "quantization",
    "reduction",
]

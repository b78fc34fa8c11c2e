"""The operators, by subject; importing this fills the registry's table."""

from fanlight.importers.onnx.operators import (
    attention,
    convolution,
    elementwise,
    indexing,
    linear,
    losses,
    movement,
    normalization,
    pooling,
    quantization,
    reduction,
)

__all__ = [
    "attention",
    "convolution",
    "elementwise",
    "indexing",
    "linear",
    "losses",
    "movement",
    "normalization",
    "pooling",
    "quantization",
    "reduction",
]

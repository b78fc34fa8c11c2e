"""The operators, by subject; importing this fills the registry's table."""

from fanlight.importers.onnx.operators import (
    attention,
    control,
    convolution,
    elementwise,
    indexing,
    linear,
    losses,
    movement,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduction,
    resize,
)

__all__ = [
    "attention",
    "control",
    "convolution",
    "elementwise",
    "indexing",
    "linear",
    "losses",
    "movement",
    "normalization",
    "pooling",
    "quantization",
    "recurrent",
    "reduction",
    "resize",
]

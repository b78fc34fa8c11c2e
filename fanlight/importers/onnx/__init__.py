"""ONNX models → modules of the IR."""

from fanlight.importers.onnx.model import MAX_DIM, import_model

__all__ = ["MAX_DIM", "import_model"]

"""ONNX models → modules of the IR."""

from fanlight.importers.onnx.model import MAX_DIM, Value, ValuesNeededError, import_model

__all__ = ["MAX_DIM", "Value", "ValuesNeededError", "import_model"]

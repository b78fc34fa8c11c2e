"""ONNX's own backend node cases, as the pinned ``onnx`` package generates them.

Left out, by name and reason (:func:`left_out`): cases of training, of sequences, maps and
optionals, and of strings. All others count.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

Array = NDArray[Any]
STRING = onnx.TensorProto.STRING


@dataclass(frozen=True)
class Case:
    """``inputs``: by name; ``outputs``: in the model's order. Tolerances as ``assert_allclose``."""

    name: str
    model: onnx.ModelProto
    inputs: dict[str, Array]
    outputs: list[Array]
    rtol: float
    atol: float

    @property
    def double(self) -> bool:
        """Whether some input or output is of 64-bit floats."""
        values = (*self.inputs.values(), *self.outputs)
        return any(v.dtype in (np.float64, np.complex128) for v in values)


@cache
def _generated() -> tuple[Any, ...]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(collect_testcases(None))


def _reason(model: onnx.ModelProto) -> str:
    values = (*model.graph.input, *model.graph.output)
    if any("training" in node.domain for node in model.graph.node):
        return "training"
    if any(not value.type.HasField("tensor_type") for value in values):
        return "sequence, map or optional values"
    if any(value.type.tensor_type.elem_type == STRING for value in values):
        return "strings"
    return ""


def left_out() -> dict[str, str]:
    """Name → reason."""
    reasons = {case.name: _reason(case.model) for case in _generated()}
    return {name: reason for name, reason in reasons.items() if reason}


def names() -> list[str]:
    """Of all cases that count."""
    return [case.name for case in _generated() if not _reason(case.model)]


def cases(pattern: str = "") -> list[Case]:
    """Those whose names contain ``pattern``."""
    found = []
    for made in _generated():
        if pattern not in made.name or _reason(made.model):
            continue
        inputs, outputs = made.data_sets[0]
        given = [value.name for value in made.model.graph.input]
        found.append(
            Case(
                made.name,
                made.model,
                {name: _array(x) for name, x in zip(given, inputs, strict=True)},
                [_array(x) for x in outputs],
                made.rtol,
                made.atol,
            )
        )
    return found


def _array(value: Any) -> Array:
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value)


def compare(case: Case, got: list[Array]) -> str:
    """What is wrong, or "": dtypes and shapes are equal, numbers within the case's tolerance."""
    for number, (wanted, value) in enumerate(zip(case.outputs, got, strict=True)):
        if value.shape != wanted.shape:
            return f"output {number}: shape {list(value.shape)}, wanted {list(wanted.shape)}"
        if value.dtype != wanted.dtype:
            return f"output {number}: {value.dtype}, wanted {wanted.dtype}"
        a, b = value, wanted
        if wanted.dtype.kind not in "fiub" or wanted.dtype.itemsize == 2:
            a, b = value.astype("f4"), wanted.astype("f4")
        try:
            if b.dtype.kind == "f":
                np.testing.assert_allclose(a, b, case.rtol, case.atol, equal_nan=True)
            else:
                np.testing.assert_array_equal(a, b)
        except AssertionError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            return f"output {number}: " + " | ".join(lines[1:4])
    return ""

"""``fanlight inspect MODEL`` for an ONNX file: what goes in and out, operators, sizes, memory.

The memory is that of real plans, with free dims at 1 or as the caller has them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from fanlight import shapes
from fanlight.cli.tables import megabytes, new_table, sizes_table
from fanlight.compiler import CompileOptions, compile_module
from fanlight.errors import FanlightError
from fanlight.formats import onnx_model
from fanlight.formats.onnx import read_model
from fanlight.inference.files import ModelFiles
from fanlight.inference.session import import_onnx
from fanlight.plan import Plan

_KINDS = {"weight": "weights", "arena": "arena"}


async def describe(
    files: ModelFiles, targets: Mapping[str, CompileOptions], dims: Mapping[str, int]
) -> dict[str, Any]:
    """Everything that is shown, as JSON values; sizes in bytes. Raises FormatError, StoreError."""
    file = files.main
    model = await read_model(file.read, file.size)
    tensors = list(model.tensors())
    given = {*model.graph.initializers, *model.graph.sparse_initializers}
    weights = model.graph.initializers.values()
    return {
        "file": file.name,
        "bytes": file.size,
        "external_files": list(model.external_files()),
        "format": f"ONNX, IR version {model.ir_version}",
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "opsets": {domain or "ai.onnx": v for domain, v in model.opset_import.items()},
        "parameters": sum(math.prod(t.shape) for t in weights),
        "inputs": [_value(i) for i in model.graph.inputs if i.name not in given],
        "outputs": [_value(o) for o in model.graph.outputs],
        "ops": dict(_ops(model)),
        "dtypes": _by_dtype(tensors),
        "memory": await _memory(files, targets, dims),
    }


def _value(info: onnx_model.ValueInfo) -> dict[str, Any]:
    kind = info.type
    if not isinstance(kind, onnx_model.TensorType):
        return {"name": info.name, "dtype": type(kind).__name__, "shape": None}
    shape = None if kind.shape is None else ["?" if s is None else s for s in kind.shape]
    return {"name": info.name, "dtype": str(kind.dtype), "shape": shape}


def _ops(model: onnx_model.Model) -> list[tuple[str, int]]:
    """Operators with their counts, most frequent first; those of subgraphs and functions too."""
    count: Counter[str] = Counter()
    lists = [model.graph.nodes, *(function.nodes for function in model.functions)]
    while lists:
        for node in lists.pop():
            domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}."
            count[domain + node.op_type] += 1
            for attribute in node.attributes.values():
                value = attribute.value
                graphs = value if isinstance(value, tuple) else (value,)
                lists += [g.nodes for g in graphs if isinstance(g, onnx_model.Graph)]
    return sorted(count.items(), key=lambda item: (-item[1], item[0]))


def _by_dtype(tensors: Iterable[onnx_model.Tensor]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for tensor in tensors:
        row = found.setdefault(str(tensor.dtype), {"tensors": 0, "parameters": 0, "bytes": 0})
        row["tensors"] += 1
        row["parameters"] += math.prod(tensor.shape)
        row["bytes"] += tensor.dtype.nbytes(math.prod(tensor.shape))
    return found


async def _memory(
    files: ModelFiles, targets: Mapping[str, CompileOptions], dims: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """By target: bytes by kind of buffer, or ``{"unsupported": why}``."""
    found: dict[str, dict[str, Any]] = {}
    for name, options in targets.items():
        try:
            module = await import_onnx(files, {})
            values = {d: dims.get(d, 1) for d in module.free}
            found[name] = memory_of(compile_module(module, options), values)
            found[name]["dims"] = values
        except FanlightError as error:
            found[name] = {"unsupported": str(error)}
    return found


def memory_of(plan: Plan, dims: Mapping[str, int]) -> dict[str, Any]:
    """Bytes that a plan holds at these dims: weights, arena, other, total; kernels are a count."""
    values = plan.memory_values(dims)
    found = dict.fromkeys(("weights", "arena", "other"), 0)
    for buffer in plan.buffers:
        found[_KINDS.get(buffer.kind, "other")] += shapes.evaluate(buffer.bytes, values)
    return {**found, "total": plan.resident_bytes(dims), "kernels": len(plan.kernels)}


# --- for people


def show(found: dict[str, Any]) -> None:
    """Prints what :func:`describe` gave."""
    console = Console()
    for part in (
        _facts(found),
        _values(found, "inputs"),
        _values(found, "outputs"),
        _op_table(found),
    ):
        console.print(part)
    console.print(sizes_table(found["dtypes"]))
    rows = {k: v for k, v in found["memory"].items() if "unsupported" not in v}
    memory = new_table(
        "<target",
        "<dims",
        "weights",
        "arena",
        "other",
        "total",
        "kernels",
        title="\nMemory that it needs",
    )
    for target, row in rows.items():
        dims = ", ".join(f"{name} {size}" for name, size in row["dims"].items())
        kinds = (megabytes(row[kind]) for kind in ("weights", "arena", "other", "total"))
        memory.add_row(target, dims or "–", *kinds, str(row["kernels"]))
    if rows:
        console.print(memory)
    for target, row in found["memory"].items():
        if "unsupported" in row:
            console.print(f"{target}: can't run it: {row['unsupported']}", markup=False)


def _facts(found: dict[str, Any]) -> Table:
    made = new_table("<", "<")
    made.show_header = False
    made.columns[1].overflow = "fold"
    rows = {
        "file": f"{found['file']} ({megabytes(found['bytes'])}, {found['format']})",
        "external files": ", ".join(found["external_files"]) or "–",
        "producer": found["producer"] or "–",
        "opsets": ", ".join(f"{d} {v}" for d, v in found["opsets"].items()),
        "parameters": f"{found['parameters']:,}",
    }
    for name, value in rows.items():
        made.add_row(name, value)
    return made


def _values(found: dict[str, Any], key: str) -> Table:
    made = new_table("<name", "<type", "<shape", title=f"\n{key.capitalize()}")
    for row in found[key]:
        shape = (
            "unknown" if row["shape"] is None else " × ".join(map(str, row["shape"])) or "scalar"
        )
        made.add_row(row["name"], row["dtype"], shape)
    return made


def _op_table(found: dict[str, Any]) -> Table:
    made = new_table("<operator", "nodes", title="\nOperators")
    for name, count in found["ops"].items():
        made.add_row(name, str(count))
    return made

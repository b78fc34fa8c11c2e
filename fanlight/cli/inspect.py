"""``fanlight inspect MODEL``: what a GGUF or ONNX file holds, and what it needs in memory on each
target (ONNX: ``inspect_onnx.py``).

The memory is that of real plans: the model is compiled for both targets, with the usual options.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fanlight import shapes
from fanlight.archs import llama
from fanlight.cli import inspect_onnx
from fanlight.cli.progress import Bars
from fanlight.cli.run_onnx import sizes
from fanlight.cli.tables import megabytes, new_table, sizes_table
from fanlight.compiler import CompileOptions, compile_module
from fanlight.errors import UnsupportedError
from fanlight.formats import gguf
from fanlight.hub.files import ModelFile
from fanlight.inference.files import ModelFiles
from fanlight.plan import THREADS, Plan
from fanlight.tasks.text_generation import build_module

THREAD_COUNT = 8  # what a page uses at most
_CACHE = re.compile(r"[kv]\.\d+")
_TARGETS = {
    "webgpu": CompileOptions("webgpu"),
    "wasm": CompileOptions("wasm", frozenset({"threads"})),
}


def inspect(
    model: Annotated[str, typer.Argument(help="A GGUF or ONNX file: its path or URL.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    context: Annotated[
        int | None, typer.Option(min=2, help="Most tokens of prompt and answer.")
    ] = None,
    dim: Annotated[
        list[str] | None,
        typer.Option("--dim", metavar="NAME=SIZE", help="ONNX: a free dimension's size; else 1."),
    ] = None,
) -> None:
    """Show a model's structure, its sizes, and the memory it needs."""
    found = asyncio.run(_describe(model, context, sizes(dim)))
    if as_json:
        print(json.dumps(found, indent=2))
    elif "ops" in found:
        inspect_onnx.show(found)
    else:
        _show(found)


async def _describe(model: str, context: int | None, dims: dict[str, int]) -> dict[str, Any]:
    """By the file's first bytes: GGUF has a magic number, ONNX has none."""
    async with AsyncExitStack() as stack:
        with Bars() as bars:
            files = await stack.enter_async_context(ModelFiles(model, bars))
        if await files.main.read(0, 4) == b"GGUF":
            return await describe(files.main, context)
        return await inspect_onnx.describe(files, _TARGETS, dims)


async def describe(file: ModelFile, context: int | None = None) -> dict[str, Any]:
    """Everything that is shown of a GGUF file, as JSON values; sizes in bytes. Raises FormatError,
    StoreError."""
    header = await gguf.read_header(file.read, file.size)
    metadata = header.metadata
    tokens = metadata.get("tokenizer.ggml.tokens", ())
    return {
        "file": file.name,
        "bytes": file.size,
        "format": f"GGUF {header.version}",
        "name": _text(metadata.get("general.name")),
        "architecture": header.architecture,
        "config": _config(header),
        "parameters": sum(math.prod(t.shape) for t in header.tensors.values()),
        "dtypes": _by_dtype(header.tensors.values()),
        "tensors": _groups(header.tensors.values()),
        "tokenizer": {
            "model": _text(metadata.get("tokenizer.ggml.model")),
            "pre": _text(metadata.get("tokenizer.ggml.pre")),
            "tokens": len(tokens) if not isinstance(tokens, bool | int | float) else 0,
        },
        "chat_template": "tokenizer.chat_template" in metadata,
        "memory": await _memory(file, header, context),
    }


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _config(header: gguf.Gguf) -> dict[str, Any]:
    """The architecture's own keys, without its name in front; lists by their length."""
    prefix = f"{header.architecture}."
    found = {k.removeprefix(prefix): v for k, v in header.metadata.items() if k.startswith(prefix)}
    return {
        key: value if isinstance(value, bool | int | float | str) else f"{len(value)} values"
        for key, value in found.items()
    }


def _by_dtype(tensors: Iterable[gguf.TensorInfo]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for tensor in tensors:
        row = found.setdefault(tensor.dtype.name, {"tensors": 0, "parameters": 0, "bytes": 0})
        row["tensors"] += 1
        row["parameters"] += math.prod(tensor.shape)
        row["bytes"] += tensor.length
    return found


def _groups(tensors: Iterable[gguf.TensorInfo]) -> list[dict[str, Any]]:
    """Tensors of all layers as one row where only the layer's number differs."""
    found: dict[tuple[str, tuple[int, ...], str], dict[str, Any]] = {}
    for tensor in tensors:
        name = re.sub(r"\d+", "*", tensor.name, count=1)
        key = (name, tensor.shape, tensor.dtype.name)
        fresh = {"name": name, "shape": list(tensor.shape), "dtype": tensor.dtype.name}
        row = found.setdefault(key, {**fresh, "count": 0, "bytes": 0})
        row["count"] += 1
        row["bytes"] += tensor.length
    return list(found.values())


async def _memory(
    file: ModelFile, header: gguf.Gguf, context: int | None
) -> dict[str, dict[str, Any]]:
    """By target: bytes by kind of buffer, or ``{"unsupported": why}``."""
    found: dict[str, dict[str, Any]] = {}
    for name, options in _TARGETS.items():
        try:
            module = await build_module(file, header, llama.Options(context=context))
            found[name] = memory_of(compile_module(module, options))
            found[name]["context"] = module.device_dims[0].dim.max
        except UnsupportedError as error:
            found[name] = {"unsupported": str(error)}
    return found


def memory_of(plan: Plan) -> dict[str, Any]:
    """Bytes that a plan holds: weights, kv_cache, states, arena, other, total."""
    dims = {THREADS: THREAD_COUNT} if plan.target == "wasm" else {}
    found = dict.fromkeys(("weights", "kv_cache", "states", "arena", "other"), 0)
    names = {"weight": "weights", "state": "states", "arena": "arena"}
    for buffer in plan.buffers:
        kind = "kv_cache" if _CACHE.fullmatch(buffer.name) else names.get(buffer.kind, "other")
        found[kind] += shapes.evaluate(buffer.bytes, dims)
    return {**found, "total": plan.resident_bytes(dims)}


# --- for people


def _show(found: dict[str, Any]) -> None:
    console = Console()
    console.print(_facts(found))
    console.print(sizes_table(found["dtypes"]))
    console.print(_tensor_table(found))
    console.print(_memory_table(found))
    for target, row in found["memory"].items():
        if "unsupported" in row:
            console.print(f"{target}: can't run it: {row['unsupported']}", markup=False)


def _facts(found: dict[str, Any]) -> Table:
    table = new_table("<", "<")
    table.show_header = False
    table.columns[1].overflow = "fold"
    tokenizer = found["tokenizer"]
    rows = {
        "file": f"{found['file']} ({megabytes(found['bytes'])}, {found['format']})",
        "name": found["name"] or "–",
        "architecture": found["architecture"],
        **found["config"],
        "parameters": f"{found['parameters']:,}",
        "tokenizer": f"{tokenizer['model']}, {tokenizer['pre']}, {tokenizer['tokens']:,} tokens",
        "chat template": "yes" if found["chat_template"] else "no",
    }
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


def _tensor_table(found: dict[str, Any]) -> Table:
    table = new_table("<name", "shape", "<dtype", "count", "size", title="\nTensors")
    for row in found["tensors"]:
        shape = " × ".join(map(str, row["shape"]))
        size = megabytes(row["bytes"])
        table.add_row(row["name"], shape, row["dtype"], str(row["count"]), size)
    return table


def _memory_table(found: dict[str, Any]) -> Table:
    kinds = ("weights", "kv_cache", "states", "arena", "other", "total")
    heads = [kind.replace("_", " ") for kind in kinds]
    table = new_table("<target", "context", *heads, title="\nMemory that it needs")
    for target, row in found["memory"].items():
        if "unsupported" not in row:
            table.add_row(target, str(row["context"]), *(megabytes(row[kind]) for kind in kinds))
    return table


__all__ = ["describe", "inspect", "memory_of"]

"""``fanlight run-onnx MODEL --input NAME=FILE.npy …``: the outputs, as files and in short."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from fanlight.cli import npy
from fanlight.cli.progress import Bars
from fanlight.errors import InputError
from fanlight.inference.session import PROVIDERS, InferenceSession
from fanlight.inference.tensor import Tensor
from fanlight.runtime.backend import DEVICES, check_device

_SHOWN = 6  # elements


def run_onnx(
    model: Annotated[str, typer.Argument(help="An ONNX file: its path or URL.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="NAME=FILE", help="An input, as a .npy file."),
    ] = None,
    device: Annotated[str, typer.Option(help=f"One of: {', '.join(DEVICES)}.")] = "auto",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A folder for the outputs, as .npy files.")
    ] = None,
    dim: Annotated[
        list[str] | None,
        typer.Option("--dim", metavar="NAME=SIZE", help="Fix a free dimension while compiling."),
    ] = None,
) -> None:
    """Run an ONNX model once."""
    feeds = {name: npy.read(Path(file)) for name, file in pairs("input", inputs).items()}
    overrides = sizes(dim)
    providers = PROVIDERS if check_device(device) == "auto" else (device,)
    results = asyncio.run(_run(model, feeds, providers, overrides))
    for name, tensor in results.items():
        print(f"{name}: {_short(tensor)}")
        if output is not None:
            npy.write(output / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.npy", tensor)


async def _run(
    model: str,
    feeds: Mapping[str, Tensor],
    providers: tuple[str, ...],
    overrides: Mapping[str, int],
) -> dict[str, Tensor]:
    with Bars() as bars:
        session = await InferenceSession.create(
            model,
            execution_providers=providers,
            free_dimension_overrides=overrides,
            progress=bars,
        )
    async with session:
        return await session.run(feeds)


def pairs(option: str, values: list[str] | None) -> dict[str, str]:
    """``NAME=VALUE`` as a dict. Raises InputError."""
    found = {}
    for value in values or ():
        name, equals, rest = value.partition("=")
        if not name or not equals or not rest:
            raise InputError("wants NAME=VALUE", where=f"--{option}", got=value)
        found[name] = rest
    return found


def sizes(values: list[str] | None) -> dict[str, int]:
    """``NAME=SIZE`` as a dict of numbers. Raises InputError."""
    found = pairs("dim", values)
    for name, text in found.items():
        if not text.isdecimal():
            raise InputError("not a size", where=f"--dim {name}", got=text)
    return {name: int(text) for name, text in found.items()}


def _short(tensor: Tensor) -> str:
    """The type, and the first elements."""
    text = str(tensor).removeprefix("Tensor(").removesuffix(")")
    flat = tensor.memoryview()
    if not tensor.nbytes or flat.format == "B" != tensor.dtype:
        return text
    values = Tensor(tensor.data, tensor.dtype, (flat.nbytes // flat.itemsize,)).tolist()[:_SHOWN]
    shown = ", ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in values)
    more = ", …" if len(values) * flat.itemsize < tensor.nbytes else ""
    return f"{text} = {shown}{more}"

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
from fanlight.runtime.session import KernelTime

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
    profile: Annotated[
        bool, typer.Option("--profile", help="Print what each kernel costs in a run.")
    ] = False,
) -> None:
    """Run an ONNX model once."""
    feeds = {name: npy.read(Path(file)) for name, file in pairs("input", inputs).items()}
    overrides = sizes(dim)
    providers = PROVIDERS if check_device(device) == "auto" else (device,)
    results, times = asyncio.run(_run(model, feeds, providers, overrides, profile))
    for name, tensor in results.items():
        print(f"{name}: {_short(tensor)}")
        if output is not None:
            npy.write(output / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.npy", tensor)
    if times:
        _print(times)


async def _run(
    model: str,
    feeds: Mapping[str, Tensor],
    providers: tuple[str, ...],
    overrides: Mapping[str, int],
    profile: bool,
) -> tuple[dict[str, Tensor], list[KernelTime]]:
    with Bars() as bars:
        session = await InferenceSession.create(
            model,
            execution_providers=providers,
            free_dimension_overrides=overrides,
            profile=profile,
            progress=bars,
        )
    async with session:
        results = await session.run(feeds)
        return results, await session.profile(feeds) if profile else []


def _print(times: list[KernelTime]) -> None:
    whole = sum(row.ms for row in times)
    width = max(len(row.kernel) for row in times)
    print(f"\n{'kernel':{width}}  dispatches        ms      %")
    for row in times:
        share = 100 * row.ms / whole if whole else 0.0
        print(f"{row.kernel:{width}}  {row.dispatches:10}  {row.ms:8.3f}  {share:5.1f}")
    print(f"{'all':{width}}  {sum(row.dispatches for row in times):10}  {whole:8.3f}  100.0")


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

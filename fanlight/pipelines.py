"""``pipeline(task, model)``: the way in, the same in CPython and in the page."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from fanlight.archs import llama
from fanlight.errors import InputError, PlanError
from fanlight.hub.files import LocalFile, ModelFile
from fanlight.runtime.backend import Device, check_device, choose
from fanlight.runtime.session import ProgressCallback
from fanlight.tasks.text_generation import TextGeneration

TASKS = {"text-generation": TextGeneration}


async def pipeline(
    task: str,
    model: str | Path,
    *,
    device: str = "auto",
    progress: ProgressCallback | None = None,
    relaxed_simd: bool = False,
    **options: Any,
) -> TextGeneration:
    """A loaded pipeline for ``task``.

    ``model``: a path (CPython) or URL of a GGUF file. ``device``: ``auto``, ``webgpu`` or ``wasm``.
    ``progress`` is called with ``Progress(stage, done, total)``, bytes for ``download`` and
    ``load``. ``options`` are the task's own (``TextGeneration.check_options``);
    unknown ones raise InputError, before anything is downloaded. Cancelling the call aborts it.
    """
    if task not in TASKS:
        raise InputError("unknown task", got=task, wanted=", ".join(TASKS))
    kind = TASKS[task]
    known = kind.check_options.__kwdefaults__ or {}
    for name in options:
        if name not in known:
            raise InputError("unknown option", got=name, wanted=", ".join(known))
    checked = kind.check_options(**options)
    wanted = check_device(device)
    if sys.platform == "emscripten":
        return await _pipeline_in_page(kind, str(model), wanted, relaxed_simd, checked, progress)
    backend = await choose(wanted, relaxed_simd=relaxed_simd)
    file = await open_model(str(model), progress)
    return await kind.create(file, backend, checked, progress)


async def _pipeline_in_page(
    kind: type[TextGeneration],
    model: str,
    device: Device,
    relaxed_simd: bool,
    options: llama.Options,
    progress: ProgressCallback | None,
) -> TextGeneration:
    """What an earlier visit kept, or else a new one, which is kept for the next visit."""
    from fanlight.runtime import pyodide

    if (kept := pyodide.kept(model)) is not None:
        with suppress(PlanError):  # an executor that has changed; it forgets such a plan
            return await kind.resume(kept, options)
    backend = await choose(device, relaxed_simd=relaxed_simd)
    file = await open_model(model, progress)
    made = await kind.create(file, backend, options, progress)
    try:
        await pyodide.keep(model, made.session, made.notes(), made.tokenizer.encoder)
    except BaseException:  # an abort that comes only now
        await made.dispose()
        raise
    return made


async def open_model(model: str, progress: ProgressCallback | None = None) -> ModelFile:
    """The model's file, for reading in spans. Raises StoreError."""
    if sys.platform == "emscripten":
        from fanlight.runtime import pyodide

        return await pyodide.open_model(model, progress)
    if model.startswith(("http://", "https://")):
        from fanlight.hub.download import fetch

        return LocalFile(await fetch(model, progress))
    return LocalFile(Path(model))

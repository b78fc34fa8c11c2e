"""GGUF files as modules, and modules run by the interpreter: what the generation tests share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fanlight.archs import llama
from fanlight.dtypes import DType
from fanlight.formats import gguf
from fanlight.ir.graph import Module, WeightSource
from fanlight.ir.interpreter import Interpreter
from fanlight.shapes import evaluate
from tests.reference import torch_models

Array = NDArray[Any]
FILE = "model"


def build(path: Path, options: llama.Options) -> Module:
    """The module of a GGUF file, its weights' sources in the file ``model``."""
    with path.open("rb") as file:
        header = gguf.parse(file.read(64 << 20), file_size=path.stat().st_size)
        weights = {
            name: WeightSource(t.dtype, t.shape, FILE, t.offset, t.length)
            for name, t in header.tensors.items()
        }
        shapes = {name: w.shape for name, w in weights.items()}
        config = llama.config_from_gguf(header.metadata, shapes)
        small = {}
        for name in llama.small_tensors(weights):
            file.seek(weights[name].offset)
            small[name] = file.read(weights[name].length)
    return llama.build(config, weights, small, options)


class Interpreted:
    """A module in the interpreter: loaded, then fed in chunks."""

    def __init__(self, path: Path, module: Module, precise: bool = False) -> None:
        kind = "f8" if precise else "f4"
        tensors = torch_models.weights(path)
        values = {
            name: (
                np.frombuffer(source.data, "<f4").reshape(source.shape)
                if source.data is not None
                else tensors[name]
            ).astype(kind)
            for name, source in module.weights.items()
        }
        states = {
            name: np.zeros([evaluate(s, {}) for s in spec.shape], _kind(spec.dtype, kind))
            for name, spec in module.states.items()
        }
        self.module, self.states = module, states
        self.interpreter = Interpreter(values, states, precise)
        self.run("tables", {}, {})

    def run(self, graph: str, feeds: dict[str, Array], dims: dict[str, int]) -> dict[str, Array]:
        """The outputs of one graph; device dims are read from their states."""
        device = {d.dim.name: int(self.states[d.state][d.index]) for d in self.module.device_dims}
        return self.interpreter.run(self.module.graphs[graph], feeds, device | dims)

    def scores(self, tokens: Sequence[int], chunk: int) -> Array:
        """Logits of every position, [len(tokens), vocab]."""
        parts = []
        for at, part in chunks(tokens, chunk):
            self.states["control"] = control(at)
            feeds = {"tokens": np.array(part, "i4")}
            parts.append(self.run("score", feeds, {"T": len(part)})["scores"])
        return np.concatenate(parts)

    def decode(self, last: int, position: int, count: int) -> list[int]:
        """``count`` greedy tokens after ``last`` at ``position``, as the program ``decode``."""
        self.states["control"], self.states["stops"] = control(position, last), no_stops()
        chosen: list[int] = []
        slots = self.states["chosen"].shape[0]
        while len(chosen) < count:
            self.run("begin", {}, {})
            for _ in range(slots):
                self.run("step", {}, {})
                self.run("sample", {}, {})
            chosen += self.states["chosen"].tolist()
        return chosen[:count]


def _kind(dtype: DType, floats: str) -> str:
    return "i4" if dtype.kind == "int" else floats


def chunks(tokens: Sequence[int], size: int) -> Iterator[tuple[int, Sequence[int]]]:
    """(position, tokens) of each chunk."""
    for at in range(0, len(tokens), size):
        yield at, tokens[at : at + size]


def control(position: int, token: int = 0) -> Array:
    values = np.zeros(llama.CONTROL, "i4")
    values[llama.POSITION], values[llama.TOKEN] = position, token
    return values


def no_stops() -> Array:
    return np.full(llama.MAX_STOPS, -1, "i4")


def nmse(got: Array, wanted: Array) -> float:
    """Normalised mean square error, in f64."""
    a, b = got.astype("f8"), wanted.astype("f8")
    return float(((a - b) ** 2).sum() / (b**2).sum())

"""What a model takes and gives: names, element types, shapes with symbols.

In: a plan's metadata (``inputs``, ``outputs``: lists of ``{name, dtype, shape, buffer?}``, sizes in
the plan's JSON form, in the model's own order; ``buffer``: the plan's name, where it is another
than the model's). Out: dims from tensors, and tensors' shapes from dims.
The JavaScript twin is ``web/signature.js``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fanlight import shapes
from fanlight.errors import InputError, PlanError
from fanlight.inference.device_tensor import DeviceTensor
from fanlight.inference.tensor import Tensor, name_of
from fanlight.plan import Plan
from fanlight.shapes import Dim, Size


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """``dtype`` as callers name it (``float32``); an axis of ``shape`` is a number, or the text of
    a size: a symbol such as ``batch`` or a formula of symbols."""

    name: str
    dtype: str
    sizes: tuple[Size, ...]
    buffer: str

    @property
    def shape(self) -> tuple[int | str, ...]:
        return tuple(s if isinstance(s, int) else str(s) for s in self.sizes)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Signature:
    """In the model's order."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    def dims(self, feeds: Mapping[str, Tensor | DeviceTensor]) -> dict[str, int]:
        """Each symbol's size, from the tensors of all inputs. Raises InputError, naming the input,
        for one that is missing or unknown, of another element type, rank or size."""
        known = {info.name for info in self.inputs}
        for name in feeds:
            if name not in known:
                raise InputError("no such input", got=name, wanted=", ".join(sorted(known)))
        dims: dict[str, int] = {}
        first: dict[str, str] = {}  # symbol → the input that it was seen in
        for info in self.inputs:
            where = f"input {info.name}"
            if info.name not in feeds:
                raise InputError("an input is missing", where=where, wanted=str(info))
            tensor = feeds[info.name]
            if tensor.dtype != info.dtype:
                raise InputError("wrong element type", where=where, got=tensor, wanted=str(info))
            if len(tensor.shape) != len(info.sizes):
                raise InputError(
                    "wrong number of axes", where=where, got=list(tensor.shape), wanted=str(info)
                )
            for axis, (got, size) in enumerate(zip(tensor.shape, info.sizes, strict=True)):
                at = f"{where}, axis {axis}"
                if isinstance(size, Dim):
                    if size.name not in dims:
                        _check_maximum(size, got, at)
                    elif dims[size.name] != got:
                        wanted = f"{dims[size.name]}, as {size} is in {first[size.name]}"
                        raise InputError("wrong size", where=at, got=got, wanted=wanted)
                    dims.setdefault(size.name, got)
                    first.setdefault(size.name, info.name)
        self._check_formulas(feeds, dims)
        return dims

    def _check_formulas(
        self, feeds: Mapping[str, Tensor | DeviceTensor], dims: Mapping[str, int]
    ) -> None:
        """Axes that are numbers or formulas of symbols, whose sizes are known now."""
        for info in self.inputs:
            for axis, (got, size) in enumerate(
                zip(feeds[info.name].shape, info.sizes, strict=True)
            ):
                wanted = shapes.evaluate(size, dims)
                if got != wanted:
                    formula = "" if isinstance(size, int) else f" = {size}"
                    where = f"input {info.name}, axis {axis}"
                    raise InputError(
                        "wrong size", where=where, got=got, wanted=f"{wanted}{formula}"
                    )

    def output(self, name: str) -> TensorInfo:
        """Raises InputError for an unknown name."""
        for info in self.outputs:
            if info.name == name:
                return info
        wanted = ", ".join(info.name for info in self.outputs)
        raise InputError("no such output", got=name, wanted=wanted)


def _check_maximum(dim: Dim, got: int, where: str) -> None:
    if got > dim.max:
        raise InputError("too large", where=where, got=got, wanted=f"at most {dim.max}")


def signature_of(plan: Plan) -> Signature:
    """Raises PlanError where the plan's metadata describe no inputs and outputs."""
    dims = {spec.dim.name: spec.dim for spec in plan.dims}

    def infos(key: str) -> tuple[TensorInfo, ...]:
        found = plan.metadata.get(key)
        if not isinstance(found, (list, tuple)):
            raise PlanError("the plan is not of a model with tensors in and out", where=key)
        return tuple(_info(value, dims) for value in found)

    return Signature(infos("inputs"), infos("outputs"))


def _info(value: Mapping[str, Any], dims: Mapping[str, Dim]) -> TensorInfo:
    sizes = tuple(shapes.from_json(s, dims) for s in value["shape"])
    name = str(value["name"])
    return TensorInfo(name, name_of(value["dtype"]), sizes, str(value.get("buffer", name)))

"""The table of operators: one function for each, with the opsets that it is right for.

A function takes a :class:`Call` and returns a node, or a tuple of nodes, one for each output of the
ONNX node; None for one that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar, Union

from fanlight.ir.graph import Node

if TYPE_CHECKING:
    from fanlight.importers.onnx.call import Call

Result: TypeAlias = Union[Node, tuple[Union[Node, None], ...]]
Function: TypeAlias = "Callable[[Call], Result]"
Written = TypeVar("Written", bound=Function)
MICROSOFT = "com.microsoft"


@dataclass(frozen=True, slots=True)
class Operator:
    """``function`` is right for opsets ``since`` to ``until``, the last one included; None: to the
    newest. ``attributes``: those that it knows."""

    name: str
    domain: str
    since: int
    until: int | None
    attributes: frozenset[str]
    function: Function


OPERATORS: dict[tuple[str, str], list[Operator]] = {}


def op(
    name: str,
    since: int = 1,
    until: int | None = None,
    *,
    attrs: str = "",
    domain: str = "",
) -> Callable[[Written], Written]:
    """Puts a function into the table. ``attrs``: names of the attributes that it knows; any other
    one is refused."""

    def put(function: Written) -> Written:
        rows = OPERATORS.setdefault((domain, name), [])
        rows.append(Operator(name, domain, since, until, frozenset(attrs.split()), function))
        rows.sort(key=lambda row: row.since)
        return function

    return put


def find(domain: str, name: str, opset: int) -> Operator | None:
    """The operator's row for an opset."""
    for row in OPERATORS.get((domain, name), []):
        if row.since <= opset and (row.until is None or opset <= row.until):
            return row
    return None

"""Puts temporaries into arena slots: values whose lifetimes don't overlap share one.

In: the order of launches with the temporaries that each touches, and their sizes. Out: temporary → slot,
and the size of each slot. Greedy by size, largest first (Pisarchyk & Lee, arXiv 2001.03288), over the
maxima; a slot's size is the largest of its values' sizes as an expression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fanlight.shapes import Operation, Size, binary, maximum


def assign(
    touched: Sequence[Sequence[str]], sizes: Mapping[str, Size]
) -> tuple[dict[str, int], list[Size]]:
    """``touched[i]``: buffers that launch i uses. Returns (temporary → slot number, slot sizes)."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for number, names in enumerate(touched):
        for name in names:
            if name in sizes:
                first.setdefault(name, number)
                last[name] = number
    order = sorted(first, key=lambda n: (-maximum(sizes[n]), first[n]))
    slots: list[list[str]] = []
    totals: list[Size] = []
    place: dict[str, int] = {}
    for name in order:
        for number, members in enumerate(slots):
            if all(last[m] < first[name] or last[name] < first[m] for m in members):
                break
        else:
            number = len(slots)
            slots.append([])
            totals.append(0)
        slots[number].append(name)
        place[name] = number
        totals[number] = _largest(totals[number], sizes[name])
    return place, totals


def _largest(a: Size, b: Size) -> Size:
    """``max(a, b)``, without repeating an operand that the chain ``a`` has already."""
    return b if a == 0 else a if str(b) in _members(a) else binary("max", a, b)


def _members(size: Size) -> set[str]:
    """The operands of a chain of maxima, as text."""
    if isinstance(size, Operation) and size.op == "max":
        return _members(size.a) | _members(size.b)
    return {str(size)}

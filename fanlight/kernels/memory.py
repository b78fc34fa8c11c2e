"""Puts temporaries into arena slots: values whose lifetimes don't overlap share one.

In: the order of launches with the temporaries that each touches, and their sizes. Out: temporary →
slot, and the size of each slot. Greedy by size, largest first (Pisarchyk & Lee, arXiv 2001.03288),
over the maxima; a slot's size is the largest of its values' sizes as an expression.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence

from fanlight.shapes import Operation, Size, binary, maximum


def assign(
    touched: Sequence[Sequence[str]], sizes: Mapping[str, Size], rest: int = 0
) -> tuple[dict[str, int], list[Size]]:
    """``touched[i]``: buffers that launch i uses; ``rest``: launches that a slot is left alone for
    after its value's last one. Returns (temporary → slot number, slot sizes)."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for number, names in enumerate(touched):
        for name in names:
            if name in sizes:
                first.setdefault(name, number)
                last[name] = number + rest
    order = sorted(first, key=lambda n: (-maximum(sizes[n]), first[n]))
    slots: list[list[tuple[int, int]]] = []  # lifetimes, one after the other
    totals: list[Size] = []
    place: dict[str, int] = {}
    for name in order:
        life = first[name], last[name]
        number = next((i for i, slot in enumerate(slots) if _free(slot, life)), len(slots))
        if number == len(slots):
            slots.append([])
            totals.append(0)
        insort(slots[number], life)
        place[name] = number
        totals[number] = _largest(totals[number], sizes[name])
    return place, totals


def _free(slot: list[tuple[int, int]], life: tuple[int, int]) -> bool:
    """Whether nothing in the slot lives then."""
    at = bisect_left(slot, life)
    begins, ends = life
    return (at == 0 or slot[at - 1][1] < begins) and (at == len(slot) or ends < slot[at][0])


def _largest(a: Size, b: Size) -> Size:
    """``max(a, b)``, as one multiple where both are multiples of one size, and without repeats."""
    if a == 0 or b == a:
        return b
    members = _members(a)
    for number, member in enumerate(members):
        (base, times), (other, more) = _multiple(member), _multiple(b)
        if base == other:
            members[number] = base * max(times, more)
            break
    else:
        members.append(b)
    result = members[0]
    for member in members[1:]:
        result = binary("max", result, member)
    return result


def _members(size: Size) -> list[Size]:
    """The operands of a chain of maxima."""
    if isinstance(size, Operation) and size.op == "max":
        return _members(size.a) + _members(size.b)
    return [size]


def _multiple(size: Size) -> tuple[Size, int]:
    """``size`` as (base, factor)."""
    if isinstance(size, int):
        return 1, size
    if isinstance(size, Operation) and size.op == "*" and isinstance(size.b, int):
        return size.a, size.b
    return size, 1

"""Windows that slide over spatial axes: what convolutions and pools have in common.

In: attributes of an ONNX node and the input's shape, [N, C, *S]. Out: the places that each window
looks at, as i32 nodes ready for ``take``, whether they lie inside, and the output's sizes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from fanlight import dtypes
from fanlight.importers.onnx.call import Call
from fanlight.ir import build
from fanlight.ir.build import op as do
from fanlight.ir.graph import Node
from fanlight.shapes import Size, binary

_TAPS = 49  # loads of one kernel that are written out
ATTRS = "auto_pad dilations kernel_shape pads strides"


@dataclass(frozen=True, slots=True)
class Windows:
    """One entry for each spatial axis. ``after``: padding behind, as the node says."""

    sizes: tuple[Size, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[Size, ...]
    after: tuple[Size, ...]
    out: tuple[Size, ...]

    def places(self, rank: int, outer: int, inner: int) -> tuple[list[Node], Node | None]:
        """For results of ``rank`` axes, with the output's axes from ``outer`` and the kernel's from
        ``inner`` on: places along each spatial axis, moved inside, and whether they were inside;
        None where all are."""
        found: list[Node] = []
        inside: Node | None = None
        for i, size in enumerate(self.sizes):
            here = build.along(outer + i, rank, self.out[i])
            there = build.along(inner + i, rank, self.kernel[i])
            at = do("add", do("mul", here, self.strides[i]), do("mul", there, self.dilations[i]))
            if self.before[i] != 0:
                at = do("sub", at, build.size(self.before[i], dtypes.i32))
            if self.padded(i):
                count = build.size(size, dtypes.i32)
                within = do("and", do("ge", at, 0), do("lt", at, count))
                inside = within if inside is None else do("and", inside, within)
                at = build.clamp(at, size)
            found.append(at)
        return found, inside

    def few(self) -> bool:
        """Whether a kernel may have all taps written out."""
        return math.prod(self.kernel) <= _TAPS

    def taps(self, x: Node, outside: float) -> list[tuple[tuple[int, ...], Node]]:
        """Each tap of the kernel, and the elements of x [N, C, *S] there, [N, C, *O]: neighbours
        stay neighbours, so that they are read side by side where the strides are 1."""
        count = len(self.kernel)
        behind: list[Size] = []
        for i, size in enumerate(self.sizes):
            reach = (self.out[i] - 1) * self.strides[i] + (self.kernel[i] - 1) * self.dilations[i]
            behind.append(binary("max", self.after[i], reach + 1 - self.before[i] - size))
        image = build.pad(x, (0, 0, *self.before), (0, 0, *behind), outside)
        rank = 2 + count
        ahead = [build.along(i, rank, size) for i, size in enumerate(x.shape[:2])]
        steps = [
            do("mul", build.along(2 + i, rank, self.out[i]), self.strides[i]) for i in range(count)
        ]
        found: list[tuple[tuple[int, ...], Node]] = []
        for tap in itertools.product(*map(range, self.kernel)):
            starts = [k * d for k, d in zip(tap, self.dilations, strict=True)]
            values = image
            if set(self.strides) == {1}:
                for i, start in enumerate(starts):
                    values = build.part(values, 2 + i, start, self.out[i])
            else:
                places = [do("add", a, b) for a, b in zip(steps, starts, strict=True)]
                values = build.take(image, *ahead, *places)
            found.append((tap, values))
        return found

    def padded(self, axis: int) -> bool:
        """Whether a window may reach outside."""
        if self.before[axis] != 0 or self.after[axis] != 0:
            return True
        size, out = self.sizes[axis], self.out[axis]
        if not isinstance(size, int) or not isinstance(out, int):
            return False
        reach = (out - 1) * self.strides[axis] + (self.kernel[axis] - 1) * self.dilations[axis]
        return reach >= size


def windows(call: Call, sizes: Sequence[Size], kernel: Sequence[int]) -> Windows:
    """The windows of a convolution or pool over axes of ``sizes``."""
    count = len(kernel)
    strides = call.attr_ints("strides", (1,) * count)
    dilations = call.attr_ints("dilations", (1,) * count)
    pads = call.attr_ints("pads", (0,) * (2 * count))
    mode = call.attr_string("auto_pad", "NOTSET")
    before: list[Size] = list(pads[:count])
    after: list[Size] = list(pads[count:])
    out: list[Size] = []
    for i, size in enumerate(sizes):
        reach = (kernel[i] - 1) * dilations[i] + 1
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            number = binary("ceil/", size, strides[i])
            total = binary("max", (number - 1) * strides[i] + reach - size, 0)
            half = binary("//", total, 2)
            before[i], after[i] = (half, total - half)
            if mode == "SAME_LOWER":
                before[i], after[i] = after[i], before[i]
            out.append(number)
            continue
        if mode == "VALID":
            before[i] = after[i] = 0
        elif mode != "NOTSET":
            call.fail("an automatic padding", got=mode)
        room = size + before[i] + after[i] - reach
        number = binary("//", room, strides[i]) + 1
        if "ceil_mode" in call.attributes and call.attr_bool("ceil_mode", False):
            number = binary("ceil/", room, strides[i]) + 1
            beyond = (number - 1) * strides[i] - (size + before[i])
            if isinstance(beyond, int) and beyond >= 0:
                number = number - 1  # a window that begins behind the input is left out
        out.append(number)
    return Windows(
        tuple(sizes), tuple(kernel), strides, dilations, tuple(before), tuple(after), tuple(out)
    )

"""``docs/operators.md``, printed from the importer's table (``scripts/operators``)."""

from __future__ import annotations

from fanlight.compiler import target_named
from fanlight.importers.onnx.registry import MICROSOFT, OPERATORS, Operator
from fanlight.ir import composite
from fanlight.ir.ops import OPS
from fanlight.kernels.target import NotYet

HEAD = """# ONNX operators

Printed from the importer's table by `scripts/operators`.

An operator is imported as ops of the IR (`fanlight/ir/ops.py`), and every backend has code for all
of those, so what is listed runs on WebAssembly and WebGPU alike, for all element types that ONNX
allows it and Fanlight holds (no strings, complex numbers, sequences, maps or optionals). WebGPU
computes 64-bit floats in 32 bits. Axes must be known while importing: from the model, or from
`input_values` where inputs hold them. Sizes that the model computes are read back between parts of
a run, but for those inside loops.
"""


def opsets(rows: list[Operator]) -> str:
    """E.g. ``1 – 10, 11 – newest``."""
    return ", ".join(
        f"{row.since} – {'newest' if row.until is None else row.until}" for row in rows
    )


def page() -> str:
    """The page's text."""
    lines = [HEAD]
    for domain, title in (("", "ai.onnx"), (MICROSOFT, MICROSOFT)):
        names = sorted(name for found, name in OPERATORS if found == domain)
        lines += [
            f"## {title} ({len(names)})",
            "",
            "| operator | opsets | attributes |",
            "|---|---|---|",
        ]
        for name in names:
            rows = OPERATORS[domain, name]
            attributes = sorted(frozenset().union(*(row.attributes for row in rows)))
            lines.append(f"| {name} | {opsets(rows)} | {', '.join(attributes)} |")
        lines.append("")
    lines += ["## Ops of the IR without a kernel of their own", "", _defined(), ""]
    return "\n".join(lines)


def _defined() -> str:
    parts = []
    for target in ("wasm", "webgpu"):
        rules = target_named(target).rules
        names = [op for op in OPS if isinstance(rules.get(op), NotYet)]
        assert set(names) <= set(composite.DEFINITIONS), names
        parts.append(f"- {target}: {', '.join(sorted(names)) or 'none'} (run as their definitions)")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")

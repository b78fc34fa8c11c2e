"""Tables of the terminal that more than one subcommand prints."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table


def new_table(*columns: str, title: str = "") -> Table:
    """An empty table; columns that begin with ``<`` are text, the others numbers."""
    made = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        made.add_column(column.strip("<"), justify="left" if column.startswith("<") else "right")
    return made


def sizes_table(dtypes: Mapping[str, Mapping[str, int]]) -> Table:
    """Tensors, parameters and bytes by dtype."""
    made = new_table("<dtype", "tensors", "parameters", "size", title="\nSizes by dtype")
    for dtype, row in dtypes.items():
        size = megabytes(row["bytes"])
        made.add_row(dtype, str(row["tensors"]), f"{row['parameters']:,}", size)
    return made


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"

"""Progress events → bars on stderr, one a stage; nothing where stderr is no terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich import progress
from rich.console import Console

from fanlight.runtime.session import Progress

TITLES = {
    "python": "Start Python",
    "download": "Download",
    "compile": "Compile",
    "load": "Load",
}
_BYTES = ("download", "load")


class Bars:
    """A progress callback: ``with Bars() as bars: await pipeline(…, progress=bars)``."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bars = progress.Progress(
            progress.TextColumn("{task.description:<12}"),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[amount]:>20}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, progress.TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Takes the bars away; at once, so that text may follow."""
        self._bars.stop()

    def __call__(self, event: Progress) -> None:
        if event.stage not in TITLES:
            return
        if event.stage not in self._tasks:
            title = TITLES[event.stage]
            self._tasks[event.stage] = self._bars.add_task(title, total=None, amount="")
        amount = _amount(event)
        total = event.total if event.total > 1 or event.done else None  # None: nobody knows how far
        self._bars.update(
            self._tasks[event.stage], completed=event.done, total=total, amount=amount
        )


def _amount(event: Progress) -> str:
    if event.total <= 1:
        return ""
    if event.stage in _BYTES:
        return f"{event.done / 1e6:.0f} of {event.total / 1e6:.0f} MB"
    return f"{event.done} of {event.total}"

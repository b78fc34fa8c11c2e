"""What a page costs in memory while it works: processes by PSS, workers by DevTools.

In: a running Chromium. Out: samples and their peaks. Processes on Linux only (``/proc``); elsewhere
their numbers are None. Knows nothing of models.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.async_api import CDPSession, Page

PROC = Path("/proc")
KINDS = ("renderer", "gpu-process")
_HEAP_PARTS = ("usedSize", "embedderHeapUsedSize", "backingStorageSize")


def processes(profile: Path) -> list[int]:
    """The renderers and the GPU process of the browser that runs on ``profile``."""
    lines = {pid: line for pid in _pids() if (line := _command(pid))}
    wanted = f"--user-data-dir={profile}"
    roots = {
        pid for pid, line in lines.items() if wanted in line and "--type=" not in " ".join(line)
    }
    return sorted(
        pid
        for pid, line in lines.items()
        if any(f"--type={kind}" in line for kind in KINDS) and roots & set(_ancestors(pid))
    )


def pss(pids: list[int]) -> int | None:
    """Bytes of the processes together, shared pages split between those that share them."""
    total, found = 0, False
    for pid in pids:
        try:
            text = (PROC / str(pid) / "smaps_rollup").read_text()
        except OSError:
            continue  # it has ended
        if match := re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE):
            total, found = total + 1024 * int(match[1]), True
    return total if found else None


@dataclass(slots=True)
class PssSampler:
    """Samples in a thread of its own. ``peak`` and ``count`` are of all samples."""

    profile: Path
    every: float = 0.02
    peak: int | None = None
    count: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def settled(self, seconds: float = 3.0) -> int | None:
        """The least of the samples of some seconds: what stays when nothing happens."""
        values = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            values.append(pss(processes(self.profile)))
            time.sleep(0.1)
        known = [v for v in values if v is not None]
        return min(known) if known else None

    @contextmanager
    def sampling(self) -> Iterator[PssSampler]:
        """Samples until the end of the block."""
        thread = threading.Thread(target=self._run, name="fanlight-pss", daemon=True)
        self._stop.clear()
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def _run(self) -> None:
        pids: list[int] = []
        number = 0
        while not self._stop.wait(self.every):
            if number % 5 == 0:
                pids = processes(self.profile)  # some start late: another renderer, the GPU process
            number += 1
            now = pss(pids)
            if now is not None:
                self.peak, self.count = max(self.peak or 0, now), self.count + 1


class HeapSampler:
    """The heaps of a page's workers, nested ones included. ``peak``: the most bytes that any
    held at a time: used heap and backing stores; WebAssembly memories are apart."""

    def __init__(self, devtools: CDPSession) -> None:
        self.peak = 0
        self.count = 0
        self._devtools = devtools
        self._workers: list[tuple[str, ...]] = []  # the session ids that lead to each
        self._task: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[None]] = set()

    @classmethod
    async def attach(cls, page: Page) -> HeapSampler:
        """Before the page is opened: workers are found as they start."""
        devtools = await page.context.new_cdp_session(page)
        sampler = cls(devtools)
        devtools.on("Target.attachedToTarget", lambda event: sampler._attached(event, ()))
        devtools.on("Target.receivedMessageFromTarget", lambda event: sampler._message(event, ()))
        await devtools.send("Target.setAutoAttach", _AUTO)
        return sampler

    async def start(self, every: float = 0.02) -> None:
        """Samples until :meth:`stop`."""
        self._task = asyncio.create_task(self._run(every))

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self, every: float) -> None:
        while True:
            for path in list(self._workers):
                await self._send(path, "Runtime.getHeapUsage")
            await asyncio.sleep(every)

    def _attached(self, event: dict[str, Any], parent: tuple[str, ...]) -> None:
        path = (*parent, event["sessionId"])
        self._workers.append(path)
        attaching = self._send(path, "Target.setAutoAttach", _AUTO)
        task = asyncio.get_running_loop().create_task(attaching)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    def _message(self, event: dict[str, Any], parent: tuple[str, ...]) -> None:
        path = (*parent, event["sessionId"])
        message = json.loads(event["message"])
        params, result = message.get("params", {}), message.get("result", {})
        if message.get("method") == "Target.attachedToTarget":
            self._attached(params, path)
        elif message.get("method") == "Target.receivedMessageFromTarget":
            self._message(params, path)
        elif "usedSize" in result:
            self.count += 1
            self.peak = max(self.peak, int(sum(result.get(part, 0) for part in _HEAP_PARTS)))

    async def _send(self, path: tuple[str, ...], method: str, params: Any = None) -> None:
        """To the worker at ``path``, each session wrapped in its parent's."""
        from playwright.async_api import Error

        command: dict[str, Any] = {"id": 1, "method": method, "params": params or {}}
        for session in reversed(path):
            text = json.dumps(command)
            inner = {"sessionId": session, "message": text}
            command = {"id": 1, "method": "Target.sendMessageToTarget", "params": inner}
        try:
            await self._devtools.send(command["method"], command["params"])
        except Error:  # that worker has ended
            self._workers = [w for w in self._workers if w != path]


_AUTO = {"autoAttach": True, "waitForDebuggerOnStart": False, "flatten": False}


def _pids() -> list[int]:
    return [int(p.name) for p in PROC.iterdir() if p.name.isdigit()] if PROC.is_dir() else []


def _command(pid: int) -> list[str]:
    """The arguments; a zygote's children have theirs in one string."""
    try:
        text = (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return []
    return text.replace("\0", " ").split()


def _ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        try:
            stat = (PROC / str(pid) / "stat").read_text()
        except OSError:
            return
        pid = int(stat.rpartition(")")[2].split()[1])
        yield pid


def megabytes(count: int | None) -> float | None:
    """MB (10^6 bytes), one digit."""
    return None if count is None else round(count / 1e6, 1)


__all__ = ["HeapSampler", "PssSampler", "megabytes", "processes", "pss"]

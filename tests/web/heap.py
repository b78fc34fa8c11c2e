"""The memory of a page's workers while it works, over DevTools."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from playwright.sync_api import CDPSession, Page


@dataclass(frozen=True)
class Watched:
    """``peak``: the most bytes that a worker held at a time, heap and backing stores together."""

    result: Any
    peak: int
    samples: int


def watch(page: Page, script: str, argument: Any, every: float = 0.02) -> Watched:
    """Runs an async function in the page and looks at its workers meanwhile."""
    devtools = page.context.new_cdp_session(page)
    workers: list[str] = []
    sizes: list[int] = []
    devtools.on("Target.attachedToTarget", lambda event: workers.append(event["sessionId"]))
    devtools.on("Target.receivedMessageFromTarget", lambda event: _take(event, sizes))
    devtools.send(
        "Target.setAutoAttach",
        {"autoAttach": True, "waitForDebuggerOnStart": False, "flatten": False},
    )
    page.evaluate(
        f"""(argument) => {{
          window.watched = null;
          outcome(({script})(argument)).then((result) => {{ window.watched = result; }});
        }}""",
        argument,
    )
    while (outcome := page.evaluate("() => window.watched")) is None:
        for worker in workers:
            _ask(devtools, worker)
        time.sleep(every)
    devtools.detach()
    assert "value" in outcome, outcome
    return Watched(outcome["value"], max(sizes, default=0), len(sizes))


def _ask(devtools: CDPSession, worker: str) -> None:
    message = json.dumps({"id": 1, "method": "Runtime.getHeapUsage"})
    devtools.send("Target.sendMessageToTarget", {"sessionId": worker, "message": message})


def _take(event: dict[str, Any], sizes: list[int]) -> None:
    result = json.loads(event["message"]).get("result", {})
    if "usedSize" in result:
        parts = ("usedSize", "embedderHeapUsedSize", "backingStorageSize")
        sizes.append(int(sum(result.get(part, 0) for part in parts)))

"""Bytes that a browser fetched over the network, by page, workers and service worker.

In: a running browser. Out: ``bytes``, by DevTools' network domain; what a cache or the service
worker answered is not counted.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.async_api import CDPSession, Page

_KINDS = ("page", "worker", "service_worker", "shared_worker")
# Commands to a target: an id of ours, as the protocol wants one.
_COMMANDS = ("Network.enable", "Runtime.runIfWaitingForDebugger")


class Traffic:
    """Counts from :meth:`attach` on. ``requests``: addresses that cost bytes."""

    def __init__(self, devtools: CDPSession) -> None:
        self.bytes = 0
        self.requests: list[str] = []
        self._devtools = devtools
        self._addresses: dict[tuple[str, str], str] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def attach(cls, page: Page) -> Traffic:
        """Before the page is opened: targets are found as they start."""
        browser = page.context.browser
        assert browser is not None
        devtools = await browser.new_browser_cdp_session()
        traffic = cls(devtools)
        devtools.on("Target.targetCreated", traffic._created)
        devtools.on("Target.receivedMessageFromTarget", traffic._message)
        await devtools.send("Target.setDiscoverTargets", {"discover": True})
        return traffic

    def _created(self, event: dict[str, Any]) -> None:
        if event["targetInfo"]["type"] in _KINDS:
            task = asyncio.get_running_loop().create_task(
                self._watch(event["targetInfo"]["targetId"])
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _watch(self, target: str) -> None:
        from playwright.async_api import Error

        try:
            attached = await self._devtools.send(
                "Target.attachToTarget", {"targetId": target, "flatten": False}
            )
            for number, method in enumerate(_COMMANDS, 1):
                message = json.dumps({"id": number, "method": method})
                fields = {"sessionId": attached["sessionId"], "message": message}
                await self._devtools.send("Target.sendMessageToTarget", fields)
        except Error:
            return  # it has ended

    def _message(self, event: dict[str, Any]) -> None:
        message = json.loads(event["message"])
        fields = message.get("params", {})
        key = event["sessionId"], fields.get("requestId", "")
        match message.get("method"):
            case "Network.responseReceived":
                response = fields["response"]
                kept = ("fromDiskCache", "fromServiceWorker", "fromPrefetchCache")
                local = response["url"].startswith(("data:", "blob:"))
                if not local and not any(response.get(name) for name in kept):
                    self._addresses[key] = response["url"]
            case "Network.dataReceived":
                self._add(key, int(fields["encodedDataLength"]))
            case "Network.loadingFinished" if key in self._addresses:
                self.requests.append(self._addresses[key])

    def _add(self, key: tuple[str, str], count: int) -> None:
        if key in self._addresses:
            self.bytes += count

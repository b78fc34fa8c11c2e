"""What loading costs in time and memory, in a browser that nobody watches: known only by its page's
title.

DevTools' network domain, which Playwright turns on, makes renderers keep bodies of responses, and
every worker wait for its watcher before it starts; so Chromium is started by itself here. In: an
address of the page (``app.js`` tells what it may hold). Out: the page's report; PSS at the peak
less that at rest.
"""

from __future__ import annotations

import html
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fanlight.bench.memory import PssSampler
from fanlight.errors import DeviceError
from fanlight.runtime import chromium

REST_S = 6
SETTLE_S = 2.5  # a browser has started all of its own
_POLL_S = 0.1


def report(address: str, profile: Path, webgpu: chromium.WebGpu, timeout: float) -> dict[str, Any]:
    """What the page at ``address`` (with ``report=1``) reports of a visit in a browser that has
    been running for a moment. Blocks for ``timeout`` seconds at most. Raises DeviceError where the
    page fails."""
    end = time.monotonic() + timeout
    with _browser(profile, webgpu, "about:blank") as port_file:
        time.sleep(SETTLE_S)
        _ask(port_file, f"new?{quote(address, safe=':/')}", "PUT")
        title = _wait_for_title(port_file, ("Report ",), end)
    found: dict[str, Any] = json.loads(title.removeprefix("Report "))
    return found


def load_cost(address: str, profile: Path, webgpu: chromium.WebGpu, timeout: float) -> int | None:
    """Bytes of PSS, of renderers and GPU process, at the peak of loading, less those at rest with
    Python booted (``address`` has ``rest=SECONDS``); None where there is no ``/proc``. Blocks for
    ``timeout`` seconds at most. Raises DeviceError where the page fails."""
    sampler = PssSampler(profile)
    end = time.monotonic() + timeout
    with _browser(profile, webgpu, address) as port_file:
        _wait_for_title(port_file, ("Resting",), end)
        time.sleep(REST_S / 2)  # what booting left is collected
        idle = sampler.settled(REST_S / 4)
        with sampler.sampling():
            _wait_for_title(port_file, ("Ready",), end)
    return None if sampler.peak is None or idle is None else sampler.peak - idle


@contextmanager
def _browser(profile: Path, webgpu: chromium.WebGpu, address: str) -> Iterator[Path]:
    """Chromium, at ``address``; the file that names its port for DevTools' requests."""
    program = chromium.find()
    if program is None:
        raise DeviceError("no Chromium was found", hint="Run scripts/setup.")
    port_file = profile / "DevToolsActivePort"
    port_file.unlink(missing_ok=True)
    browser = subprocess.Popen(
        [
            str(program),
            *chromium.flags(webgpu, sandbox=os.geteuid() != 0),
            "--headless=new",
            f"--user-data-dir={profile}",
            "--remote-debugging-port=0",
            address,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield port_file
    finally:
        browser.terminate()
        with suppress(subprocess.TimeoutExpired):
            browser.wait(10)
        browser.kill()


def _wait_for_title(port_file: Path, wanted: tuple[str, ...], end: float) -> str:
    while time.monotonic() < end:
        title = _title(port_file)
        if title.startswith(wanted):
            return title
        if title.startswith("Error"):
            raise DeviceError("the page failed", got=title)
        time.sleep(_POLL_S)
    raise DeviceError("the page took too long", wanted=" or ".join(wanted))


def _title(port_file: Path) -> str:
    """Of the page; empty while there is none. Asking for it attaches nothing to the page."""
    try:
        targets = _ask(port_file, "list")
    except (OSError, IndexError, ValueError):
        return ""
    pages = [t for t in targets if t["type"] == "page" and t["url"].startswith("http")]
    return html.unescape(pages[0]["title"]) if pages else ""  # DevTools escapes it


def _ask(port_file: Path, what: str, method: str = "GET") -> Any:
    port = port_file.read_text().split()[0]
    request = urllib.request.Request(f"http://127.0.0.1:{port}/json/{what}", method=method)
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.load(answer)

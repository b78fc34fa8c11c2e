"""What loading costs in memory, in a browser that nobody watches: known only by its page's title.

DevTools' network domain, which Playwright turns on, makes renderers keep bodies of responses; so
Chromium is started by itself here. In: an address of the page (``rest=SECONDS``: it boots Python
and rests before it loads). Out: PSS at the peak less that at rest.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from fanlight.bench.memory import PssSampler
from fanlight.errors import DeviceError
from fanlight.runtime import chromium

REST_S = 6
_POLL_S = 0.1


def load_cost(address: str, profile: Path, webgpu: chromium.WebGpu, timeout: float) -> int | None:
    """Bytes of PSS, of renderers and GPU process, at the peak of loading, less those at rest with
    Python booted; None where there is no ``/proc``. Blocks for ``timeout`` seconds at most. Raises
    DeviceError where the page fails."""
    program = chromium.find()
    if program is None:
        raise DeviceError("no Chromium was found", hint="Run scripts/setup.")
    port_file = profile / "DevToolsActivePort"
    port_file.unlink(missing_ok=True)
    sampler = PssSampler(profile)
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
    end = time.monotonic() + timeout
    try:
        _wait_for_title(port_file, ("Resting",), end)
        time.sleep(REST_S / 2)  # what booting left is collected
        idle = sampler.settled(REST_S / 4)
        with sampler.sampling():
            _wait_for_title(port_file, ("Ready",), end)
        return None if sampler.peak is None or idle is None else sampler.peak - idle
    finally:
        browser.terminate()
        with suppress(subprocess.TimeoutExpired):
            browser.wait(10)
        browser.kill()


def _wait_for_title(port_file: Path, wanted: tuple[str, ...], end: float) -> None:
    while time.monotonic() < end:
        title = _title(port_file)
        if title.startswith(wanted):
            return
        if title.startswith("Error"):
            raise DeviceError("the page failed", got=title)
        time.sleep(_POLL_S)
    raise DeviceError("the page took too long", wanted=" or ".join(wanted))


def _title(port_file: Path) -> str:
    """Of the first page; empty while there is none. Asking for it attaches nothing to the page."""
    try:
        port = port_file.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
            pages = [target for target in json.load(answer) if target["type"] == "page"]
    except (OSError, IndexError, ValueError):
        return ""
    return str(pages[0]["title"]) if pages else ""

"""Starts a real Chromium, for tests, the demo and the command line's ``--browser``.

Out: a Playwright ``BrowserContext`` with a persistent profile (incognito ones, Playwright's
default, have a Cache Storage too small for a model). Knows nothing of models. Needs the extra
``browser``.

    python -m fanlight.runtime.chromium     prints the program that would be used
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from fanlight.errors import DeviceError, InputError, MissingDependencyError

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext, Playwright

# ``hardware``: the machine's GPU. ``swiftshader``: WebGPU on the CPU, bundled with Chromium, found
# in any container. ``none``: requestAdapter() gives null, as on machines without a usable GPU.
WebGpu = Literal["hardware", "swiftshader", "none"]

# First found wins: on PATH, then where installers put it.
PROGRAMS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/usr/bin/chromium",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
)
# Quiet: no calls home, no first-run pages.
BASE_FLAGS = (
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WEBGPU_FLAGS: dict[WebGpu, tuple[str, ...]] = {
    "hardware": ("--enable-unsafe-webgpu", "--enable-features=Vulkan"),
    "swiftshader": ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"),
    "none": ("--disable-features=WebGPU",),
}


def find(executable: str | Path | None = None) -> Path | None:
    """The program to run: ``executable`` if given, else the first known one, or None."""
    for candidate in [executable] if executable else PROGRAMS:
        found = shutil.which(str(candidate))
        if found:
            return Path(found)
    return None


def flags(webgpu: WebGpu = "swiftshader", *, sandbox: bool = True) -> list[str]:
    """Chromium's arguments. Raises InputError for an unknown ``webgpu``."""
    if webgpu not in WEBGPU_FLAGS:
        raise InputError("unknown webgpu", got=webgpu, wanted=", ".join(get_args(WebGpu)))
    return [*BASE_FLAGS, *WEBGPU_FLAGS[webgpu], *([] if sandbox else ["--no-sandbox"])]


@asynccontextmanager
async def launch(
    *,
    webgpu: WebGpu = "swiftshader",
    profile: Path | None = None,
    headless: bool = True,
    sandbox: bool | None = None,
    executable: str | Path | None = None,
    arguments: Sequence[str] = (),
) -> AsyncIterator[BrowserContext]:
    """A running browser; closed at the end.

    ``profile``: a folder that outlives the browser, so that a later one is a second visit; without
    it a temporary one. ``sandbox``: Chromium's own; by default on, except as root, where Chromium
    can't have it. ``executable``: a path or a name on PATH; by default a Chromium or Chrome of the
    system, else the one that ``playwright install chromium`` fetched. ``arguments`` are added to
    ``flags()``. Raises DeviceError when no browser is found or it doesn't start,
    MissingDependencyError without playwright.
    """
    sandbox = sandbox if sandbox is not None else not _is_root()
    given = [*flags(webgpu, sandbox=sandbox), *arguments]
    async with AsyncExitStack() as stack:
        playwright = await stack.enter_async_context(_playwright())
        program = _program(playwright, executable)
        folder = profile or Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="fanlight-", ignore_cleanup_errors=True)
            )
        )
        context = await _start(
            playwright,
            folder,
            executable_path=program,
            headless=headless,
            args=given,
            handle_sigint=False,  # Ctrl-C is the caller's, who may want to end an answer first
        )
        stack.push_async_callback(context.close)
        yield context


@asynccontextmanager
async def _playwright() -> AsyncIterator[Playwright]:
    try:
        from playwright.async_api import async_playwright
    except ImportError as error:
        raise MissingDependencyError(
            "driving a browser needs playwright", hint="pip install 'fanlight[browser]'"
        ) from error
    async with async_playwright() as playwright:
        yield playwright


def _program(playwright: Playwright, executable: str | Path | None) -> Path:
    found = find(executable)
    if found is None and executable is None:
        found = find(playwright.chromium.executable_path)
    if found is None:
        raise DeviceError(
            "no Chromium found",
            where=str(executable or "PATH"),
            hint="Install Chromium or Chrome, or run: playwright install chromium",
        )
    return found


async def _start(playwright: Playwright, folder: Path, **options: Any) -> BrowserContext:
    from playwright.async_api import Error

    try:
        return await playwright.chromium.launch_persistent_context(folder, **options)
    except Error as error:
        raise DeviceError(
            "Chromium did not start", where=str(options["executable_path"]), got=error.message
        ) from error


def _is_root() -> bool:
    if sys.platform == "win32":
        return False
    import os

    return os.geteuid() == 0


def main() -> None:
    """Exit status 1 when there is no browser."""
    found = find()
    if found is None:
        sys.exit("no Chromium found")
    sys.stdout.write(f"{found}\n")


if __name__ == "__main__":
    main()

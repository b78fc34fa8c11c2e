"""Fixtures that any test may use: seeds, the test model, a real Chromium."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import models
import pytest

from fanlight.runtime import chromium as browser

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--seed``."""
    parser.addoption("--seed", type=int, help="repeat the random tests of an earlier run")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A fresh seed for ``random.Random`` or numpy; a failing test says how to repeat it."""
    given: int | None = request.config.getoption("--seed")
    value = random.SystemRandom().getrandbits(32) if given is None else given
    print(f"seed {value}: repeat with --seed {value}")
    return value


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, Q4_1, as published."""
    return model_file("smollm2")


def model_file(name: str) -> Path:
    """The file of a row of ``scripts/models.py``. Fails, never skips, where it is missing."""
    path = models.path(name)
    if not path.is_file():
        pytest.fail(f"{path} is missing. Run scripts/setup", pytrace=False)
    return path


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The event loop of async tests and fixtures; one for the session."""
    return "asyncio"


@pytest.fixture(scope="session")
async def chromium() -> AsyncIterator[BrowserContext]:
    """One headless Chromium with WebGPU on SwiftShader for all async tests. Close your pages.

    A test that needs other flags, another profile or an empty store starts its own with ``launch``.
    """
    async with browser.launch(webgpu="swiftshader") as context:
        yield context

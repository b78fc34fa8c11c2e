"""bench/gpu_chat: the folder is made, served, measured; the small model's logits are right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fanlight.runtime import chromium

pytestmark = pytest.mark.browser

SCRIPT = Path(__file__).parent.parent / "bench" / "gpu_chat.py"
VARIANT = "no barriers, f32 cache"  # what a CPU that plays a GPU compiles in seconds


@pytest.mark.timeout(300)
def test_a_tiny_model_is_measured(tmp_path: Path) -> None:
    common = ["--models", "tiny", "--variants", VARIANT]
    script, site = [sys.executable, str(SCRIPT)], str(tmp_path / "site")
    subprocess.run([*script, "site", site, *common], check=True)
    program = chromium.find()
    assert program is not None
    flags = ["--headless", *chromium.WEBGPU_FLAGS["swiftshader"]]
    command = [*script, "run", site, str(program), *common, "--repeats", "1"]
    said = subprocess.run([*command, *flags], check=True, capture_output=True, text=True).stdout
    found = json.loads(said.splitlines()[-1])
    assert found["check"][VARIANT]["right"], found["check"]
    row = found["models"]["tiny"][VARIANT]
    assert row["near_tok_s"] > 0
    assert row["per_token"]["passes"] == row["per_token"]["submits"] == 1 / 16
    assert row["per_token"]["bytes_read"] == 4
    assert row["per_token"]["objects_made"] == 0

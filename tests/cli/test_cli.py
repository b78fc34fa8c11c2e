"""The command line as a user runs it: a process, its output, its exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fanlight
from tests import gguf_files

QUESTION = "What is the capital of France?"


def arguments(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "fanlight.cli", *map(str, words)]


def run(*words: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments(*words), text=True, capture_output=True, check=False, timeout=timeout
    )


def ask(model: Path, prompt: str, *options: str) -> list[str | Path]:
    return ["run", "text-generation", "--model", model, prompt, *options]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    gguf_files.write(path, gguf_files.Model())
    return path


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"{fanlight.__version__}\n")


def test_an_answer(smollm2_gguf: Path) -> None:
    done = run(*ask(smollm2_gguf, QUESTION, "--device", "wasm", "--context", "256"))
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert done.stdout.endswith("\n")
    assert "tokens/s" in done.stderr  # numbers don't mix with the answer


def test_a_limit(tiny: Path) -> None:
    done = run(*ask(tiny, "the", "--device", "wasm", "--max-new-tokens", "3"))
    assert done.returncode == 0, done.stderr
    assert "3 written, cut at the limit" in done.stderr


@pytest.mark.browser
def test_the_same_answer_in_a_browser(tiny: Path) -> None:
    options = ("--device", "wasm", "--max-new-tokens", "20")
    here, there = run(*ask(tiny, "the", *options)), run(*ask(tiny, "the", "--browser", *options))
    assert there.returncode == 0, there.stderr
    assert there.stdout == here.stdout
    assert "in Chromium" in there.stderr


@pytest.mark.browser
def test_a_browser_s_error_is_one_message(tmp_path: Path) -> None:
    noise = tmp_path / "noise.gguf"
    noise.write_bytes(bytes(range(256)) * 100)
    done = run(*ask(noise, "hi", "--browser"))
    assert done.returncode == 1
    assert "GGUF" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("browser", [False, pytest.param(True, marks=pytest.mark.browser)])
def test_ctrl_c_ends_the_answer(smollm2_gguf: Path, browser: bool) -> None:
    """As a terminal does it: to the whole process group."""
    options = ("--device", "wasm", *(["--browser"] if browser else []))
    words = ask(smollm2_gguf, "Write a long story about the sea.", *options)
    process = subprocess.Popen(
        arguments(*words),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    first = process.stdout.read(10)  # it answers
    os.killpg(process.pid, signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "stopped" in errors
    assert "Traceback" not in errors
    assert (first + rest).endswith("\n")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_before_the_answer(smollm2_gguf: Path) -> None:
    process = subprocess.Popen(
        arguments(*ask(smollm2_gguf, "Hi", "--device", "wasm")),
        text=True,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    time.sleep(1)  # somewhere in the compiler or the loader
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["run", "text-generation", "--model", "/no/such.gguf", "hi"], 1, "/no/such.gguf"),
        (["run", "text-generation", "--model", "/no/such.gguf", "hi", "--browser"], 1, "such.gguf"),
        (["inspect", "/no/such.gguf"], 1, "/no/such.gguf"),
        (["run", "fortune-telling", "--model", "/no/such.gguf", "hi"], 2, "text-generation"),
        (["run", "text-generation", "hi"], 2, "--model"),
        (["run", "text-generation", "--model", "x", "hi", "--device", "tpu"], 2, "wasm"),
        (
            ["run", "text-generation", "--model", "x", "hi", "--max-new-tokens", "0"],
            2,
            "equal to 1",
        ),
    ],
)
def test_errors(words: list[str], status: int, message: str) -> None:
    done = run(*words)
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_missing_extra_is_named() -> None:
    """Where typer is not installed; ``-S`` leaves out all installed packages."""
    code = "import sys; sys.path.insert(0, '.'); from fanlight.cli import main; main()"
    root = Path(fanlight.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], text=True, capture_output=True, check=False, cwd=root
    )
    assert done.returncode == 1
    assert 'pip install "fanlight[cli]"' in done.stderr
    assert "Traceback" not in done.stderr


# --- inspect


def test_inspect_json(smollm2_gguf: Path) -> None:
    done = run("inspect", smollm2_gguf, "--json", "--context", "512")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["architecture"] == "llama"
    assert found["config"]["block_count"] == 30
    assert found["parameters"] == 134_515_008
    assert found["dtypes"]["q4_1"]["tensors"] == 210
    assert sum(row["count"] for row in found["tensors"]) == 272
    assert found["tokenizer"] == {"model": "gpt2", "pre": "smollm", "tokens": 49152}
    assert found["chat_template"] is True
    for target in ("webgpu", "wasm"):
        memory = found["memory"][target]
        assert memory["context"] == 512
        assert memory["kv_cache"] == 30 * 2 * 512 * 192 * 4
        parts = ("weights", "kv_cache", "states", "arena", "other")
        assert sum(memory[part] for part in parts) == memory["total"]


def test_inspect_for_people(tiny: Path) -> None:
    done = run("inspect", tiny)
    assert done.returncode == 0, done.stderr
    for words in ("blk.*.attn_q.weight", "q8_0", "chat template", "webgpu", "wasm"):
        assert words in done.stdout


def test_inspect_a_model_that_can_not_run(tmp_path: Path) -> None:
    path = tmp_path / "strange.gguf"
    gguf_files.write(path, gguf_files.Model(arch="mamba"))
    done = run("inspect", path)
    assert done.returncode == 0, done.stderr
    assert "can't run it" in done.stdout
    assert "mamba" in done.stdout

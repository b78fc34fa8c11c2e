"""Broken ONNX files end in a typed error, within a second and 256 MB of memory. Every case has a
seed, which a failure names: ``python -m tests.formats.onnx_mutants SEED 1 FILE…`` repeats it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import onnx_files
from tests.conftest import model_file

SECONDS = 1.0
WORKERS = 2
ROOT = Path(__file__).parents[2]
KINDS = {"FormatError", "TruncatedError", "UnsupportedError", "read"}


def _work(first: int, count: int, files: list[Path]) -> dict[str, int]:
    command = [sys.executable, "-m", "tests.formats.onnx_mutants", str(first), str(count)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *map(str, files)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"seeds {first} … {first + count - 1}: {done.stderr[-3000:]}"
    report = json.loads(done.stdout)
    assert report["failure"] is None, report["failure"][-3000:]
    seconds, seed = report["slowest"]
    assert seconds < SECONDS, f"seed {seed} took {seconds:.2f} s"
    outcomes: dict[str, int] = report["outcomes"]
    assert sum(outcomes.values()) == count
    return outcomes


def _fuzz(folder: Path, first: int, count: int) -> dict[str, int]:
    """How ``count`` mutants end: of a small model with everything, and of a real one."""
    small = folder / "everything.onnx"
    small.write_bytes(onnx_files.everything().SerializeToString())
    files = [small, small, model_file("minilm")]
    share = count // WORKERS
    with ThreadPoolExecutor(WORKERS) as pool:
        found = list(pool.map(lambda i: _work(first + i * share, share, files), range(WORKERS)))
    outcomes = {kind: sum(part.get(kind, 0) for part in found) for kind in KINDS}
    print(f"seeds {first} … {first + count - 1}: {outcomes}")
    return outcomes


def test_mutants(tmp_path: Path) -> None:
    assert all(_fuzz(tmp_path, 0, 2000).values())


def test_mutants_afresh(tmp_path: Path, seed: int) -> None:
    """Others at each run; ``--seed`` repeats them."""
    _fuzz(tmp_path, seed, 1000)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_mutants(tmp_path: Path) -> None:
    assert all(_fuzz(tmp_path, 1 << 32, 100_000).values())

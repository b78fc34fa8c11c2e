"""Operators against ONNX's own node cases: some on each backend here, all in ``--full`` runs."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from tests.conformance import cases
from tests.conformance.operators import page
from tests.conformance.pool import run
from tests.conformance.run import outcome

#: backend → the least that must pass of all cases that count
WANTED = {"interpreter": 0.89, "wasm": 0.88, "webgpu": 0.87}
_SAMPLE = 120


@cache
def _sample() -> tuple[cases.Case, ...]:
    """Of all subjects, the same each time."""
    names = set(random.Random(4).sample(cases.names(), _SAMPLE))
    return tuple(case for case in cases.cases() if case.name in names)


@pytest.mark.parametrize("backend", WANTED)
def test_a_sample_of_cases(backend: str) -> None:
    """What can be imported is right, but for what the conformance run lists."""
    found = {case.name: outcome(case, backend) for case in _sample()}
    failed = {name: why for name, (kind, why) in found.items() if kind == "failed"}
    counts = Counter(kind for kind, _ in found.values())
    print(f"{backend}: {dict(counts)}")
    assert not {name for name in failed if "bf16" not in name and "fp16" not in name}, failed
    assert counts["passed"] + counts["approximated"] >= 0.8 * _SAMPLE


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("backend", WANTED)
def test_all_cases(backend: str) -> None:
    names = cases.names()
    assert len(names) >= 1800
    counts = Counter(kind for _, kind, _ in run(backend, names, 2))
    print(f"{backend}: {dict(counts)}")
    assert counts["passed"] >= WANTED[backend] * len(names)


def test_the_page_of_operators_is_as_the_table_says() -> None:
    path = Path(__file__).parent.parent.parent / "docs" / "operators.md"
    assert path.read_text() == page(), "run scripts/operators"

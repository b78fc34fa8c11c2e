"""The runs in Chromium: what counts as what, and that one bad case costs itself alone."""

from __future__ import annotations

import pytest

from fanlight.server.serving import serving
from tests.conformance import browser
from tests.conformance.cases import cases

pytestmark = pytest.mark.browser
SMALL = "test_castlike_UINT2_to_UINT8"  # JavaScript's tensors of onnxruntime have no uint2
NAMES = ["test_add", "test_relu", "test_qlinearmatmul_2D_uint8_float32", SMALL]


@pytest.mark.parametrize("backend", browser.BACKENDS)
def test_outcomes(backend: str) -> None:
    found = {name: kind for name, kind, _ in browser.run(backend, NAMES)}
    theirs = {SMALL: "unsupported"} if backend.startswith("ort") else {}
    assert found == dict.fromkeys(NAMES, "passed") | theirs


def test_what_other_devices_allow() -> None:
    """SwiftShader's log of zero is finite and its maximum flushes subnormal numbers; Chromium's
    compiler takes no division by a constant zero, as of a tensor without elements."""
    names = [
        "test_reduce_log_sum_empty_set",
        "test_cast_e8m0_FLOAT_to_FLOAT8E8M0",
        "test_tril_zero",
        "test_reduce_sum_empty_set_non_reduced_axis_zero",
    ]
    found = {name: kind for name, kind, _ in browser.run("chromium-webgpu", names)}
    assert found == dict.fromkeys(names, "passed")


async def test_bad_cases_cost_themselves_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that never ends, one that leaves the page, and errors on a fresh and on a used page."""
    monkeypatch.setattr(browser, "SECONDS", 5.0)
    case = next(case for case in cases("test_relu") if case.name == "test_relu")
    failing = "async () => ({ error: { stage: 'run', code: 'Error', message: 'no' } })"
    with serving(browser.app()) as base:
        async with browser.Lab(base, "chromium-wasm") as lab:
            for run in (
                "() => new Promise(() => {})",
                "() => { location.reload(); return new Promise(() => {}); }",
                failing,
            ):
                await lab.fresh_page()
                await _spoil(lab, run)
                assert (await lab.outcome(case))[0] == "failed"
                assert await lab.outcome(case) == ("passed", "")
            await _spoil(lab, failing)
            assert await lab.outcome(case) == ("passed", "")


async def _spoil(lab: browser.Lab, run: str) -> None:
    """The page's next cases go to ``run`` instead."""
    assert lab.page is not None
    await lab.page.evaluate(f"() => {{ engine.run = {run}; }}")

"""Both readers of the plan take the same files and refuse the same files."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fanlight import errors, plan, shapes
from fanlight.errors import PlanError
from tests import plan_cases

WEB = Path(__file__).parents[2] / "fanlight" / "web"
pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="no node here")

# Both take one item a line and print one JSON value for each.
READ = """
import { toMessage } from 'WEB/errors.js';
import { readPlan } from 'WEB/plan.js';
const read = (line) => {
  try {
    readPlan(Uint8Array.from(Buffer.from(line, 'base64')));
    return null;
  } catch (error) {
    return toMessage(error);
  }
};
"""
SIZES = """
import { evaluate } from 'WEB/sizes.js';
const map = (object) => new Map(Object.entries(object));
const read = (line) => {
  const { size, values, maxima } = JSON.parse(line);
  return evaluate(size, map(values), map(maxima));
};
"""
LINES = """
import { createInterface } from 'node:readline';
for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(read(line)));
}
"""


def node(program: str, lines: list[str]) -> list[Any]:
    """The JSON values that ``program`` makes of ``lines``."""
    command = ["node", "--no-warnings", "--input-type=module", "-e"]
    done = subprocess.run(
        [*command, program.replace("WEB", WEB.as_uri()) + LINES],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def javascript(plans: list[bytes]) -> list[dict[str, str] | None]:
    """What plan.js says of each: None, or the error's message."""
    return node(READ, [base64.b64encode(data).decode() for data in plans])


def python(data: bytes) -> PlanError | None:
    try:
        plan.decode(data)
    except PlanError as error:
        return error
    return None


def test_cases() -> None:
    cases = list(plan_cases.cases())
    wrong = []
    for case, error in zip(cases, javascript([c.data for c in cases]), strict=True):
        if (error is None) != case.good or (error and error["code"] != "PlanError"):
            wrong.append(f"plan.js, {case.name}: {error}")
        seen = python(case.data)
        if (seen is None) != case.good:
            wrong.append(f"plan, {case.name}: {seen}")
    assert not wrong, "\n".join(wrong)


def test_random_mutations() -> None:
    """Both readers take the same plans, and fail with a PlanError only."""
    seed = 20261122
    data = list(plan_cases.random_cases(seed, 2000))
    wrong = []
    for number, (one, error) in enumerate(zip(data, javascript(data), strict=True)):
        seen = python(one)
        if (seen is None) != (error is None):
            wrong.append(f"seed {seed}, number {number}: plan.js {error}, plan {seen}")
        if error and error["code"] != "PlanError":
            wrong.append(f"seed {seed}, number {number}: {error}")
    assert not wrong, "\n".join(wrong)


def test_the_same_error_names() -> None:
    text = (WEB / "errors.js").read_text()
    names = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.FanlightError)
    }
    assert {n for n in names if f"export class {n} " not in text} == set()


def test_sizes() -> None:
    n, m = shapes.Dim("n", "host", 7), shapes.Dim("m", "host", 3)
    dims = {"n": n, "m": m}
    sizes: list[Any] = ["n", 5]
    sizes += [[op, a, b] for op in shapes.OPS for a in ("n", ["-", "m", 9]) for b in ("m", 2, -2)]
    values = [{}, {"n": 10}, {"n": 4, "m": 5}]
    lines = [
        json.dumps({"size": s, "values": v, "maxima": {"n": 7, "m": 3}})
        for s in sizes
        for v in values
    ]
    wanted = [shapes.evaluate(shapes.from_json(s, dims), v) for s in sizes for v in values]
    assert node(SIZES, lines) == wanted

"""``scripts/conformance``: ONNX's node cases on our backends; the last line is JSON.

    scripts/conformance [--backend NAME …] [--browser] [--only PATTERN] [--failures] [--workers N]

``--browser``: in Chromium, on both executors there and on onnxruntime-web (``browser.py``).

``total`` counts every case that is not left out (``--left-out`` lists those, with the reason).
A case passes if all outputs have the case's dtypes, shapes and numbers; one with 64-bit floats
where the target computes in 32 bits is ``approximated``. Nothing falls back to another backend.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from typing import Any

from tests.conformance import browser, cases
from tests.conformance.pool import run
from tests.conformance.run import BACKENDS


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/conformance", description=__doc__)
    parser.add_argument("--backend", action="append", choices=(*BACKENDS, *browser.BACKENDS))
    parser.add_argument("--browser", action="store_true", help="all backends of the browser")
    parser.add_argument("--only", default="", help="cases whose names contain this")
    parser.add_argument("--failures", action="store_true", help="say what is wrong with each")
    parser.add_argument("--left-out", action="store_true", help="list cases that don't count")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    if options.left_out:
        for name, reason in cases.left_out().items():
            print(f"{name}: {reason}")
    names = [name for name in cases.names() if options.only in name]
    result: dict[str, Any] = {}
    wanted = [*(options.backend or []), *(browser.BACKENDS if options.browser else ())]
    for backend in wanted or BACKENDS:
        if backend in browser.BACKENDS:
            done = browser.run(backend, names)
        else:
            done = run(backend, names, options.workers)
        counts = Counter(kind for _, kind, _ in done)
        kinds = ("passed", "approximated", "failed", "unsupported")
        result[backend] = {kind: counts[kind] for kind in kinds} | {"total": len(done)}
        if options.failures:
            for name, kind, why in sorted(done):
                if kind in ("failed", "unsupported"):
                    print(f"{backend} {kind} {name}: {why[:300]}")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

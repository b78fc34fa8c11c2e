"""Cases in worker processes, so that one that crashes costs itself alone."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from tests.conformance import cases
from tests.conformance.run import outcome

_GROUP = 25


def _group(backend: str, names: list[str]) -> list[tuple[str, str, str]]:
    found = {case.name: case for case in cases.cases()} if len(names) > 1 else {}
    out = []
    for name in names:
        case = found.get(name) or next(c for c in cases.cases(name) if c.name == name)
        out.append((name, *outcome(case, backend)))
    return out


def run(backend: str, names: list[str], workers: int) -> list[tuple[str, str, str]]:
    """(name, outcome, why) of each; a process that dies costs the case that it ran."""
    done: list[tuple[str, str, str]] = []
    groups = [names[i : i + _GROUP] for i in range(0, len(names), _GROUP)]
    context = multiprocessing.get_context("spawn")
    while groups:
        again: list[list[str]] = []
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            running = [(group, pool.submit(_group, backend, group)) for group in groups]
            for group, future in running:
                try:
                    done += future.result()
                except BrokenProcessPool:
                    if len(group) == 1:
                        done.append((group[0], "failed", "the process died"))
                    else:
                        again += [[name] for name in group]
        groups = again
    return done

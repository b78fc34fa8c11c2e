"""Barriers and the order of launches: random programs, run by threads that take random turns."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from fanlight.codegen.wasm import order
from fanlight.codegen.wasm.order import Access, Pending, access_of
from fanlight.kernels.launch import WasmKernel, WasmLaunch
from fanlight.kernels.schedule import by_depth
from fanlight.plan import Dispatch
from fanlight.shapes import Dim

NAMES = "abcdef"
SIZE = 4
Memory = dict[str, list[int]]


def _access(rng: random.Random) -> Access:
    output = rng.choice(NAMES)
    inputs = rng.sample(NAMES, rng.randint(1, 2))
    repeated = rng.random() < 0.5 and output not in inputs
    return Access(frozenset(inputs), frozenset(output), repeated=repeated)


def _barriers(steps: list[Access]) -> list[bool]:
    """Before which steps all threads meet."""
    pending, out = Pending(), []
    for step in steps:
        out.append(pending.conflicts(step))
        if out[-1]:
            pending.clear()
        pending.add(step)
    return out


def _thread(steps: list[Access], tid: int, threads: int, memory: Memory) -> Iterator[int]:
    """Does its share of each step, element by element; yields the step's number at each turn."""
    for number, step in enumerate(steps):
        (output,) = step.writes
        in_place = output in step.reads
        for i in range(0 if step.repeated else tid, SIZE, 1 if step.repeated else threads):
            yield number
            total = 0
            for name in sorted(step.reads):
                total += sum(memory[name]) if name != output else memory[name][i]
            yield number
            memory[output][i] = (31 * total + 7 * i + number + in_place) % 10007
    yield len(steps)


def _run(steps: list[Access], barriers: list[bool], threads: int, rng: random.Random) -> Memory:
    memory = {name: [10 * ord(name) + i for i in range(SIZE)] for name in NAMES}
    runs = [_thread(steps, tid, threads, memory) for tid in range(threads)]
    at = [next(run) for run in runs]
    while min(at) < len(steps):
        phases = [sum(barriers[: n + 1]) for n in at]
        ready = [t for t in range(threads) if at[t] < len(steps) and phases[t] == min(phases)]
        tid = rng.choice(ready)
        for _ in range(rng.choice((1, 1, 3, 30))):  # a turn may be long: threads run far ahead
            if at[tid] == len(steps) or sum(barriers[: at[tid] + 1]) > min(phases):
                break
            at[tid] = next(runs[tid])
    return memory


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_that_meet_there_agree_with_one(threads: int) -> None:
    saved = 0
    for seed in range(300):
        rng = random.Random(seed)
        steps = [_access(rng) for _ in range(8)]
        barriers = _barriers(steps)
        saved += 7 - sum(barriers)
        wanted = _run(steps, barriers, 1, rng)
        for _ in range(4):
            assert _run(steps, barriers, threads, rng) == wanted, seed
    assert saved > 300


@pytest.mark.parametrize("missing", ["reads", "shared", "repeated"])
def test_a_forgotten_conflict_fails(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Pending.add

    def forgetful(self: Pending, step: Access) -> None:
        real(self, step)
        getattr(self, missing).clear()

    monkeypatch.setattr(Pending, "add", forgetful)
    with pytest.raises(AssertionError):
        test_threads_that_meet_there_agree_with_one(2)


def test_scratch() -> None:
    first = Access(frozenset("a"), frozenset("b"), (("s", 64),))
    alike = Access(frozenset("a"), frozenset("c"), (("s", 64),))
    pending = Pending()
    pending.add(first)
    assert pending and not pending.conflicts(alike)
    assert pending.conflicts(replace(alike, scratch=(("s", 128),)))
    assert pending.conflicts(Access(frozenset("s"), frozenset("d")))
    assert pending.conflicts(Access(frozenset(), frozenset("s")))
    assert pending.conflicts(replace(alike, scratch=(("b", 64),)))
    pending.clear()
    assert not pending


AT, ROWS = Dim("at", "device", 9), Dim("rows", "host", 9)


def test_what_a_dispatch_touches() -> None:
    plain = WasmKernel("plain", 2, 0, lambda f: None)
    both = frozenset({"x", "y"})
    assert access_of(Dispatch(0, ("x", "y")), plain, frozenset("d")) == Access(both | {"d"}, both)
    norm = WasmKernel("norm", 2, 1, lambda f: None, (1,), elements=lambda a: a[0] * 64)
    made = access_of(Dispatch(0, ("x", "y"), args=(2,)), norm, frozenset())
    assert made == Access(frozenset("x"), frozenset("y"), repeated=True)
    for buffers, rows in ((("x", "y"), ROWS), (("x", "y"), order.REPEATED), (("x", "x"), 2)):
        assert not access_of(Dispatch(0, buffers, args=(rows,)), norm, frozenset()).repeated
    product = WasmKernel("product", 3, 0, lambda f: None, (1,), 64)
    made = access_of(Dispatch(0, ("x", "y", "s")), product, frozenset())
    assert made == Access(frozenset("x"), frozenset("y"), (("s", 64),))


def _launch(name: str, buffers: str, writes: tuple[int, ...] | None = None) -> WasmLaunch:
    writes = (len(buffers) - 1,) if writes is None else writes
    return WasmLaunch(WasmKernel(name, len(buffers), 0, lambda f: None, writes), tuple(buffers))


def test_by_depth() -> None:
    """Products and what follows each, as a layer's graph gives them."""
    launches = [
        _launch("norm", "xn"),
        _launch("k", "nk"),
        _launch("store k", "kK"),
        _launch("q", "nq"),
        _launch("rope q", "qr"),
        _launch("attention", "rKo"),
        _launch("next x", "ox"),  # reads before it must not see it
    ]
    names = [launch.kernel.name for launch in by_depth(launches, {})]
    wanted = ["norm", "k", "q", "store k", "rope q", "attention", "next x"]
    assert names == wanted


def test_a_launch_that_reads_a_dim_stays_on_its_side_of_the_write() -> None:
    before = WasmLaunch(WasmKernel("before", 2, 1, lambda f: None, (1,)), ("x", "y"), (AT,))
    moves = _launch("moves", "zd")
    after = WasmLaunch(WasmKernel("after", 2, 1, lambda f: None, (1,)), ("u", "v"), (AT,))
    launches = [_launch("first", "wx"), before, moves, after]
    names = [launch.kernel.name for launch in by_depth(launches, {"at": "d"})]
    assert names == ["first", "before", "moves", "after"]
    free = [launch.kernel.name for launch in by_depth(launches, {})]
    assert free == ["first", "moves", "after", "before"]


def test_random_orders_are_right() -> None:
    """One thread gets the same from launches in either order."""
    moved = 0
    for seed in range(200):
        rng = random.Random(seed)
        steps = [_access(rng) for _ in range(8)]
        launches = [
            _launch(str(i), "".join(sorted(s.reads - s.writes)) + "".join(s.writes))
            for i, s in enumerate(steps)
        ]
        steps = [replace(s, reads=s.reads - s.writes) for s in steps]
        order_ = [int(launch.kernel.name) for launch in by_depth(launches, {})]
        moved += order_ != sorted(order_)
        assert _in_order(steps, range(8)) == _in_order(steps, order_), seed
    assert moved > 50


def _in_order(steps: list[Access], numbers: object) -> Memory:
    memory = {name: [ord(name)] for name in NAMES}
    assert isinstance(numbers, list | range)
    for number in numbers:
        (output,) = steps[number].writes
        total = sum(memory[name][0] for name in steps[number].reads)
        memory[output] = [(31 * total + number) % 10007]
    return memory

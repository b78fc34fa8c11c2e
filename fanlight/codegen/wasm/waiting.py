"""How threads wait for a word of memory to change: by spinning for a while, then sleeping.

One word, at ``SLEEPERS``, counts those that sleep: waking, which is dear, is left out where nobody
does.
"""

from __future__ import annotations

from fanlight.codegen.wasm.encoder import Function, Label

SLEEPERS = 256
_SPINS = 200000


def add(f: Function, at: int, value: int) -> None:
    """Atomically; leaves the old value."""
    f.i32(0)
    f.i32(value)
    f.mem("i32.atomic.rmw.add", at)


def notify(f: Function, at: int) -> None:
    """Wakes sleepers, if there are any: the call is dear."""
    f.i32(0)
    f.mem("i32.atomic.load", SLEEPERS)
    with f.if_():
        f.i32(0)
        f.i32(-1)
        f.mem("memory.atomic.notify", at)
        f.op("drop")


def wait_until_changed(f: Function, at: int, seen: int) -> None:
    """Returns when the word at ``at`` differs from local ``seen``: spins, then sleeps."""
    spins = f.local("i32")
    f.i32(_SPINS)
    f.set(spins)
    with f.block() as out:
        with f.block() as tired, f.loop() as again:
            _leave_if_changed(f, at, seen, out)
            f.get(spins)
            f.i32(1)
            f.op("i32.sub")
            f.tee(spins)
            f.op("i32.eqz")
            f.br_if(tired)
            f.br(again)
        # The counter is raised before the word is looked at again, and the waker changes the word
        # before it looks at the counter (all sequentially consistent): one of the two sees the
        # other.
        add(f, SLEEPERS, 1)
        f.op("drop")
        with f.block() as awake, f.loop() as again:
            _leave_if_changed(f, at, seen, awake)
            f.i32(0)
            f.get(seen)
            f.i64(-1)
            f.mem("memory.atomic.wait32", at)
            f.op("drop")
            f.br(again)
        add(f, SLEEPERS, -1)
        f.op("drop")


def _leave_if_changed(f: Function, at: int, seen: int, label: Label) -> None:
    f.i32(0)
    f.mem("i32.atomic.load", at)
    f.get(seen)
    f.op("i32.ne")
    f.br_if(label)

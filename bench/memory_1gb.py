"""What loading a 1 GB model costs beyond the model itself: the demo's ``mem_peak_mb``.

    scripts/bench memory_1gb [--megabytes 1000] [--backend webgpu|wasm] [--visits 2] [--limit 64]

Writes a GGUF file of random weights (Q4_1 matrices, Q8_0 embedding) to a temporary folder, loads it
in Chromium, on both backends; the answer is one token. Exit status 1 where a run costs
more than ``--limit`` MB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fanlight.bench.demo import measure, table
from fanlight.bench.visit import BACKENDS
from tests import gguf_files

_HIDDEN, _FFN, _VOCAB = 2048, 8192, 32768
_CONTEXT = 256  # a KV cache that is never touched would hide what loading costs


def model_of(megabytes: int) -> gguf_files.Model:
    """A model of about that size: as many layers as it takes."""
    q4_1 = 20 / 32
    layer = (_HIDDEN * _HIDDEN * 2 + _HIDDEN * 512 * 2 + 3 * _HIDDEN * _FFN) * q4_1
    rest = _HIDDEN * _VOCAB * 34 / 32
    return gguf_files.Model(
        layers=max(1, round((megabytes * 1e6 - rest) / layer)),
        hidden=_HIDDEN,
        heads=32,
        kv_heads=8,
        ffn=_FFN,
        vocab=_VOCAB,
        context=1024,
        types={"blk.*": "q4_1"},
    )


def main() -> int:
    """The command line above; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--backend", choices=BACKENDS)
    parser.add_argument("--visits", type=int, default=2)
    parser.add_argument("--limit", type=float, default=64.0, help="MB")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fanlight-1gb-") as folder:
        path = Path(folder) / "random.gguf"
        gguf_files.write(path, model_of(given.megabytes))
        print(f"{path.stat().st_size / 1e6:.0f} MB of random weights")
        backends = (given.backend,) if given.backend else BACKENDS
        made = measure(
            path,
            "Hello",
            backends=backends,
            visits=given.visits,
            max_new_tokens=1,
            context=_CONTEXT,
        )
        report = asyncio.run(made)
    print(table(report))
    print(json.dumps(report))
    costs = [row["mem_peak_mb"] for row in report["runs"]]
    return int(any(cost is None or cost > given.limit for cost in costs))


if __name__ == "__main__":
    sys.exit(main())

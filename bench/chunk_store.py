"""Where chunks of a model are kept: Cache Storage beside the origin's private file system.

    scripts/bench chunk_store [--megabytes 256] [--rounds 5]

A worker in Chromium writes and reads chunks of 4 MB, in turns; reads go into memory that is used
again. MB/s (10^6 bytes) are medians of the rounds, ``mb`` the renderers' PSS at the peak less that
before, over all rounds. The last line is JSON; the ratios are private file system over Cache
Storage.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fanlight.bench.memory import PssSampler
from fanlight.runtime import chromium
from fanlight.server.serving import serving

CHUNK = 4 << 20
MEDIA = ("cache_storage", "private_files")
ACTIONS = ("write", "read")

WORKER = """
const CHUNK = 4 << 20;
let memory = new Uint8Array(CHUNK).map((_, i) => i * 31);
const media = {
  cache_storage: {
    async write(n) {
      await (await caches.open('bench')).put(`/${n}`, new Response(memory));
    },
    async read(n) {
      const { body } = await (await caches.open('bench')).match(`/${n}`);
      const reader = body.getReader({ mode: 'byob' });
      for (let filled = 0; filled < CHUNK;) {
        const { value } = await reader.read(new Uint8Array(memory.buffer, filled, CHUNK - filled));
        filled += value.length;
        memory = new Uint8Array(value.buffer);
      }
      await reader.cancel();
    },
  },
  private_files: {
    async open(n, mode) {
      const root = await navigator.storage.getDirectory();
      const file = await root.getFileHandle(`${n}`, { create: true });
      return file.createSyncAccessHandle({ mode });
    },
    async write(n) {
      const file = await this.open(n, 'readwrite');
      file.write(memory, { at: 0 });
      file.close();
    },
    async read(n) {
      const file = await this.open(n, 'read-only');
      file.read(memory, { at: 0 });
      file.close();
    },
  },
};
onmessage = async ({ data: [medium, action, count] }) => {
  const begin = performance.now();
  for (let n = 0; n < count; n++) await media[medium][action](n);
  postMessage(performance.now() - begin);
};
"""

PAGE = """<!doctype html><title>bench</title><script>
const worker = new Worker('/worker.js');
const run = (...job) => new Promise((resolve) => {
  worker.onmessage = ({ data }) => resolve(data);
  worker.postMessage(job);
});
</script>"""


async def measure(base: str, profile: Path, count: int, rounds: int) -> dict[str, Any]:
    """The report: MB/s, MB of memory and the ratios."""
    times: dict[str, list[float]] = {f"{m}_{a}": [] for m in MEDIA for a in ACTIONS}
    memory: dict[str, list[float]] = {m: [] for m in MEDIA}
    async with chromium.launch(webgpu="none", profile=profile) as context:
        page = context.pages[0] if context.pages else await context.new_page()
        await page.goto(base)
        for number in range(rounds):
            for medium in MEDIA[:: 1 if number % 2 == 0 else -1]:
                sampler = PssSampler(profile)
                before = await asyncio.to_thread(sampler.settled, 1.0)
                with sampler.sampling():
                    for action in ACTIONS:
                        ms = await page.evaluate("(job) => run(...job)", [medium, action, count])
                        times[f"{medium}_{action}"].append(count * CHUNK / 1e3 / ms)
                if before is not None and sampler.peak is not None:
                    memory[medium].append((sampler.peak - before) / 1e6)
                print(f"round {number + 1}: {medium}", flush=True)
    figures = {f"{key}_mb_s": round(statistics.median(rates)) for key, rates in times.items()}
    ratios = {
        action: round(
            figures[f"private_files_{action}_mb_s"] / figures[f"cache_storage_{action}_mb_s"], 2
        )
        for action in ACTIONS
    }
    figures |= {f"{key}_mb": round(max(peaks), 1) for key, peaks in memory.items() if peaks}
    return {"ratios": ratios, "figures": figures, "megabytes": count * CHUNK / 1e6}


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()

    def page(_: Request) -> Response:
        return Response(PAGE, media_type="text/html")

    def worker(_: Request) -> Response:
        return Response(WORKER, media_type="text/javascript")

    app = Starlette(routes=[Route("/", page), Route("/worker.js", worker)])
    with serving(app) as base, tempfile.TemporaryDirectory(prefix="fanlight-store-") as folder:
        count = max(1, given.megabytes * 10**6 // CHUNK)
        print(json.dumps(asyncio.run(measure(base, Path(folder), count, given.rounds))))


if __name__ == "__main__":
    main()

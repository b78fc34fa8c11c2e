"""Decode and prefill of language models on a GPU in a real Chromium: speed, calls, profile, floor.

    python bench/gpu_chat.py site FOLDER [--models A;B] [--variants A;B] [--tune]
        makes the folder: page, executor, plans (needs the project's environment); --tune: the
        first variant with other tiles, in place of all variants
    python3 bench/gpu_chat.py run FOLDER CHROME [--models …] [--variants …] [FLAGS …]
        serves it, opens CHROME with FLAGS, prints tables; the standard library is enough

A share of the floor is the time in which the device reads the step's bytes at its measured rate,
over the step's time. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.remove(str(Path(__file__).resolve().parent))  # onnx.py there is no package
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import gpu_page


def show(found: dict[str, Any]) -> None:
    """Tables for people."""
    print("\nlogits against the reference, over decode steps")
    for variant, row in found.get("check", {}).items():
        said = row.get("error") or f"NMSE {row['nmse']:.1e} (bound {row['bound']:.0e})"
        print(f"  {variant:24} {said}")
    for model, variants in found.get("models", {}).items():
        for variant, row in variants.items():
            print(f"\n{model}, {variant}")
            if "error" in row:
                print(f"  {row['error']}")
                continue
            for name in ("near", "far"):
                print(
                    f"  decode at {row[f'{name}_position']:5}: {row[f'{name}_tok_s']:8.1f} tokens/s"
                    f" (best {row[f'{name}_best_tok_s']:.1f}), {row[f'{name}_floor_share']:.1%} of"
                    f" the floor at {row['read_GBps']:.0f} GB/s; {row[f'{name}_tokens']}"
                )
            print(f"  prefill of {row['prefill_tokens']}: {row['prefill_tok_s']:.0f} tokens/s")
            print(
                f"  {row['dispatches_per_layer']} dispatches a layer; per token: "
                + ", ".join(f"{key} {value:.3f}" for key, value in row["per_token"].items())
                + f"; {row['submit_ms']:.1f} ms a submit; {row['kernels']} kernels,"
                f" loaded in {row['load_ms']:.0f} ms, {row['resident_mb']:.0f} MB"
            )
            for kernel in row["profile"] or []:
                print(
                    f"    {kernel['kernel']:18} {kernel['of']:26}"
                    f" {kernel['dispatches']:4} x {kernel['us']:8.2f} us"
                    f" = {kernel['total_us']:8.1f} us, {kernel['GBps']:7.1f} GB/s"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    site, run = commands.add_parser("site"), commands.add_parser("run")
    for command in (site, run):
        command.add_argument("folder", type=Path)
        command.add_argument("--models", help="names, between them ;")
        command.add_argument("--variants", help="names, between them ;")
    site.add_argument("--tune", action="store_true")
    run.add_argument("chrome")
    run.add_argument("--repeats", type=int, default=5)
    run.add_argument("--limit", type=float, default=540.0, help="seconds")
    args, flags = parser.parse_known_args()
    if args.command == "site":
        if flags:
            parser.error(f"unknown arguments: {' '.join(flags)}")
        from bench import gpu_chat_site

        models = args.models.split(";") if args.models else ["SmolLM2-135M", "Llama-3.2-1B"]
        variants = args.variants.split(";") if args.variants else list(gpu_chat_site.VARIANTS)
        if args.tune:
            variants = [variants[0], *gpu_chat_site.TILES]
        gpu_chat_site.build(args.folder, models, variants)
        return
    query = {k: v for k in ("models", "variants") if (v := getattr(args, k)) is not None}
    query["repeats"] = str(args.repeats)
    began = time.time()
    found = gpu_page.visit(args.folder, "gpu_chat.html", args.chrome, query, flags, args.limit)
    show(found)
    print(f"{time.time() - began:.0f} s, Python {sys.version.split()[0]}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()

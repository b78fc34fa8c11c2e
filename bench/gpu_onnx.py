"""ONNX models on a GPU in a real Chromium, beside onnxruntime-web's WebGPU.

    python bench/gpu_onnx.py site FOLDER [--models A,B]
        makes the folder: page, both engines, models (needs the project's environment)
    python3 bench/gpu_onnx.py run FOLDER CHROME [--models A,B] [FLAGS …]
        serves it, opens CHROME with FLAGS, prints a table; the standard library is enough

Both engines get the same file, inputs as typed arrays on the CPU and give outputs there, in turns.
Large weights of files that ``whole`` doesn't name are left out of the folder; the page makes random
ones with the same mean square. ``profile``: GPU time of each of our kernels. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.remove(str(Path(__file__).resolve().parent))  # onnx.py there is no package
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import gpu_page

MODELS = (
    "minilm_int8_1x128,minilm_fp32_1x16,minilm_fp32_1x128,minilm_fp32_32x128,minilm_q8_1x128,"
    "mobilenet,resnet50,isnet_uint8,isnet_f16,kokoro"
)


def show(found: dict[str, Any]) -> None:
    """Tables for people."""
    print(f"\n{'model':20} {'ours ms':>9} {'ort ms':>9} {'ratio':>6}  dispatches ours / ort")
    for name, row in found["models"].items():
        ours, ort = row["fanlight"], row["ort"]
        if "error" in ours or "error" in ort:
            print(f"{name:20} ours: {ours.get('error')}; ort: {ort.get('error')}")
            continue
        ratio = ort["run_ms"] / ours["run_ms"]
        print(
            f"{name:20} {ours['run_ms']:9.2f} {ort['run_ms']:9.2f} {ratio:6.2f}  "
            f"{ours['dispatches']} / {ort['dispatches']}; create {ours['create_ms']:.0f} /"
            f" {ort['create_ms']:.0f}; first {ours['first_ms']:.0f} / {ort['first_ms']:.0f};"
            f" difference {row['difference']:.2g} of {row['greatest']:.2g}"
        )
        for kernel in (row.get("profile") or [])[:12]:
            named = f"{kernel['kernel']} ({kernel['of']})"
            print(f"    {kernel['ms']:9.3f} ms {kernel['dispatches']:5} x {named}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    site, run = commands.add_parser("site"), commands.add_parser("run")
    for command in (site, run):
        command.add_argument("folder", type=Path)
        command.add_argument("--models", default=MODELS, help="names, between them ,")
    run.add_argument("chrome")
    run.add_argument("--pairs", type=int, default=7)
    run.add_argument("--limit", type=float, default=540.0, help="seconds")
    args, flags = parser.parse_known_args()
    if args.command == "site":
        if flags:
            parser.error(f"unknown arguments: {' '.join(flags)}")
        from bench import gpu_onnx_site

        gpu_onnx_site.build(args.folder, args.models.split(","))
        return
    query = {"models": args.models, "pairs": str(args.pairs)}
    found = gpu_page.visit(args.folder, "gpu_onnx.html", args.chrome, query, flags, args.limit)
    show(found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

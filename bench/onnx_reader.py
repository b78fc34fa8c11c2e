"""How fast the structure of an ONNX model is read: a made-up graph, and MiniLM int8.

    scripts/bench onnx_reader [--nodes 50000] [--rounds 5]

CPU seconds of one thread, the best of the rounds; MB (10^6 bytes) of structure, weights apart.
``fetched_mb`` and ``requests``: what the reader asked of the file. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

from onnx import TensorProto, helper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import models

from fanlight.formats.onnx import SCHEMA, read_model
from fanlight.formats.skim import skim


def made_up(nodes: int) -> bytes:
    """Two additions to a convolution, value infos for all."""
    graph, known = [], []
    for i in range(nodes):
        before, name = f"/model/layer.{i - 1}/out", f"/model/layer.{i}"
        if i % 3:
            inputs = [before, f"model.constant.{i % 50}"]
            graph.append(helper.make_node("Add", inputs, [f"{name}/out"], f"{name}/Add"))
        else:
            inputs = [before, f"model.layer.{i}.weight", f"model.layer.{i}.bias"]
            graph.append(
                helper.make_node(
                    "Conv",
                    inputs,
                    [f"{name}/out"],
                    f"{name}/Conv",
                    kernel_shape=[3, 3],
                    pads=[1, 1, 1, 1],
                    strides=[1, 1],
                    group=1,
                )
            )
        shape = ["batch", 64, 128, "width"]
        known.append(helper.make_tensor_value_info(f"{name}/out", TensorProto.FLOAT, shape))
    model = helper.make_model(helper.make_graph(graph, "made-up", [], [], value_info=known))
    return model.SerializeToString()


async def measure(data: bytes, rounds: int) -> dict[str, float]:
    """The figures for one file."""
    requests: list[int] = []

    async def read(offset: int, length: int) -> bytes:
        requests.append(length)
        return data[offset : offset + length]

    best = float("inf")
    for _ in range(rounds):
        requests.clear()
        start = time.process_time()
        await read_model(read, len(data))
        best = min(best, time.process_time() - start)
    fetched, count = sum(requests), len(requests)
    structure = len((await skim(read, len(data), SCHEMA["Model"])).data)
    return {
        "file_mb": round(len(data) / 1e6, 2),
        "structure_mb": round(structure / 1e6, 3),
        "seconds": round(best, 4),
        "mb_per_second": round(structure / 1e6 / best, 1),
        "requests": count,
        "fetched_mb": round(fetched / 1e6, 2),
    }


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    files = {"made_up": made_up(arguments.nodes), "minilm": models.fetch("minilm").read_bytes()}
    results = {name: asyncio.run(measure(data, arguments.rounds)) for name, data in files.items()}
    print(json.dumps(results))


if __name__ == "__main__":
    main()

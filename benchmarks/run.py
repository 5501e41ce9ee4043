"""Measure the engine, and write what was measured to ``results/``.

    python benchmarks/run.py [--device-name NAME] [--sample N]

Every figure is a ratio or a course within one run; absolute seconds are of the machine named.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import bench
import torch

from twohop_lib import records
from twohop_lib.benchmark import heraldry
from twohop_lib.interventions.splice import Engine
from twohop_lib.models.prompts import Prompt

HERE = Path(__file__).parent


def growth(width: int, dtype: torch.dtype, device: str) -> list[dict[str, Any]]:
    """Seconds of cross-patching at all layers, as items, blocks and donors grow."""
    world = heraldry.make_world(0)
    side = (bench.SIDE, bench.SIDE)
    pictures = [heraldry.picture(world, h).resize(side) for h in world.houses[:17]]
    prompt = Prompt("by_picture", bench.QUESTION, True)

    def seconds(n_blocks: int, targets: int, donors: int) -> float:
        vlm = bench.llava_shaped(width, dtype, device, n_blocks)
        pairs = [(t, 1 + (t + d) % 16) for t in range(targets) for d in range(1, donors + 1)]
        engine = Engine(vlm)
        engine.logits(bench.plan(engine, "cross-patch", prompt, pictures, pairs[:1])[:1])
        began = time.perf_counter()
        engine.logits(bench.plan(engine, "cross-patch", prompt, pictures, pairs))
        return time.perf_counter() - began

    courses = [("targets", 32, t, 1) for t in (2, 4, 8)]
    courses += [("blocks", blocks, 2, 2) for blocks in (8, 16, 32)]
    courses += [("donors", 32, 1, d) for d in (1, 4, 16)]
    return [
        {"grows": what, "n_blocks": b, "targets": t, "donors": d, "seconds": seconds(b, t, d)}
        for what, b, t, d in courses
    ]


def main() -> None:
    """Measure the three kinds of work at LLaVA-1.5's shape, two organisms, and the growth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device-name", default=platform.processor() or platform.machine())
    parser.add_argument("--sample", type=int, default=64, help="runs of the slow loops; 0: all")
    parser.add_argument("--width", type=int, default=0)
    given = parser.parse_args()
    gpu = torch.cuda.is_available()
    dtype, device = (torch.bfloat16, "cuda") if gpu else (torch.float32, "cpu")
    width = given.width or (4096 if gpu else 256)
    timings = []
    for work in bench.WORKS:
        vlm = bench.llava_shaped(width, dtype, device)
        timings.append(asdict(bench.measure(vlm, work, reference_runs=given.sample)))
        print(json.dumps(timings[-1]), flush=True)
    result = {
        "machine": torch.cuda.get_device_name() if gpu else given.device_name,
        "threads": torch.get_num_threads(),
        "versions": records.versions(),
        "timings": timings,
        "growth": growth(width, dtype, device),
    }
    out = HERE / "results" / f"{'gpu' if gpu else 'cpu'}.json"
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(out)


if __name__ == "__main__":
    main()

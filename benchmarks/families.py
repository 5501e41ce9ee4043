"""Check and rehearse every family of the tests' zoo, and record what came of it.

    python benchmarks/families.py [FAMILY ...]

Each is a tiny checkpoint with random weights of a published family's real classes. The checks of
``twohop check`` are made on it, and every experiment of every chapter is run on a few entities.
Families that are named are measured again, the others stay as they were recorded.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.zoo import CHECKED, build
from twohop_lib.benchmark import sources
from twohop_lib.benchmark.schema import Benchmark
from twohop_lib.errors import TwohopError, suggest
from twohop_lib.interventions.check import check
from twohop_lib.models.pair import load_pair
from twohop_lib.rerun.rehearse import rehearse
from twohop_lib.rerun.run import chapters_folder, rerunnable

RECORDED = Path(__file__).parent / "results" / "families.json"


def measure(name: str, world: Benchmark, folder: Path) -> dict[str, Any]:
    """One family's class, the checks that failed, chapters refused with reasons, and seconds."""
    made = build(name, folder)
    started = time.perf_counter()
    pair = load_pair(made.vlm, made.llm)
    report = check(pair, world.select(split="test", wording="standard"))
    done = rehearse(pair, world, rerunnable(chapters_folder()), "quick", fixed=0)
    return {
        "class": type(pair.vlm.model).__name__,
        "failed": sorted(check for check, held in report.checks.items() if not held.ok),
        "unlike_a_session": list(report.unlike_a_session),
        "ran": sorted(done.seconds),
        "refused": dict(done.refused),
        "seconds": round(time.perf_counter() - started),
        "date": datetime.now(UTC).date().isoformat(),
    }


def main(names: list[str]) -> None:
    """Measure families, and write each as soon as it is done."""
    for name in names:
        if name not in CHECKED:
            raise TwohopError(f"The zoo has no family {name!r}; {suggest(name, CHECKED)}.")
    for name in names or CHECKED:
        with tempfile.TemporaryDirectory() as folder:
            world = sources.build("heraldry", Path(folder) / "heraldry", 0)
            found = measure(name, world, Path(folder))
        known = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
        known[name] = found
        kept = {family: known[family] for family in CHECKED if family in known}
        RECORDED.write_text(json.dumps(kept, indent=1) + "\n")
        print(name, found["seconds"], "s", found["failed"], found["refused"], flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

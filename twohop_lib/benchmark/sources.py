"""Where benchmarks come from: one function per source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from twohop_lib.benchmark import heraldry, store
from twohop_lib.benchmark.schema import Benchmark
from twohop_lib.benchmark.store import load
from twohop_lib.errors import TwohopError, suggest

__all__ = ["SOURCES", "build", "load"]


def _heraldry(out: Path, seed: int) -> Benchmark:
    world = heraldry.make_world(seed)
    houses = {h.entity_id: h for h in world.houses}
    return store.write(
        heraldry.questions(world),
        lambda entity_id: heraldry.picture(world, houses[entity_id]),
        out,
        "heraldry",
        seed,
    )


SOURCES: dict[str, Callable[[Path, int], Benchmark]] = {"heraldry": _heraldry}


def build(name: str, out: Path, seed: int = 0) -> Benchmark:
    """Build benchmark ``name`` into the folder ``out``; the same seed gives the same bytes.

    Raises:
        TwohopError: unknown benchmark, negative seed, or ``out`` holds something else.
    """
    if name not in SOURCES:
        raise TwohopError(f"No benchmark is called {name!r}; {suggest(name, SOURCES)}.")
    if seed < 0:
        raise TwohopError(f"The seed is {seed}; give 0 or more.")
    return SOURCES[name](Path(out), seed)

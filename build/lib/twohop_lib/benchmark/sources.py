"""Where benchmarks come from: one function per source."""

from __future__ import annotations

import inspect
import operator
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twohop_lib.benchmark import flags, heraldry, popvqa, store, table
from twohop_lib.benchmark.schema import Benchmark, Material, funnel
from twohop_lib.benchmark.store import load
from twohop_lib.errors import TwohopError, suggest

__all__ = ["SOURCES", "build", "is_popvqa", "load", "material", "open_benchmark"]


def _heraldry(seed: int) -> Material:
    world = heraldry.make_world(seed)
    houses = {h.entity_id: h for h in world.houses}
    questions = tuple(heraldry.questions(world))
    return Material(
        questions,
        lambda entity_id: heraldry.picture(world, houses[entity_id]),
        funnel([("houses made", len(houses), len({(q.entity_id, q.relation) for q in questions}))]),
    )


#: What each source yields, from a seed and options of its own.
SOURCES: dict[str, Callable[..., Material]] = {
    "heraldry": _heraldry,
    "flags": flags.read,
    "popvqa": popvqa.read,
    "table": table.read,
}


def material(name: str, seed: int = 0, **options: Any) -> Material:
    """What source ``name`` yields, before it is written; ``options`` are the source's own.

    Raises:
        TwohopError: unknown source or option, negative seed, or what the source itself refuses.
    """
    if name not in SOURCES:
        hint = "" if not Path(name).suffix else f" (there is no file {name} either)"
        raise TwohopError(f"No benchmark is called {name!r}; {suggest(name, SOURCES)}{hint}.")
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TwohopError(f"The seed is {seed!r}; give a whole number.")
    seed = operator.index(seed)
    if seed < 0:
        raise TwohopError(f"The seed is {seed}; give 0 or more.")
    known = [p for p in inspect.signature(SOURCES[name]).parameters if p != "seed"]
    for option in options:
        if option not in known:
            has = f"it has: {', '.join(known)}" if known else "it has none"
            raise TwohopError(f"Source {name} has no option {option!r}; {has}.")
    return SOURCES[name](seed=seed, **options)


def build(name: str, out: Path, seed: int = 0, **options: Any) -> Benchmark:
    """Build benchmark ``name`` into the folder ``out``; the same seed gives the same bytes.

    Raises:
        TwohopError: as :func:`material`, or ``out`` holds something else.
    """
    made = material(name, seed, **options)
    seed = operator.index(seed)  # NumPy's whole numbers are no JSON
    counts = made.counts.to_dict("records")
    notes = {**made.notes, "counts": counts}
    return store.write(made.questions, made.picture, Path(out), name, seed, notes)


def open_benchmark(where: str, out: Path, seed: int = 0) -> Benchmark:
    """Open a benchmark from whatever ``where`` is; one that has to be built goes to ``out``.

    ``where`` may be a source's name, a folder that holds a built benchmark, a folder in PopVQA's
    published format, or a table of one's own (CSV, TSV, Parquet).

    Raises:
        TwohopError: it is none of these, or something is wrong with it.
    """
    path = Path(where)
    if is_popvqa(path):
        return build("popvqa", out, seed, source=path)
    if os.path.isdir(path):
        return load(path)
    if os.path.isfile(path):
        return build("table", out, seed, source=path)
    return build(where, out, seed)


def is_popvqa(path: Path) -> bool:
    """Whether a folder holds PopVQA as published, and not a benchmark built from it."""
    return os.path.isdir(path) and popvqa.is_copy(path) and not (path / store.ABOUT).exists()

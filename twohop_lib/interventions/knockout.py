"""Attention knockout: attention edges cut in a window of blocks (Geva et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.errors import TwohopError
from twohop_lib.interventions.edits import Knockout
from twohop_lib.interventions.pairs import Task
from twohop_lib.interventions.recording import Recording
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import (
    LENGTH,
    ControlFailed,
    Recorder,
    _record,
    stored,
    together,
)

#: Attention edges, written query→key.
EDGES = ("question→image", "last→image", "last→question")


Mode = Literal["below", "above", "window"]


def windows(n_blocks: int, mode: Mode, width: int = 0) -> list[tuple[int, int]]:
    """Blocks [start, stop) to knock out: cumulative from below or above, or a sliding window."""
    if mode == "below":
        return [(0, stop) for stop in range(n_blocks + 1)]
    if mode == "above":
        return [(start, n_blocks) for start in range(n_blocks + 1)]
    if not 1 <= width <= n_blocks:
        raise TwohopError(f"A window needs a width from 1 to {n_blocks}, not {width}.")
    return [(start, start + width) for start in range(n_blocks - width + 1)]


def knockout(
    engine: Engine,
    benchmark: Benchmark,
    questions: Sequence[Question],
    task: Task = "identify",
    edges: Sequence[str] = EDGES,
    modes: Sequence[tuple[Mode, int]] = (("below", 0), ("above", 0)),
    labels: dict[str, Any] | None = None,
    length: int = LENGTH,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Cut attention edges in a window of blocks, and read out what is left.

    ``modes`` are (mode, width of a sliding window). "question→image" cuts every token behind the
    picture off from it, the last one included. Returns answer records with ``experiment, task,
    edge, mode, start, stop, unchanged`` and ``computation``.

    Raises ControlFailed if cutting nothing changes a run.
    """
    spans = [
        (mode, *window) for mode, width in modes for window in windows(engine.n_blocks, mode, width)
    ]

    def work(part: list[Question]) -> list[dict[str, Any]]:
        record = Recorder(engine, benchmark, task, True, length)
        kept = []
        for question in part:
            target = record(question)
            for edge in edges:
                queries, keys = edge_positions(target, edge)
                kept += [
                    (question, edge, mode, Knockout(target, queries, keys, start, stop))
                    for mode, start, stop in spans
                ]
        logits, said = engine.answers([row for *_, row in kept], length)
        own = {}
        for (question, _, _, row), got, text in zip(kept, logits, said, strict=True):
            if row.start == row.stop:
                own[question.question_id] = text
                if not engine.close(got, row.target.logits):
                    raise ControlFailed("Knocking out nothing changed a run; results mean nothing.")
        return [
            _record(question, task, "picture", text)
            | {
                "edge": edge,
                "mode": mode,
                "start": row.start,
                "stop": row.stop,
                "unchanged": text == own.get(question.question_id, text),
                "computation": engine.computation(row),
            }
            for (question, edge, mode, row), text in zip(kept, said, strict=True)
        ]

    what = {"experiment": "knockout", "task": task, "edges": list(edges), "windows": spans}
    groups = together(questions, lambda q: q.question_id)
    return stored(engine, benchmark, groups, work, what | {"length": length}, labels, folder)


def edge_positions(target: Recording, edge: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Query and key positions of an edge; no keys for a picture outside of the stream.

    Raises TwohopError for an unknown edge, UnsupportedSite if the prompt has no such positions.
    """
    if edge not in EDGES:
        raise TwohopError(f"No edge is called {edge!r}; use one of {', '.join(EDGES)}.")
    query, key = edge.split("→")
    behind = tuple(p for p in range(target.span[1], target.n) if p not in target.roles.last)
    queries = target.roles.last if query == "last" else (*behind, *target.roles.last)
    if key == "image":
        start, stop = target.span
        return queries, tuple(range(start, stop))
    return queries, behind

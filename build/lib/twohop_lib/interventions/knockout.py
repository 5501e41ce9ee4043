"""Attention knockout: attention edges cut in a window of blocks (Geva et al. 2023, §4).

In blocks [start, stop) the queries at some positions do not see the keys at others: the attention
scores ``[batch, head, query, key]`` are minus infinity there, and the weights exactly 0. Edges are
written query→key. In models with cross-attention, queries cut off from the picture pass its
blocks unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, Unpack

import pandas as pd

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.errors import TwohopError
from twohop_lib.interventions.edits import Knockout
from twohop_lib.interventions.pairs import Task, condition_of
from twohop_lib.interventions.recorder import Recorder
from twohop_lib.interventions.recording import Recording
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import Control, Kept, Outcome, Trial, sweep

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
    **kept: Unpack[Kept],
) -> pd.DataFrame:
    """Cut attention edges in a window of blocks, and read out what is left.

    ``modes`` are (mode, width of a sliding window). "question→image" cuts every token behind the
    picture off from it, the last one included. Returns answer records with ``edge, mode, start,
    stop`` and ``unchanged``: the answer is word for word that of the run left alone.

    Raises ControlFailed if cutting nothing changes a run.
    """
    spans = [
        (mode, *window) for mode, width in modes for window in windows(engine.n_blocks, mode, width)
    ]

    def edits(question: Question, recorded: Recorder) -> Iterator[Trial]:
        target = recorded(question)
        for edge in edges:
            queries, keys = edge_positions(target, edge)
            for mode, start, stop in spans:
                site = {"edge": edge, "mode": mode, "start": start, "stop": stop}
                yield Trial(Knockout(target, queries, keys, start, stop), site)

    def control(question: Question, recorded: Recorder, trials: list[Trial]) -> Iterator[Control]:
        nothing = [t.edit for t in trials if t.edit.start == t.edit.stop]
        # Sliding windows are never empty.
        for edit in nothing or [replace(trials[0].edit, start=0, stop=0)]:
            yield Control(edit, edit.target, "Knocking out nothing changed a run")

    def record(question: Question, outcome: Outcome) -> dict[str, Any]:
        return {"unchanged": outcome.said == outcome.alone}

    return sweep(
        engine,
        benchmark,
        questions,
        experiment="knockout",
        condition=condition_of(task, "picture"),
        edits=edits,
        control=control,
        record=record,
        settings={"edges": list(edges), "windows": spans},
        **kept,
    )


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

"""Forward freezing: the picture's stream held at a layer (Cohen et al. 2025, forward patching).

The picture's positions enter blocks k + 1 … T with the value that they had when they entered k,
and run on from there behind block T:

    resid[b][span] ← resid[k][span]        b = k + 1 … T,  [span, d_model]

So blocks above k read a picture that is not worked on any further. k = T is the run left alone. By
name, the same is done in a text model at the name's tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Unpack

import pandas as pd

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.interventions.edits import Freeze
from twohop_lib.interventions.pairs import By, Task, condition_of
from twohop_lib.interventions.recorder import Recorder
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import Control, Kept, Outcome, Trial, sweep


def freeze_ends(n_blocks: int, switch: float | None = None) -> list[int]:
    """Last frozen blocks to try: at the switch layer if known, at two thirds, and at the top."""
    at = [] if switch is None else [min(max(round(switch), 1), n_blocks - 1)]
    return sorted({*at, 2 * n_blocks // 3, n_blocks - 1})


def freeze(
    engine: Engine,
    benchmark: Benchmark,
    questions: Sequence[Question],
    task: Task = "identify",
    by: By = "picture",
    until: Sequence[int] = (),
    every: int = 1,
    **kept: Unpack[Kept],
) -> pd.DataFrame:
    """Hold the picture's (or name's) stream at ``resid[layer]`` up to a block, for every layer.

    ``until`` are the last frozen blocks (T); ``layer`` (k) goes from each down to 0, ``every`` so
    many layers and at 0. Returns answer records with ``layer, until`` and ``unchanged``: the
    answer is word for word that of the run left alone.

    Raises UnsupportedSite where pictures have no positions in the stream; ControlFailed if
    freezing nothing changes a run.
    """
    ends = sorted(set(until))

    def edits(question: Question, recorded: Recorder) -> Iterator[Trial]:
        target = recorded(question)
        for end in ends:
            for layer in sorted({0, *range(end, -1, -every)}):
                yield Trial(Freeze(target, layer, end), {"layer": layer, "until": end})

    def control(question: Question, recorded: Recorder, trials: list[Trial]) -> Iterator[Control]:
        for trial in trials:
            if trial.edit.layer == trial.edit.until:
                yield Control(trial.edit, trial.edit.target, "Freezing nothing changed a run")

    def record(question: Question, outcome: Outcome) -> dict[str, Any]:
        return {"unchanged": outcome.said == outcome.alone}

    return sweep(
        engine,
        benchmark,
        questions,
        experiment="freeze",
        condition=condition_of(task, by),
        from_start=True,
        edits=edits,
        control=control,
        record=record,
        settings={"until": ends, "every": every},
        types={"until": "Int64"},
        **kept,
    )

"""Forward freezing: the picture's stream held at a layer (Cohen et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.interventions.edits import Freeze
from twohop_lib.interventions.pairs import Task
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import (
    LENGTH,
    ControlFailed,
    Recorder,
    _record,
    stored,
    together,
)


def freeze_ends(n_blocks: int, switch: float | None = None) -> list[int]:
    """Last frozen blocks to try: at the switch layer if known, at two thirds, and at the top."""
    at = [] if switch is None else [min(max(round(switch), 1), n_blocks - 1)]
    return sorted({*at, 2 * n_blocks // 3, n_blocks - 1})


def freeze(
    engine: Engine,
    benchmark: Benchmark,
    questions: Sequence[Question],
    task: Task = "identify",
    by: Literal["picture", "name"] = "picture",
    until: Sequence[int] = (),
    labels: dict[str, Any] | None = None,
    length: int = LENGTH,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Hold the picture's (or name's) stream at ``resid[layer]`` up to a block, for every layer.

    ``until`` are the last frozen blocks. Returns answer records with ``experiment, task, by,
    layer, until, unchanged`` (the answer is word for word that of the run left alone) and
    ``computation``; ``layer`` = ``until`` is the run left alone.

    Raises UnsupportedSite where pictures have no positions in the stream, ControlFailed if
    freezing nothing changes a run.
    """
    ends = sorted(set(until))

    def work(part: list[Question]) -> list[dict[str, Any]]:
        record = Recorder(engine, benchmark, task, by == "picture", length, from_start=True)
        kept = [
            (question, Freeze(record(question), layer, end))
            for question in part
            for end in ends
            for layer in range(end + 1)
        ]
        rows = [row for _, row in kept]
        logits, said = engine.answers(rows, length)
        own = {}
        for (question, row), got, text in zip(kept, logits, said, strict=True):
            if row.layer == row.until:
                own[question.question_id] = text
                if not engine.close(got, row.target.logits):
                    raise ControlFailed("Freezing nothing changed a run; results mean nothing.")
        return [
            _record(question, task, by, text)
            | {
                "layer": row.layer,
                "until": row.until,
                "unchanged": text == own[question.question_id],
                "computation": engine.computation(row),
            }
            for (question, row), text in zip(kept, said, strict=True)
        ]

    what = {"experiment": "freeze", "task": task, "by": by, "until": ends, "length": length}
    groups = together(questions, lambda q: q.question_id)
    return stored(engine, benchmark, groups, work, what, labels, folder)

"""Back-patching: a state of the model's own late layer, written early (Biran et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.interventions.edits import Write
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import (
    LENGTH,
    Recorder,
    own_blocks,
    receiving,
    stored,
    together,
)
from twohop_lib.runs.evaluate import judge


def back_patch(
    engine: Engine,
    benchmark: Benchmark,
    questions: Sequence[Question],
    routes: Sequence[tuple[int, int]] | None = None,
    labels: dict[str, Any] | None = None,
    length: int = LENGTH,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Biran et al. 2024: the picture's own ``resid[source]`` written over ``resid[layer]``.

    ``routes`` are (source, layer) with source > layer; None: all of them. Returns answer records
    with ``source, layer`` and ``computation``; source = layer is the run left alone.
    """
    own = own_blocks(engine)
    chosen = list(routes or [(s, d) for d in own for s in own if s > d])

    def work(part: list[Question]) -> list[dict[str, Any]]:
        record = Recorder(engine, benchmark, "fact", True, length, from_start=True)
        planned = []
        for question in part:
            target = record(question)
            at = receiving(engine, target)
            for source, layer in [*chosen, (own[0], own[0])]:
                stream = target.resid[source, [p - target.first for p in at]]
                planned.append(
                    (question, source, layer, Write(target, "resid", at, {layer: stream}))
                )
        said = engine.answers([row for *_, row in planned], length)[1]
        return [
            {k: v for k, v in judge(q, "by_picture", text).items() if not k.startswith("named")}
            | {"source": source, "layer": layer, "computation": engine.computation(row)}
            for (q, source, layer, row), text in zip(planned, said, strict=True)
        ]

    what = {"experiment": "back-patch", "task": "fact", "routes": chosen, "length": length}
    groups = together(questions, lambda q: q.question_id)
    return stored(engine, benchmark, groups, work, what, labels, folder)

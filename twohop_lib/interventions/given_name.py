"""The given name against the picture: which of the two does the last position read?

A run in which the answer begins with the right name ("This is Valric.", condition ``name_given``)
holds the entity twice: in the picture, and in text behind it. The last position is cut off, in all
blocks 0 … n_blocks − 1, from the one or from the other (:class:`~.edits.Knockout`, masked weights
are exactly 0), and the fact is read out. Facts that come back without the picture were overridden
by it; facts that go without the name were read off it.

Control: cutting nothing must give the run itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.interventions.edits import Knockout
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import LENGTH, ControlFailed, stored, together
from twohop_lib.models.prompts import build
from twohop_lib.runs.evaluate import judge

#: What is cut: attention edges, written query→key.
EDGES = ("nothing", "last→image", "last→name")


def given_name(
    engine: Engine,
    benchmark: Benchmark,
    questions: Sequence[Question],
    labels: dict[str, Any] | None = None,
    length: int = LENGTH,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Answers with the name given and one of :data:`EDGES` cut in all blocks.

    Returns one answer record (condition ``name_given``) a question and edge, with ``experiment``
    ("given-name"), ``edge`` and ``computation``.

    Raises ControlFailed if cutting nothing changes a run.
    """

    def work(part: list[Question]) -> list[dict[str, Any]]:
        cut = [(question, edge, edit) for question in part for edge, edit in _edits(question)]
        logits, said = engine.answers([edit for *_, edit in cut], length)
        rows = []
        for (question, edge, edit), got, text in zip(cut, logits, said, strict=True):
            if edge == "nothing" and not engine.close(got, edit.target.logits):
                raise ControlFailed("Cutting nothing changed a run; results mean nothing.")
            row = judge(question, "name_given", text)
            row = {k: v for k, v in row.items() if k not in ("named", "named_right")}
            rows.append(row | {"edge": edge, "computation": engine.computation(edit)})
        return rows

    def _edits(question: Question) -> list[tuple[str, Knockout]]:
        prompt = build("name_given", question, engine.owner.tokenizer)
        picture = benchmark.image(question).convert("RGB")
        run = engine.record(prompt, picture, question.entity, length)
        # In a model that shows pictures through cross-attention the span is empty: no keys.
        keys = ((), tuple(range(*run.span)), run.roles.entity)
        return [
            (edge, Knockout(run, run.roles.last, k, 0, 0 if edge == "nothing" else engine.n_blocks))
            for edge, k in zip(EDGES, keys, strict=True)
        ]

    what = {"experiment": "given-name", "task": "fact", "length": length}
    groups = together(questions, lambda q: q.question_id)
    return stored(engine, benchmark, groups, work, what, labels, folder)

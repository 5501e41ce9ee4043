"""The given name against the picture: which of the two does the last position read?

A run in which the answer begins with the right name ("This is Valric.", condition ``name_given``)
holds the entity twice: in the picture, and in text behind it. The last position is cut off, in all
blocks 0 … n_blocks − 1, from the one or from the other (:class:`~.edits.Knockout`, masked weights
are exactly 0), and the fact is read out. Facts that come back without the picture were overridden
by it; facts that go without the name were read off it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Unpack

import pandas as pd

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.interventions.edits import Knockout
from twohop_lib.interventions.recorder import Recorder
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import Control, Kept, Trial, sweep

#: What is cut: attention edges, written query→key.
EDGES = ("nothing", "last→image", "last→name")


def given_name(
    engine: Engine, benchmark: Benchmark, questions: Sequence[Question], **kept: Unpack[Kept]
) -> pd.DataFrame:
    """Answers with the name given and one of :data:`EDGES` cut in all blocks.

    Returns one answer record (condition ``name_given``) a question and ``edge``.

    Raises ControlFailed if cutting nothing changes a run.
    """

    def edits(question: Question, recorded: Recorder) -> Iterator[Trial]:
        run = recorded(question)
        # In a model that shows pictures through cross-attention the span is empty: no keys.
        keys = ((), tuple(range(*run.span)), run.roles.entity)
        for edge, cut in zip(EDGES, keys, strict=True):
            stop = 0 if edge == "nothing" else engine.n_blocks
            yield Trial(Knockout(run, run.roles.last, cut, 0, stop), {"edge": edge})

    def control(question: Question, recorded: Recorder, trials: list[Trial]) -> Iterator[Control]:
        nothing = trials[0].edit
        yield Control(nothing, nothing.target, "Cutting nothing changed a run")

    return sweep(
        engine,
        benchmark,
        questions,
        experiment="given-name",
        condition="name_given",
        edits=edits,
        control=control,
        record=lambda question, outcome: {},
        **kept,
    )

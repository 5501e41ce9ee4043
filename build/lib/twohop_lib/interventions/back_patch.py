"""Back-patching: a state of the model's own late layer, written early (Biran et al. 2024).

The positions that stand for the picture get, on entering block l, the state with which they enter
a later block s of the same run, and everything later runs free:

    resid[l][P] ← resid[s][P]        s > l,  [len(P), d_model]

It gives a picture that becomes a name too late the blocks that it missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Unpack

import pandas as pd

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.interventions.edits import Write
from twohop_lib.interventions.recorder import Recorder, own_blocks, receiving
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import Control, Kept, Trial, sweep


def back_patch(
    engine: Engine,
    benchmark: Benchmark,
    questions: Sequence[Question],
    routes: Sequence[tuple[int, int]] | None = None,
    **kept: Unpack[Kept],
) -> pd.DataFrame:
    """Write the picture's own ``resid[source]`` over ``resid[layer]``.

    ``routes`` are (source, layer) with source > layer; None: all of them. Returns answer records
    of the fact questions with ``source, layer`` and ``computation``; source = layer is the run
    left alone.

    Raises ControlFailed if writing a state where it comes from changes a run; UnsupportedSite if
    nothing in the prompt stands for the picture.
    """
    own = own_blocks(engine)
    chosen = list(routes or [(source, layer) for layer in own for source in own if source > layer])

    def edits(question: Question, recorded: Recorder) -> Iterator[Trial]:
        target = recorded(question)
        at = receiving(engine, target)
        for source, layer in [*chosen, (own[0], own[0])]:
            state = target.resid[source, [p - target.first for p in at]]
            site = {"source": source, "layer": layer}
            yield Trial(Write(target, "resid", at, {layer: state}), site)

    def control(question: Question, recorded: Recorder, trials: list[Trial]) -> Iterator[Control]:
        nothing = trials[-1].edit
        yield Control(nothing, nothing.target, "Writing a state where it comes from changed a run")

    return sweep(
        engine,
        benchmark,
        questions,
        experiment="back-patch",
        condition="by_picture",
        from_start=True,
        edits=edits,
        control=control,
        record=lambda question, outcome: {},
        settings={"routes": chosen},
        **kept,
    )

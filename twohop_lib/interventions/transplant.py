"""The picture's state, written where a name would stand: would the model recall from it?

In the model itself, asked in text. A prompt with a placeholder where the name would be is run, and
the state of the run on the picture, at the picture's last position, is written over it:

    resid_placeholder[l][p] ← resid_picture[s][last position of the picture]        [d_model]

Nothing is fitted, and nothing else of the picture is there to be read. With s = l the state arrives
when it does in its own run; with s > l it arrives earlier, as in back-patching. A state that gives
the fact at no (s, l) is *foreign* to recall; one that gives it written early alone came *late*; one
that gives it where it stands was in time, and if the picture does not, it is not *read*. (Ours.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Unpack

import pandas as pd

from twohop_lib.benchmark.schema import Benchmark
from twohop_lib.interventions.deadlines import placeholder, placeholder_run
from twohop_lib.interventions.edits import Write
from twohop_lib.interventions.pairs import Pair, follows
from twohop_lib.interventions.recorder import Recorder, own_blocks, receiving
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import Control, Kept, Outcome, Trial, sweep


def transplant(
    engine: Engine,
    benchmark: Benchmark,
    pairs: Sequence[Pair],
    routes: Sequence[tuple[int, int]],
    **kept: Unpack[Kept],
) -> pd.DataFrame:
    """Write the picture's ``resid[source]`` over a placeholder at ``layer``, by ``routes``.

    Routes are (source, layer) with source ≥ layer, in the backbone's own blocks. Returns answer
    records (condition ``by_name``) with ``source``, ``layer``, ``arm`` ("entity", "wrong entity":
    the picture of the pair's donor, or "nothing") and ``follows`` ("right", "donor" or "neither":
    whose fact is given).

    Raises ControlFailed if writing nothing changes the placeholder's run; TwohopError as
    :func:`~twohop_lib.interventions.deadlines.placeholder` does.
    """
    own = own_blocks(engine)
    shown = Recorder(engine, benchmark, "by_picture", from_start=True)

    def edits(pair: Pair, named: Recorder) -> Iterator[Trial]:
        empty = placeholder_run(engine, pair.target, named.max_new_tokens, "by_name")
        at = (empty.roles.entity[-1],)
        for arm, question in (("entity", pair.target), ("wrong entity", pair.donor)):
            picture = shown(question, pair.target)
            position = receiving(engine, picture)[-1] - picture.first
            for source, layer in routes:
                state = picture.resid[own[source], [position]]
                edit = Write(empty, "resid", at, {own[layer]: state})
                yield Trial(edit, {"arm": arm, "source": source, "layer": layer})
        nothing = {"arm": "nothing", "source": None, "layer": None}
        yield Trial(Write(empty, "resid", at, {}), nothing)

    def control(pair: Pair, named: Recorder, trials: list[Trial]) -> Iterator[Control]:
        nothing, run = trials[-1].edit, named(pair.target)
        yield Control(nothing, nothing.target, "Writing nothing changed the run", run)

    def record(pair: Pair, outcome: Outcome) -> dict[str, Any]:
        return follows(pair, "by_name", outcome.said)

    return sweep(
        engine,
        benchmark,
        pairs,
        experiment="transplant",
        condition="by_name",
        from_start=True,
        edits=edits,
        control=control,
        record=record,
        settings={"routes": [list(route) for route in routes], "word": placeholder(engine)},
        types={"source": "Int64", "layer": "Int64"},
        **kept,
    )

"""Part patching: cross-patching of the last quarter of a picture's positions, or of the others.

The donor's stream is written over some of the picture's positions P alone, and everything later
runs free, later positions of the picture too:

    resid_target[l][P] ← resid_donor[l][P]        l = 0 … n_blocks − 1,  [len(P), d_model]

Where a model adds more of the picture to the stream on the way up, the donor's is written there
again. A control of cross-patching (:mod:`~twohop_lib.interventions.cross_patch`): if part of the
positions told as much as all of them, the others would carry nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Unpack

import pandas as pd

from twohop_lib.benchmark.schema import Benchmark
from twohop_lib.interventions.edits import Write
from twohop_lib.interventions.pairs import Pair, Task, condition_of, whose
from twohop_lib.interventions.recorder import Recorder
from twohop_lib.interventions.recording import Recording
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import Control, Kept, Outcome, Trial, sweep
from twohop_lib.models.blocks import UnsupportedSite


def part_patch(
    engine: Engine,
    benchmark: Benchmark,
    pairs: Sequence[Pair],
    task: Task = "identify",
    **kept: Unpack[Kept],
) -> pd.DataFrame:
    """Write the donor's stream over part of the target's picture and read out what is said.

    Returns answer records as :func:`~twohop_lib.interventions.cross_patch.cross_patch` does, with
    ``part`` ("last quarter" or "the others") and without ``calibrated``.

    Raises UnsupportedSite where pictures have no positions in the stream; ControlFailed if writing
    a run's own stream back changes it, or both parts together at layer 0 do not give the donor's.
    """
    condition = condition_of(task, "picture")
    late = engine.site.late if engine.site is not None else ()

    def write(target: Recording, source: Recording, positions: Sequence[int], layer: int) -> Write:
        layers = [layer, *(b for b in late if b > layer)]
        at = [p - source.first for p in positions]
        return Write(target, "resid", tuple(positions), {b: source.resid[b, at] for b in layers})

    def edits(pair: Pair, recorded: Recorder) -> Iterator[Trial]:
        target, donor = recorded(pair.target), recorded(pair.donor, pair.target)
        for part, positions in parts(target).items():
            for layer in range(engine.n_blocks):
                edit = write(target, donor, positions, layer)
                yield Trial(edit, {"part": part, "layer": layer})

    def control(pair: Pair, recorded: Recorder, trials: list[Trial]) -> Iterator[Control]:
        target, donor = recorded(pair.target), recorded(pair.donor, pair.target)
        everywhere = range(*target.span)
        itself = write(target, target, everywhere, engine.n_blocks // 2)
        yield Control(itself, target, "Writing a run's own stream back changed it", donor)
        both = write(target, donor, everywhere, 0)
        yield Control(both, donor, "Both parts at layer 0 did not give the donor's run", target)

    def record(pair: Pair, outcome: Outcome) -> dict[str, Any]:
        return {
            "same_type": pair.same_type,
            "says": whose(pair, condition, outcome.said),
        }

    return sweep(
        engine,
        benchmark,
        pairs,
        experiment="part-patch",
        condition=condition,
        from_start=True,
        edits=edits,
        control=control,
        record=record,
        **kept,
    )


def parts(target: Recording) -> dict[str, list[int]]:
    """The positions of the picture's last quarter (at least one), and the others.

    Raises UnsupportedSite for a picture outside of the stream.
    """
    start, stop = target.span
    if start == stop:
        raise UnsupportedSite("A picture shown through cross-attention has no positions to part.")
    at = stop - max(1, (stop - start) // 4)
    return {"last quarter": list(range(at, stop)), "the others": list(range(start, at))}

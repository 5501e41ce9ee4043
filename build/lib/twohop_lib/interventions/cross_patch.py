"""Cross-patching: the donor's picture in the target's run, from a layer on (Cohen et al. 2025, §4).

The target's prompt is run with its own picture, and the stream that enters block l is replaced, at
all positions of the picture, by the donor's at the same place:

    resid_target[l][span] ← resid_donor[l][span]        l = 0 … n_blocks,  [span, d_model]

Everything later runs free. ``resid[0]`` are the embeddings with the picture's features among them,
so that l = 0 is the donor's run (prompts are equal), and l = n_blocks the target's. In models with
cross-attention the picture's keys and values from block l on are the donor's. A band (l, u) puts
the target's own stream back at ``resid[u]``. By name, the same is done in a text model at the
name's tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Unpack

import pandas as pd
from torch import Tensor

from twohop_lib.benchmark.schema import Benchmark
from twohop_lib.interventions.edits import CrossPatch
from twohop_lib.interventions.pairs import By, Pair, Task, condition_of, first_tokens, whose
from twohop_lib.interventions.recorder import Recorder
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import Control, Kept, Outcome, Trial, sweep

#: Below this difference of logits (nats) between target and donor, nothing can be calibrated.
LEAST = 0.5


def cross_patch(
    engine: Engine,
    benchmark: Benchmark,
    pairs: Sequence[Pair],
    task: Task = "identify",
    by: By = "picture",
    bands: Sequence[tuple[int, int | None]] | None = None,
    **kept: Unpack[Kept],
) -> pd.DataFrame:
    """Write the donor's stream over the target's picture (or name) and read out what is said.

    ``bands`` are (layer, until), until None: to the top; without bands from each layer 0 …
    n_blocks to the top. By name, pairs whose names differ in their number of tokens are left out.

    Returns answer records (``correct``: as for the target) with ``donor_id, same_type, layer,
    until, says`` ("target", "donor" or "neither") and ``calibrated``: the difference of the two
    answers' first-token logits, 0 as in the target's own run and 1 as in the donor's; null where
    the two runs differ by less than :data:`LEAST`.

    Raises ControlFailed if patching a run with itself changes it, patching from layer 0 does not
    give the donor's run, or from the top the target's.
    """
    n_blocks, condition = engine.n_blocks, condition_of(task, by)
    chosen = [(layer, None) for layer in range(n_blocks + 1)] if bands is None else list(bands)

    def edits(pair: Pair, recorded: Recorder) -> Iterator[Trial]:
        target, donor = recorded(pair.target), recorded(pair.donor, pair.target)
        if (target.n, target.span) != (donor.n, donor.span):
            return
        for layer, until in chosen:
            edit = CrossPatch(target, donor, layer, until)
            yield Trial(edit, {"layer": layer, "until": until})

    def control(pair: Pair, recorded: Recorder, trials: list[Trial]) -> Iterator[Control]:
        target, donor = trials[0].edit.target, trials[0].edit.donor
        itself = CrossPatch(target, target, n_blocks // 2)
        yield Control(itself, target, "Patching a run with itself changed it", donor)
        own = {t.edit.layer: t.edit for t in trials if t.edit.until is None}
        # Bands have no patch from layer 0 to the top among them.
        full = own.get(0) or CrossPatch(target, donor, 0)
        yield Control(full, donor, "Patching at layer 0 did not reproduce the donor's run", target)
        if n_blocks in own:
            says = f"Patching at layer {n_blocks} did not reproduce the target's run"
            yield Control(own[n_blocks], target, says, donor)

    @cache
    def tokens(pair: Pair) -> tuple[int, int]:
        return first_tokens(engine.owner, pair, condition)

    def record(pair: Pair, outcome: Outcome) -> dict[str, Any]:
        runs = (outcome.edit.target.logits, outcome.edit.donor.logits, outcome.logits)
        return {
            "same_type": pair.same_type,
            "says": whose(pair, condition, outcome.said),
            "calibrated": calibrated(*(logits[list(tokens(pair))] for logits in runs)),
        }

    return sweep(
        engine,
        benchmark,
        pairs,
        experiment="cross-patch",
        condition=condition,
        edits=edits,
        control=control,
        record=record,
        settings={"bands": chosen},
        types={"until": "Int64", "calibrated": "Float64"},
        **kept,
    )


def calibrated(target: Tensor, donor: Tensor, patched: Tensor) -> float | None:
    """Where a patched run stands between the target's (0) and the donor's (1).

    Each is ``[2]``: the logits of the target's and the donor's first token. None if the two own
    runs differ by less than :data:`LEAST`.
    """
    own, donors, got = ((x[0] - x[1]).item() for x in (target, donor, patched))
    return (own - got) / (own - donors) if abs(own - donors) >= LEAST else None

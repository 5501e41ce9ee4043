"""Cross-patching: the donor's picture in the target's run, from a layer on (Cohen et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from torch import Tensor

from twohop_lib.benchmark.schema import Benchmark
from twohop_lib.interventions.edits import CrossPatch, Write
from twohop_lib.interventions.pairs import Pair, Task, accepted, first_token, prompt_of
from twohop_lib.interventions.recording import Recording
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import (
    LENGTH,
    ControlFailed,
    Recorder,
    _record,
    stored,
    together,
)
from twohop_lib.models.blocks import UnsupportedSite
from twohop_lib.scoring.matching import matches

#: Below this difference of logits (nats) between target and donor, nothing can be calibrated.
LEAST = 0.5


def cross_patch(
    engine: Engine,
    benchmark: Benchmark,
    pairs: Sequence[Pair],
    task: Task = "identify",
    by: Literal["picture", "name"] = "picture",
    bands: Sequence[tuple[int, int | None]] | None = None,
    labels: dict[str, Any] | None = None,
    length: int = LENGTH,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Write the donor's stream over the target's picture (or name) and read out what is said.

    ``bands`` are (layer, until) as in :class:`CrossPatch`; None: from each layer 0 … n to the top.
    ``by`` "name" patches the name's tokens in a text prompt; pairs whose names differ in their
    number of tokens are left out.

    With "identify", questions are one per entity and only their identify prompt is asked.

    Returns answer records (``correct``: as for the target) with the columns ``experiment, task,
    by, donor_id, same_type, layer, until, says`` ("target", "donor" or "neither"), ``calibrated``
    (difference of the two answers' first-token logits: 0 as in the target's own run, 1 as in the
    donor's; null where the two runs hardly differ) and ``computation``.

    Raises ControlFailed if patching a run with itself changes it, or patching from layer 0 does
    not give the donor's run.
    """
    chosen = (
        list(bands)
        if bands is not None
        else [(layer, None) for layer in range(engine.n_blocks + 1)]
    )

    def work(part: list[Pair]) -> list[dict[str, Any]]:
        record = Recorder(engine, benchmark, task, by == "picture", length)
        rows: list[CrossPatch] = []
        kept: list[tuple[Pair, CrossPatch]] = []
        for pair in part:
            target, donor = record(pair.target), record(pair.donor, pair.target)
            if (target.n, target.span) != (donor.n, donor.span):
                continue
            kept += [(pair, CrossPatch(target, donor, layer, until)) for layer, until in chosen]
        if not kept:
            return []
        rows = [row for _, row in kept]
        _itself(engine, rows[0].target)
        logits, said = engine.answers(rows, length)
        _full_patch(engine, rows, logits)
        return [
            _patched(engine, pair, row, task, by, logits[i], said[i])
            for i, (pair, row) in enumerate(kept)
        ]

    what = {"experiment": "cross-patch", "task": task, "by": by, "bands": chosen, "length": length}
    groups = together(pairs, lambda pair: pair.target.question_id)
    return stored(engine, benchmark, groups, work, what, labels, folder)


def _patched(
    engine: Engine, pair: Pair, row: CrossPatch, task: Task, by: str, logits: Tensor, said: str
) -> dict[str, Any]:
    first = [
        first_token(engine.owner, prompt_of(q, task, by == "picture"), accepted(q, task)[0])
        for q in (pair.target, pair.donor)
    ]

    def lead(run: Tensor) -> float:
        return (run[first[0]] - run[first[1]]).item()

    own, donors = lead(row.target.logits), lead(row.donor.logits)
    apart = own - donors
    calibrated = (own - lead(logits)) / apart if abs(apart) >= LEAST else None
    right = [matches(said, accepted(q, task)) for q in (pair.target, pair.donor)]
    says = "neither" if right[0] == right[1] else "target" if right[0] else "donor"
    return _record(pair.target, task, by, said) | {
        "donor_id": pair.donor.entity_id,
        "same_type": pair.same_type,
        "layer": row.layer,
        "until": row.until,
        "says": says,
        "calibrated": calibrated,
        "computation": engine.computation(row),
    }


def _itself(engine: Engine, target: Recording) -> None:
    """Patching a run with itself, half-way up, must change nothing."""
    row = CrossPatch(target, target, engine.n_blocks // 2)
    if not engine.close(engine.logits([row])[0], target.logits):
        raise ControlFailed("Patching a run with itself changed it; results would mean nothing.")


def _full_patch(engine: Engine, rows: Sequence[CrossPatch], logits: Tensor) -> None:
    """Patching from layer 0 must reproduce the donor's run, from the top the target's."""
    for row, got in zip(rows, logits, strict=True):
        wanted = {0: row.donor, engine.n_blocks: row.target}.get(row.layer)
        if row.until is None and wanted is not None and not engine.close(got, wanted.logits):
            raise ControlFailed(
                f"Patching at layer {row.layer} did not reproduce the "
                f"{'donor' if row.layer == 0 else 'target'}'s own run; results would mean nothing."
            )


def part_patch(
    engine: Engine,
    benchmark: Benchmark,
    pairs: Sequence[Pair],
    task: Task = "identify",
    labels: dict[str, Any] | None = None,
    length: int = LENGTH,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Cross-patch only the last quarter of the picture's positions, or only the others.

    Columns as of :func:`cross_patch`, and ``part``.

    Raises UnsupportedSite where pictures have no positions in the stream.
    """
    late = engine.site.late if engine.site is not None else ()

    def work(part: list[Pair]) -> list[dict[str, Any]]:
        record = Recorder(engine, benchmark, task, True, length, from_start=True)
        planned = []
        for pair in part:
            target, donor = record(pair.target), record(pair.donor, pair.target)
            for name, positions in _quarters(target).items():
                at = [p - donor.first for p in positions]
                for layer in range(engine.n_blocks):
                    # Where more of the picture is added on the way up, it has to be the donor's.
                    layers = [layer, *(b for b in late if b > layer)]
                    values = {b: donor.resid[b, at] for b in layers}
                    edit = Write(target, "resid", tuple(positions), values)
                    planned.append((pair, name, layer, edit))
        rows = []
        answers = engine.answers([edit for *_, edit in planned], length)[1]
        for (pair, name, layer, edit), said in zip(planned, answers, strict=True):
            right = [matches(said, accepted(q, task)) for q in (pair.target, pair.donor)]
            says = "neither" if right[0] == right[1] else "target" if right[0] else "donor"
            rows.append(
                _record(pair.target, task, "picture", said)
                | {
                    "donor_id": pair.donor.entity_id,
                    "part": name,
                    "layer": layer,
                    "says": says,
                    "computation": engine.computation(edit),
                }
            )
        return rows

    what = {"experiment": "part-patch", "task": task, "by": "picture", "length": length}
    groups = together(pairs, lambda pair: pair.target.question_id)
    return stored(engine, benchmark, groups, work, what, labels, folder)


def _quarters(target: Recording) -> dict[str, list[int]]:
    start, stop = target.span
    if start == stop:
        raise UnsupportedSite("A picture shown through cross-attention has no positions to part.")
    at = stop - max(1, (stop - start) // 4)
    return {"last quarter": list(range(at, stop)), "the others": list(range(start, at))}

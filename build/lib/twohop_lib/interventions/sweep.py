"""One sweep for every experiment: edits of recorded runs, controls that raise, work that is kept.

An experiment says which edits it makes of an item's run, which of them (or of further ones) must
give a run that is known, and what its records hold beside the answer. The sweep records the runs,
carries out the edits of a few items as one batch, holds every control, and stores what is done as
it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import pandas as pd
import torch
from torch import Tensor

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.errors import TwohopError
from twohop_lib.interventions.edits import Edit
from twohop_lib.interventions.pairs import NothingLeft, Pair
from twohop_lib.interventions.recorder import Recorder
from twohop_lib.interventions.recording import Recording
from twohop_lib.interventions.splice import Engine
from twohop_lib.runs import store
from twohop_lib.runs.conditions import CONDITIONS, judge

#: Targets whose recordings are held at once.
AT_ONCE = 4
#: Tokens of an answer.
MAX_NEW_TOKENS = 8

Item = TypeVar("Item", Question, Pair)


class ControlFailed(TwohopError):
    """A control of an experiment did not come out as it must; its results would mean nothing."""


class Kept(TypedDict, total=False):
    """What every experiment takes beside its own parameters.

    ``labels`` are columns of the records (by default ``model`` and ``seed``), ``max_new_tokens``
    those of an answer (:data:`MAX_NEW_TOKENS`), ``folder`` is where finished work is stored.
    """

    labels: Mapping[str, Any]
    max_new_tokens: int
    folder: str | Path | None


@dataclass(frozen=True, eq=False)
class Trial:
    """An edit, and the columns of the records that say where it is made."""

    edit: Edit
    site: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Control:
    """An edit, one of the sweep's own or a further one, whose run must be one that is known.

    Its next-token logits must be those of ``wanted``; ``says`` is what did not hold otherwise
    ("Patching a run with itself changed it"). ``away`` is the run that it must be told from; None:
    of the item's own trials the one that is farthest from ``wanted``.
    """

    edit: Edit
    wanted: Recording
    says: str
    away: Recording | None = None


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of one trial.

    ``logits`` ``[vocab]`` are those of the next token (float32), ``said`` is the greedy answer,
    ``alone`` what the target's run says when left alone (None if no control gives that run).
    """

    edit: Edit
    logits: Tensor
    said: str
    alone: str | None


def sweep(
    engine: Engine,
    benchmark: Benchmark,
    items: Sequence[Item],
    *,
    experiment: str,
    condition: str,
    edits: Callable[[Item, Recorder], Iterable[Trial]],
    control: Callable[[Item, Recorder, list[Trial]], Iterable[Control]],
    record: Callable[[Item, Outcome], Mapping[str, Any]],
    from_start: bool = False,
    settings: Mapping[str, Any] | None = None,
    types: Mapping[str, str] | None = None,
    others: Sequence[Engine] = (),
    labels: Mapping[str, Any] | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Run ``edits(item, recorded)`` of every item; returns one answer record a trial.

    Items (questions, or pairs of target and donor) are asked in ``condition``; those of
    :data:`AT_ONCE` targets are run, and with
    ``folder`` stored, as one part. ``recorded`` records them (with ``from_start`` as in
    :meth:`Engine.record`); ``control(item, recorded, trials)`` gives an item's controls. A record
    is that of the target's answer (:func:`~twohop_lib.runs.conditions.judge`) with ``labels``,
    ``experiment, intervention, task, by``, ``donor_id`` of a pair, the trial's site,
    ``computation`` ("splice" or "reference") and what ``record(item, outcome)`` adds. ``settings``
    are what else the results depend on, as JSON can hold it, and ``others`` further engines that
    the edits use. ``types`` are those of columns that may be null.

    Raises ControlFailed if a control fails or an item has none; NothingLeft if no item has a trial.
    """
    how = CONDITIONS[condition]
    labels = {"model": engine.owner.name, "seed": benchmark.seed} | dict(labels or {})
    about = {
        "experiment": experiment,
        "intervention": experiment,
        "task": "identify" if how.names else "fact",
        "by": "name" if how.answered_by == "backbone" else "picture",
    }
    recorded = Recorder(engine, benchmark, condition, max_new_tokens, from_start)
    key: dict[str, Any] = {}
    if folder is not None:
        key = {
            **(settings or {}),
            **labels,
            **about,
            "condition": condition,
            **store.code_key(),
            "max_new_tokens": max_new_tokens,
            "weights": [store.model_key(e.owner) for e in (engine, *others)],
            "benchmark": benchmark.hash,
        }

    def run(part: list[Item]) -> pd.DataFrame:
        planned = []
        for item in part:
            trials = list(edits(item, recorded))
            if trials:
                planned.append((item, trials, list(control(item, recorded, trials))))
        outcomes = _run(engine, [(t, c) for _, t, c in planned], max_new_tokens)
        return pd.DataFrame(
            [
                {
                    **labels,
                    **judge(_target(item), condition, outcome.said),
                    "cut": getattr(outcome.said, "cut", False),
                    **about,
                    **({"donor_id": item.donor.entity_id} if isinstance(item, Pair) else {}),
                    **trial.site,
                    **record(item, outcome),
                    "computation": engine.computation(trial.edit),
                }
                for (item, trials, _), found in zip(planned, outcomes, strict=True)
                for trial, outcome in zip(trials, found, strict=True)
            ]
        )

    frames = []
    for part in _parts(items):
        names = [[q.question_id for q in _questions(item)] for item in part]
        frame = store.cached(folder, key | {"items": names}, partial(run, part))
        if len(frame):
            frames.append(frame.astype(dict(types or {})))
    if not frames:
        raise NothingLeft(
            "Nothing is left to run: there is no item, or none has a donor or the positions that "
            "this experiment needs."
        )
    return pd.concat(frames, ignore_index=True)


def _run(
    engine: Engine, planned: list[tuple[list[Trial], list[Control]]], max_new_tokens: int
) -> list[list[Outcome]]:
    """What comes of each item's trials, once all its controls hold."""
    # Edits are told apart by identity; one that is both a trial and a control's is run once.
    edits = list(dict.fromkeys(x.edit for trials, held in planned for x in (*trials, *held)))
    if not edits:
        return []
    logits, said = engine.answers(edits, max_new_tokens)
    at = {edit: i for i, edit in enumerate(edits)}
    found = []
    for trials, held in planned:
        own = torch.stack([logits[at[t.edit]] for t in trials])
        _hold(engine, held, [logits[at[c.edit]] for c in held], own)
        alone = next((said[at[c.edit]] for c in held if c.wanted is c.edit.target), None)
        found.append(
            [Outcome(t.edit, x, said[at[t.edit]], alone) for t, x in zip(trials, own, strict=True)]
        )
    return found


def _hold(engine: Engine, controls: list[Control], got: list[Tensor], own: Tensor) -> None:
    """Raise ControlFailed unless every control's run is the one it must be."""
    if not controls:
        raise ControlFailed("An experiment had no control to hold; its results would mean nothing.")
    for control, logits in zip(controls, got, strict=True):
        wanted = control.wanted.logits
        farthest = own[(own - wanted).abs().amax(-1).argmax()]
        away = farthest if control.away is None else control.away.logits
        found = engine.agreement(logits, wanted, away)
        if not found.ok:
            raise ControlFailed(f"{control.says}; results would mean nothing ({found.words()}).")


def _questions(item: Question | Pair) -> list[Question]:
    return [item.target, item.donor] if isinstance(item, Pair) else [item]


def _target(item: Question | Pair) -> Question:
    return _questions(item)[0]


def _parts(items: Sequence[Item]) -> list[list[Item]]:
    """Items in parts of :data:`AT_ONCE` targets."""
    by: dict[str, list[Item]] = {}
    for item in items:
        by.setdefault(_target(item).question_id, []).append(item)
    groups = list(by.values())
    return [sum(groups[i : i + AT_ONCE], []) for i in range(0, len(groups), AT_ONCE)]

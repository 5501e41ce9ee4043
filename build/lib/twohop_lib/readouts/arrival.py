"""When a picture becomes name-like, and what the backbone's deadline says of the facts then.

*Arrival* is the first layer at which a map that was fitted on other entities finds the names of
half of the entities (:mod:`twohop_lib.readouts.name_likeness`). Layers are counted in the
backbone's own blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from twohop_lib.readouts.layers import first_at_least

#: The share of names found at which a picture counts as name-like.
THRESHOLD = 0.5


def arrival(found: pd.DataFrame) -> int | None:
    """The first layer at which the share of names found passes the threshold; None if never.

    ``found`` has one row an entity and layer: ``layer``, ``found``.
    """
    return first_at_least(found.groupby("layer")["found"].mean(), THRESHOLD)


def arrivals(found: pd.DataFrame) -> pd.DataFrame:
    """The highest share of names found at any layer, the highest before arrival, and arrival.

    Returns ``model, seed, peak, before, arrives, n_entities``; ``arrives`` is NaN where the
    threshold is never passed (then ``before`` is the peak), ``before`` where it is passed at the
    first layer.
    """
    rows = []
    for key, part in found.groupby(["model", "seed"], sort=False):
        share = part.groupby("layer")["found"].mean()
        at = first_at_least(share, THRESHOLD)
        before = share if at is None else share[share.index < at]
        rows.append((*key, share.max(), before.max(), at, part["entity_id"].nunique()))
    columns = ["model", "seed", "peak", "before", "arrives", "n_entities"]
    table = pd.DataFrame(rows, columns=columns)
    return table.astype({"peak": float, "before": float, "arrives": float})


def recalled_by_layer(written: pd.DataFrame, state: int) -> pd.Series:
    """The share of facts that come when the entity's state after ``state`` blocks is written.

    ``written`` are records of :func:`twohop_lib.interventions.deadlines.recall_deadline`. Indexed
    by the layer at which it is written.
    """
    entity = written[(written["arm"] == "entity") & (written["state"] == state)]
    return entity.groupby("layer")["correct"].mean()


def predicted(arrives: int | None, recalled: pd.Series, floor: float, state: int) -> float:
    """The share of facts that the deadline leaves to an entity that arrives at a layer.

    ``floor`` is the share that comes with nothing written. A state that arrives before the layer
    it was taken from (``state``) has the whole way ahead.
    """
    return floor if arrives is None else float(recalled.get(max(arrives, state), floor))


def predictions(
    likeness: pd.DataFrame, written: pd.DataFrame, answers: pd.DataFrame, state: int
) -> pd.DataFrame:
    """Facts by picture, predicted from arrival and the deadline of the same world, and measured.

    ``likeness`` (``model, seed, layer, found``), ``written`` (deadlines of each world's backbone)
    and ``answers`` (answer records in the conditions identify and by_picture) may be of several
    models and worlds. Measured on recognised entities; on all, where a model recognises none.
    Returns ``model, seed, arrives, predicted, measured``, sorted.
    """
    rows = []
    for (model, seed), found in likeness.groupby(["model", "seed"]):
        own = written[written["seed"] == seed]
        floor = own.loc[own["arm"] == "nothing", "correct"].mean()
        arrives = arrival(found)
        asked = answers[(answers["model"] == model) & (answers["seed"] == seed)]
        rows.append(
            {
                "model": model,
                "seed": seed,
                "arrives": arrives,
                "predicted": predicted(arrives, recalled_by_layer(own, state), floor, state),
                "measured": _by_picture(asked),
            }
        )
    return pd.DataFrame(rows).astype({"arrives": float})


@dataclass(frozen=True)
class Fit:
    """How predicted and measured shares agree, over n models; ``worst`` is the row furthest off."""

    mean_off: float
    worst_off: float
    worst: pd.Series
    correlation: float | None
    n: int


def fit(table: pd.DataFrame) -> Fit:
    """Compare the columns of :func:`predictions`; no correlation over fewer than three models."""
    off = (table["predicted"] - table["measured"]).abs()
    return Fit(
        mean_off=float(off.mean()),
        worst_off=float(off.max()),
        worst=table.loc[off.idxmax()],
        correlation=float(np.corrcoef(table["predicted"], table["measured"])[0, 1])
        if len(table) > 2
        else None,
        n=len(table),
    )


def _by_picture(answers: pd.DataFrame) -> float:
    named = answers[(answers["condition"] == "identify") & answers["correct"].astype(bool)]
    asked = answers[answers["condition"] == "by_picture"]
    if len(named):
        asked = asked[asked["entity_id"].isin(set(named["entity_id"]))]
    return float(asked["correct"].mean())

"""When a picture becomes name-like, and what the backbone's deadline says of the facts then.

*Arrival* is the first layer at which a map that was fitted on other entities finds the names of
half of the entities (:mod:`twohop_lib.readouts.name_likeness`). Layers are counted in the
backbone's own blocks.
"""

from __future__ import annotations

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

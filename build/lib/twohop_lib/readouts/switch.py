"""How a sweep's outcome goes with the layer, and at which layer it turns.

One axis serves all three experiments: how many blocks (0 … x - 1) read the picture undisturbed. A
cross-patch at layer l leaves l of them; freezing at layer k leaves k + 1; cutting attention to the
picture in blocks b and above leaves b.

An item of a cross-patch is a pair of entities: its intervals cluster targets *and* donors
(:mod:`twohop_lib.stats`). Frames are records of one experiment, with ``seed`` and ``entity_id``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import leastsq
from scipy.special import expit

from twohop_lib.errors import TwohopError
from twohop_lib.readouts.captions import NOT_MEASURED, spread_words
from twohop_lib.readouts.shares import ALL_WORLDS, share_table
from twohop_lib.stats import DONOR, ENTITY, Interval, entity_bootstrap, proportion_interval

N_BOOT = 400
#: A quantity that moves by less than this from end to end has not turned anywhere.
LEAST_RISE = 0.25
#: The least width, in layers, of a fitted curve: from there on it is a step.
NARROWEST = 0.05
#: Where fewer than this share is right without freezing, no share of it is spoken of.
LEAST_FREE = 0.1
#: Experiments whose items are pairs of a target and a donor.
PAIRED = ("cross-patch", "part-patch")
NEVER = "none"


def blocks_read(frame: pd.DataFrame) -> pd.Series:
    """How many blocks read the picture undisturbed, for each row of a sweep.

    Raises TwohopError for bands, for knockouts other than from above, and for several experiments.
    """
    kind = frame["experiment"]
    if (kind == "cross-patch").all():
        if frame["until"].notna().any():
            raise TwohopError("A band of layers has no single switch; take the sweep to the top.")
        return frame["layer"].astype(int)
    if (kind == "freeze").all():
        return frame["layer"].astype(int) + 1
    if (kind == "knockout").all() and (frame["mode"] == "above").all():
        return frame["start"].astype(int)
    raise TwohopError(
        "Blocks that read the picture are counted for one experiment at a time, knockouts from "
        "above."
    )


def target_gained(frame: pd.DataFrame) -> pd.Series:
    """Whether the answer is the target's, for each row of a cross-patch."""
    return frame["says"].eq("target")


def balance(frame: pd.DataFrame) -> pd.Series:
    """Target against donor, for each row of a cross-patch: 1 target, 0 donor, ½ neither.

    Where most answers are neither's, half of it says little: see :func:`target_gained`
    instead.
    """
    return frame["says"].map({"target": 1.0, "donor": 0.0, "neither": 0.5}).astype(float)


def curve(
    frame: pd.DataFrame,
    value: str | tuple[str, str],
    x: str = "blocks_read",
    by: Sequence[str] = ("model",),
) -> pd.DataFrame:
    """Mean of ``value`` at each ``x``, with 95 % intervals from resampling entities.

    ``value`` is a column, or (numerator, denominator) for a ratio of means. Returns ``*by, x,
    value, low, high, n_items, n_entities``; rows without a value are left out.
    """
    return share_table(frame, value, [*by, x], donor=_donor(frame), n_boot=N_BOOT)


def switch_layer(frame: pd.DataFrame, value: str, x: str = "blocks_read") -> Interval:
    """The ``x`` at which the mean of ``value`` (0 … 1, rising) passes one half.

    A logistic curve is fitted to the means at each ``x``; the interval resamples entities (of
    several worlds: worlds, then entities within each). No estimate if the means stay on one side
    of one half, or rise by less than :data:`LEAST_RISE` from first to last. Items without a value
    at some ``x`` are left out.

    Where every item turns alike, resampling cannot move the curve. The interval is then the two
    layers that it would give if as many exceptions as Wilson's interval allows for 0 of n
    entities turned at the first layer, or never.
    """
    donor = _donor(frame)
    keys = list(dict.fromkeys([*ENTITY, *(donor or ())]))
    table = frame.pivot_table(index=keys, columns=x, values=value, aggfunc="mean")
    table = table.astype(float).dropna()
    at, values = table.columns.to_numpy(float), table.to_numpy()
    ids = table.index.to_frame(index=False)
    # A target counts once, however many donors it has.
    weight = 1 / ids.groupby(list(ENTITY))[ENTITY[-1]].transform("size").to_numpy()[:, None]

    def turns(means: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.apply_along_axis(
            lambda row: crossing(at, row), -1, means[..., :-1] / means[..., -1:]
        )

    found = entity_bootstrap(
        np.hstack([weight * values, weight]),
        ids[list(ENTITY)],
        turns,
        donors=None if donor is None else ids[list(donor)],
        worlds=ids["seed"],
        n_boot=N_BOOT,
    )
    if found.estimate is None or np.ptp(values, axis=0).any():
        return found
    n = min(len(ids[list(key)].drop_duplicates()) for key in (ENTITY, donor or ENTITY))
    exceptions = proportion_interval(0, n).high
    first = crossing(at, values[0] * (1 - exceptions) + exceptions)
    last = crossing(at, values[0] * (1 - exceptions))
    return replace(found, low=_defined(first), high=_defined(last))


def crossing(at: NDArray[np.float64], means: NDArray[np.float64]) -> float:
    """Where a logistic curve fitted to ``means`` at ``at`` passes one half, or NaN."""
    if not len(means) or not np.isfinite(means).all() or means.min() > 0.5 or means.max() < 0.5:
        return float("nan")
    if means[-1] - means[0] < LEAST_RISE:
        return float("nan")
    widest = max(at.max() - at.min(), 1.0)

    def width(free: float) -> float:
        # A sine keeps the width within its bounds, so that a fast unbounded fit will do.
        return NARROWEST + (widest - NARROWEST) * (np.sin(free) + 1) / 2

    start = np.arcsin(2 * (0.5 - NARROWEST) / (widest - NARROWEST) - 1)
    # A step between two layers fits alike over a range of widths, so the fit need not come to rest.
    found, *_ = leastsq(
        lambda p: expit((at - p[0]) / width(p[1])) - means,
        (at[np.abs(means - 0.5).argmin()], start),
        maxfev=300,
        full_output=True,
    )
    return float(np.clip(found[0], at.min() - 1, at.max() + 1))


def switch_table(
    frame: pd.DataFrame,
    value: str,
    by: Sequence[str] = ("model",),
    x: str = "blocks_read",
    n_blocks: Mapping[str, int] | None = None,
) -> pd.DataFrame:
    """:func:`switch_layer` in each group: ``*by, switch, low, high, n_items, n_entities``.

    ``n_blocks`` gives each model's blocks for a column ``relative``, the switch as a share of them.
    """
    rows = []
    for key, part in frame.groupby(list(by), sort=False):
        found = switch_layer(part, value, x)
        row = dict(zip(by, key, strict=True)) | {
            "switch": found.estimate,
            "low": found.low,
            "high": found.high,
            "n_items": found.n_items,
            "n_entities": found.n_entities,
        }
        if n_blocks:
            row["relative"] = (
                None if found.estimate is None else found.estimate / n_blocks[row["model"]]
            )
        rows.append(row)
    columns = [*by, "switch", "low", "high", "n_items", "n_entities"]
    return pd.DataFrame(rows, columns=[*columns, *(["relative"] if n_blocks else [])])


def switches_by_world(
    frame: pd.DataFrame, value: str, by: Sequence[str] = ("model",)
) -> pd.DataFrame:
    """Switch layers in each world and over all of them, in words: ``by`` by world.

    A column for each seed and :data:`~twohop_lib.readouts.shares.ALL_WORLDS`, for groups seen in
    several worlds. As :func:`switch_words` puts it; a dash for worlds that were not swept.
    """
    each = switch_table(frame, value, [*by, "seed"])
    each = each.rename(columns={"seed": "world"}).astype({"world": str})
    several = frame.groupby(list(by))["seed"].transform("nunique") > 1
    parts = [each]
    if several.any():
        parts.append(switch_table(frame[several], value, by))
    table = pd.concat(parts, ignore_index=True).fillna({"world": ALL_WORLDS})
    words = [switch_words(r.switch, r.low, r.high) for r in table.itertuples()]
    wide = table.assign(switch=words).pivot(index=list(by), columns="world", values="switch")
    return wide.fillna(NOT_MEASURED)


def switch_words(
    switch: float | None, low: float | None = None, high: float | None = None, digits: int = 1
) -> str:
    """A switch layer in words: ``2.5 [2.1, 2.8]``, ``2.5`` or ``none``."""
    if switch is None or pd.isna(switch):
        return NEVER
    return f"{switch:.{digits}f}{spread_words(low, high, digits)}"


def retained(frame: pd.DataFrame, by: Sequence[str] = ("model", "task", "until")) -> pd.DataFrame:
    """Add to a freeze's records what each answer is worth against those without freezing.

    ``free`` is the mean of ``correct`` at k = T in each group of ``by``, ``retained`` the share
    ``correct / free``; rows whose ``free`` is at most :data:`LEAST_FREE` are left out.
    """
    unfrozen = frame[frame["layer"] == frame["until"]]
    free = unfrozen.groupby(list(by))["correct"].mean().rename("free").reset_index()
    both = frame.merge(free, on=list(by))
    both = both[both["free"] > LEAST_FREE]
    return both.assign(retained=both["correct"].astype(float) / both["free"])


def to_the_top(frame: pd.DataFrame) -> pd.DataFrame:
    """A freeze's records up to the highest block T that each model was frozen to."""
    return frame[frame["until"] == frame.groupby("model")["until"].transform("max")]


def spread_over_experiments(table: pd.DataFrame) -> pd.DataFrame:
    """The least and the greatest ``switch`` of each model: ``min``, ``max``, indexed by model."""
    return table.dropna(subset=["switch"]).groupby("model")["switch"].agg(["min", "max"])


def in_order(table: pd.DataFrame, models: Sequence[str]) -> tuple[int, int]:
    """In how many worlds the models switch one after another, and in how many all were swept.

    A model without a switch is after no other and before no other.
    """
    models = list(models)
    wide = table[table["model"].isin(models)].pivot(index="seed", columns="model")
    swept = wide["n_entities"].reindex(columns=models).notna().all(axis=1)
    at = wide["switch"].reindex(columns=models)[swept].astype(float)
    rising = [at[a] < at[b] for a, b in zip(models[:-1], models[1:], strict=True)]
    return int(np.logical_and.reduce(rising).sum()), len(at)


def _donor(frame: pd.DataFrame) -> tuple[str, ...] | None:
    """The columns of the donor, if the frame's items are pairs.

    Raises TwohopError if only some are.
    """
    if "experiment" not in frame:
        return None
    paired = frame["experiment"].isin(PAIRED)
    if paired.any() and not paired.all():
        raise TwohopError("Give one experiment at a time: only some of these rows have donors.")
    return DONOR if paired.any() else None


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else value

"""Depth: how a sweep's outcome goes with the layer, and at which layer it turns.

One axis serves all three experiments: how many blocks (0 … x − 1) read the picture undisturbed. A
cross-patch at layer l leaves l of them; freezing at layer k leaves k + 1; cutting attention to the
picture in blocks b and above leaves b.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.special import expit

from twohop_lib import stats
from twohop_lib.errors import TwohopError

N_BOOT = 400
#: A quantity that moves by less than this from end to end has not turned anywhere.
LEAST_RISE = 0.25


def undisturbed(frame: pd.DataFrame) -> pd.Series:
    """How many blocks read the picture undisturbed, for each row of a sweep.

    Raises TwohopError for bands, and for knockouts other than from above.
    """
    kind = frame["experiment"]
    if (kind == "cross-patch").all():
        if frame["until"].notna().any():
            raise TwohopError("A band of layers has no single depth; take the sweep to the top.")
        return frame["layer"].astype(int)
    if (kind == "freeze").all():
        return frame["layer"].astype(int) + 1
    if (kind == "knockout").all() and (frame["mode"] == "above").all():
        return frame["start"].astype(int)
    raise TwohopError("Depth is defined for one experiment at a time, knockouts from above.")


def balance(frame: pd.DataFrame) -> pd.Series:
    """Target against donor, for each row of a cross-patch: 1 target, 0 donor, ½ neither."""
    return frame["says"].map({"target": 1.0, "donor": 0.0, "neither": 0.5}).astype(float)


def curve(
    frame: pd.DataFrame, value: str, x: str = "depth", by: Sequence[str] = ("model",)
) -> pd.DataFrame:
    """Mean of ``value`` at each ``x``, with 95 % intervals from resampling entities.

    Returns ``by``, ``x``, ``value, low, high, n_items, n_entities``; rows without a value are
    left out.
    """
    rows = []
    kept = frame.dropna(subset=[value])
    for key, part in kept.groupby([*by, x], sort=False):
        found = stats.entity_bootstrap(
            part[value].astype(float).to_numpy(), part["entity_id"], n_boot=N_BOOT
        )
        rows.append(
            dict(zip([*by, x], key, strict=True))
            | {
                "value": found.estimate,
                "low": found.low,
                "high": found.high,
                "n_items": found.n_items,
                "n_entities": found.n_entities,
            }
        )
    columns = [*by, x, "value", "low", "high", "n_items", "n_entities"]
    return pd.DataFrame(rows, columns=columns)


def switch(frame: pd.DataFrame, value: str, x: str = "depth") -> stats.Interval:
    """The ``x`` at which the mean of ``value`` (0 … 1, rising) passes one half.

    A logistic curve is fitted to the means at each ``x``; the interval resamples entities. No
    estimate if the means stay on one side of one half, or rise by less than
    :data:`LEAST_RISE` from first to last.
    """
    table = frame.pivot_table(index="entity_id", columns=x, values=value, aggfunc="mean")
    table = table.astype(float).dropna()
    depths, values = table.columns.to_numpy(float), table.to_numpy()
    return stats.resample_entities(
        list(table.index), lambda rows: crossing(depths, values[rows].mean(0)), n_boot=N_BOOT
    )


def crossing(depths: np.ndarray, means: np.ndarray) -> float:
    """Where a logistic curve fitted to ``means`` at ``depths`` passes one half, or NaN."""
    if not len(means) or means.min() > 0.5 or means.max() < 0.5:
        return float("nan")
    if means[-1] - means[0] < LEAST_RISE:
        return float("nan")
    guess = depths[np.abs(means - 0.5).argmin()]
    reach = depths.max() - depths.min()
    bounds = ([depths.min() - 1, 0.05], [depths.max() + 1, max(reach, 1.0)])
    try:
        found, _ = curve_fit(
            lambda d, at, width: expit((d - at) / width),
            depths,
            means,
            p0=(guess, 0.5),
            bounds=bounds,
            maxfev=500,
        )
    except (RuntimeError, ValueError, OptimizeWarning):
        return float("nan")
    return float(found[0])


def switches(
    frame: pd.DataFrame,
    value: str,
    by: Sequence[str] = ("model",),
    x: str = "depth",
    n_blocks: dict[str, int] | None = None,
) -> pd.DataFrame:
    """:func:`switch` for each group, as a layer (``switch, low, high``) and as a share of depth.

    ``n_blocks`` gives each model's blocks for ``relative``; without it that column is left out.
    """
    rows = []
    for key, part in frame.groupby(list(by), sort=False):
        found = switch(part, value, x)
        row = dict(zip(by, key, strict=True)) | {
            "switch": found.estimate,
            "low": found.low,
            "high": found.high,
            "n_items": len(part) // max(1, part[x].nunique()),
            "n_entities": found.n_entities,
        }
        if n_blocks:
            row["relative"] = (
                None if row["switch"] is None else row["switch"] / n_blocks[row["model"]]
            )
        rows.append(row)
    columns = [*by, "switch", "low", "high", "n_items", "n_entities"]
    return pd.DataFrame(rows, columns=[*columns, *(["relative"] if n_blocks else [])])

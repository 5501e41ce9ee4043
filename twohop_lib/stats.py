"""Intervals and tests that respect how the data were collected.

Several facts are asked about one entity, so the answers about it are not independent: an
interval that treats every question as a fresh draw is too narrow. The bootstraps here resample
*entities*, each with all of its items. Everything is a fraction (0.177, not 17.7 points), and a
quantity that the data do not determine is ``None``, never a number that looks like one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats as scipy_stats

from twohop_lib.errors import TwohopError

FloatArray = NDArray[np.float64]
MeansStatistic = Callable[[FloatArray], FloatArray]
NamedStatistic = Literal["mean", "ratio", "difference", "relative_drop"]

#: A resample can leave a ratio undefined (an all-zero denominator). Such draws are left out, and
#: beyond this share of them no interval is given.
UNDEFINED_DRAWS_ALLOWED = 0.05


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval and the sizes of the sample behind it.

    ``estimate`` is None if there was nothing to estimate from; ``low`` and ``high`` are None
    also where a single entity leaves the spread unknown.
    """

    estimate: float | None
    low: float | None
    high: float | None
    n_items: int
    n_entities: int
    level: float = 0.95

    @classmethod
    def empty(cls, n_items: int = 0, n_entities: int = 0, level: float = 0.95) -> Interval:
        """Return the interval of a quantity that these data do not determine."""
        return cls(None, None, None, n_items, n_entities, level)

    def words(self, digits: int) -> str:
        """Return the estimate with its spread, if known, for prose: ``0.75 [0.60, 0.87]``."""
        if self.estimate is None:
            return "none"
        spread = "" if self.low is None else f" [{self.low:.{digits}f}, {self.high:.{digits}f}]"
        return f"{self.estimate:.{digits}f}{spread}"

    def columns(self, name: str) -> dict[str, float | None]:
        """Return ``{name, name_low, name_high}`` for a tidy frame."""
        return {name: self.estimate, f"{name}_low": self.low, f"{name}_high": self.high}


@dataclass(frozen=True)
class PairedTest:
    """A Wilcoxon signed-rank test over per-entity means (``None`` where there is no entity)."""

    statistic: float | None
    p_value: float | None
    mean_difference: float | None
    n_items: int
    n_entities: int


def _first(means: FloatArray) -> FloatArray:
    return means[..., 0]


def _ratio(means: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return means[..., 0] / means[..., 1]


def _difference(means: FloatArray) -> FloatArray:
    return means[..., 0] - means[..., 1]


def _relative_drop(means: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return (means[..., 0] - means[..., 1]) / means[..., 0]


#: Named statistic -> (function of the column means, how many columns it reads).
STATISTICS: dict[str, tuple[MeansStatistic, int]] = {
    "mean": (_first, 1),
    "ratio": (_ratio, 2),
    "difference": (_difference, 2),
    "relative_drop": (_relative_drop, 2),
}


def entity_bootstrap(
    values: pd.DataFrame | pd.Series | ArrayLike,
    entities: Sequence[Any] | pd.Series | NDArray[Any],
    statistic: NamedStatistic | MeansStatistic = "mean",
    *,
    n_boot: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of a statistic of means, resampling entities with all their items.

    ``values`` holds one row per item and one column per quantity, shape (items,) or
    (items, columns); ``entities`` names each row's entity. ``statistic`` is ``"mean"`` of the
    only column, ``"ratio"`` first/second, ``"difference"`` first - second, ``"relative_drop"``
    (first - second)/first, or a vectorised function from column means, shape (..., columns), to
    the statistic, shape (...). Items weigh equally; to weigh entities equally, pass one row per
    entity. For a statistic that is no function of means, see :func:`resample_entities`.

    Raises TwohopError if a value is missing or the shapes disagree.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim == 1:
        table = table[:, None]
    codes, n_entities = _entity_codes(entities, len(table))
    function = _resolve(statistic, table.shape[1])
    if len(table) == 0:
        return Interval.empty(level=level)
    if not np.isfinite(table).all():
        raise TwohopError(
            "Values to bootstrap contain missing entries; drop or fill those items first."
        )
    # Sums per entity are all a statistic of means needs, so a draw costs entities, not items.
    sums = np.zeros((n_entities, table.shape[1] + 1))
    np.add.at(sums, codes, np.column_stack([table, np.ones(len(table))]))

    def from_entities(drawn: NDArray[np.intp], axis: int = -1) -> FloatArray:
        if axis not in (-1, drawn.ndim - 1):
            raise TwohopError("Entities are drawn along the last axis only.")
        totals = sums[drawn].sum(axis=-2)
        return function(totals[..., :-1] / totals[..., -1:])

    estimate = float(function(table.mean(axis=0)))
    batch = max(1, 4_000_000 // max(1, n_entities))
    draws = _draws(from_entities, n_entities, n_boot, seed, vectorized=True, batch=batch)
    return _percentile(estimate, draws, len(table), n_entities, level)


def resample_entities(
    entities: Sequence[Any] | pd.Series | NDArray[Any],
    statistic: Callable[[NDArray[np.intp]], float],
    *,
    n_boot: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of any statistic (AUROC, a fitted layer), resampling entities.

    ``statistic`` receives the row numbers to use, with repeats, and returns one number. It is
    called once per draw; for means and their ratios :func:`entity_bootstrap` is much faster.
    """
    codes, n_entities = _entity_codes(entities, len(entities))
    if n_entities == 0:
        return Interval.empty(level=level)
    order = np.argsort(codes, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(codes, minlength=n_entities))[:-1])

    def from_entities(drawn: NDArray[np.intp]) -> float:
        return float(statistic(np.concatenate([rows[entity] for entity in drawn])))

    estimate = float(statistic(np.arange(len(codes))))
    draws = _draws(from_entities, n_entities, n_boot, seed, vectorized=False, batch=None)
    return _percentile(estimate, draws, len(codes), n_entities, level)


def proportion_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson interval of a proportion of *independent* trials (one item per entity).

    Unlike a bootstrap it keeps a sensible width at 0 of n and n of n.
    """
    if not 0 <= successes <= n:
        raise TwohopError(f"A proportion needs 0 <= successes <= n, not {successes} of {n}.")
    if n == 0:
        return Interval.empty(level=level)
    result = scipy_stats.binomtest(int(successes), int(n))
    interval = result.proportion_ci(confidence_level=level, method="wilson")
    return Interval(successes / n, float(interval.low), float(interval.high), n, n, level)


def proportions(frame: pd.DataFrame, by: Sequence[str], column: str) -> pd.DataFrame:
    """Share of true values of ``column`` in each group of ``by``, with Wilson intervals.

    Groups keep the order in which they come. Returns columns ``*by, share, low, high, n``; the
    trials in a group must be independent, as for :func:`proportion_interval`.
    """
    rows = []
    for group, right in frame.groupby(list(by), sort=False)[column]:
        found = proportion_interval(int(right.sum()), len(right))
        rows.append((*group, found.estimate, found.low, found.high, found.n_items))
    return pd.DataFrame(rows, columns=[*by, "share", "low", "high", "n"])


def wilcoxon_by_entity(
    first: pd.Series | ArrayLike,
    second: pd.Series | ArrayLike,
    entities: Sequence[Any] | pd.Series | NDArray[Any],
) -> PairedTest:
    """Two-sided Wilcoxon signed-rank test of ``first`` against ``second`` over entity means.

    Where no entity differs there is no evidence of a difference: p is 1.
    """
    arms = np.column_stack(
        [np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)]
    )
    codes, n_entities = _entity_codes(entities, len(arms))
    if n_entities == 0:
        return PairedTest(None, None, None, 0, 0)
    if not np.isfinite(arms).all():
        raise TwohopError("Values to compare contain missing entries; drop those items first.")
    counts = np.bincount(codes, minlength=n_entities)
    means = [np.bincount(codes, weights=arm, minlength=n_entities) / counts for arm in arms.T]
    # Equal differences that differ in their last bit are ties, and must rank as such.
    differences = (means[0] - means[1]).round(12)
    mean = float(differences.mean())
    if not differences.any():
        return PairedTest(0.0, 1.0, mean, len(arms), n_entities)
    result = scipy_stats.wilcoxon(differences)
    return PairedTest(float(result.statistic), float(result.pvalue), mean, len(arms), n_entities)


def _resolve(statistic: str | MeansStatistic, n_columns: int) -> MeansStatistic:
    if callable(statistic):
        return statistic
    if statistic not in STATISTICS:
        raise TwohopError(
            f"Unknown statistic {statistic!r}; use one of {', '.join(STATISTICS)} or a function."
        )
    function, wanted = STATISTICS[statistic]
    if wanted != n_columns:
        raise TwohopError(f"Statistic {statistic!r} needs {wanted} column(s), not {n_columns}.")
    return function


def _entity_codes(entities: Any, n_items: int) -> tuple[NDArray[np.intp], int]:
    """Number the entities in sorted order, so that a shuffled frame gives the same draws."""
    codes, labels = pd.factorize(pd.Series(list(entities), dtype=object), sort=True)
    if len(codes) != n_items:
        raise TwohopError(f"{n_items} items came with {len(codes)} entity ids; give one per item.")
    if (codes < 0).any():
        raise TwohopError("Some items have no entity id; every item must belong to an entity.")
    return codes, len(labels)


def _draws(
    statistic: Callable[..., Any],
    n_entities: int,
    n_boot: int,
    seed: int,
    *,
    vectorized: bool,
    batch: int | None,
) -> FloatArray:
    """Return the statistic in ``n_boot`` resamples of the entities; none for one entity."""
    if n_entities < 2:
        return np.empty(0)
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        # Undefined draws are counted and told apart by _percentile, not warned about.
        warnings.simplefilter("ignore", scipy_stats.DegenerateDataWarning)
        result = scipy_stats.bootstrap(
            (np.arange(n_entities),),
            statistic,
            n_resamples=n_boot,
            batch=batch,
            vectorized=vectorized,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    return np.asarray(result.bootstrap_distribution, dtype=np.float64)


def _percentile(
    estimate: float, draws: FloatArray, n_items: int, n_entities: int, level: float
) -> Interval:
    if not math.isfinite(estimate):
        return Interval.empty(n_items, n_entities, level)
    defined = draws[np.isfinite(draws)]
    if len(draws) == 0 or len(defined) < (1 - UNDEFINED_DRAWS_ALLOWED) * len(draws):
        return Interval(estimate, None, None, n_items, n_entities, level)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), n_items, n_entities, level)

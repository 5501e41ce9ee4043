"""Intervals and tests that respect how the data were collected.

Several facts are asked about one entity, so the answers about it are not independent: an
interval that treats every question as a fresh draw is too narrow. The bootstraps here resample
*entities*, each with all of its items. Two things go beyond that:

* **Donors.** An item of a cross-patch is a pair of entities, a target and a donor, and a donor
  serves several targets. Pairs that share an entity in either place go together: entities are
  resampled, and a pair weighs as often as its target and its donor were drawn, less one. That
  counts a pair's own noise twice, once for each of its entities, so the spread of resampled
  pairs is taken off (squared distances from the estimate; this is the dyadic cluster-robust
  variance of Aronow, Samii & Assenova 2015, as a bootstrap). In simulations of 40 to 48 entities
  with 1 to 4 donors each, it covers 89 to 97 % (clusters of targets alone: 69 to 99 %; weights
  c(target) · c(donor), meant for factors crossed more densely: 98 to 100 %, at 1.2 to 1.9 times
  the width).
* **Worlds.** Entities of several worlds (seeds) are nested in them: worlds are resampled, and
  entities within each. Three worlds are few; such an interval says that they differ, not by how
  much a fourth would.

**At the ends.** A percentile bootstrap has width 0 where every entity agrees, which says "certain"
of what is merely unexceptioned. Let u be the upper limit of Wilson's interval for 0 of n entities:

* a mean of 0s and 1s at 0 or 1 gets Wilson's interval on entities, [0, u] or [1 - u, 1];
* a difference of two arms in [0, 1] that agree in every entity gets ±u, Wilson's limit for the
  share of entities in which they differ (and Newcombe's 1998 hybrid interval, if both arms are at
  one end); arms at opposite ends get Newcombe's, [1 - √2 u, 1];
* a relative drop is ±u over its reference where the arms agree, and [1 - u over its reference, 1]
  where the second arm is 0 throughout; a ratio is one minus such a drop.

A function of means, and a statistic of row numbers, keep the percentile interval: what an exception
would do to them is not known here.

Everything is a fraction (0.177, not 17.7 points), and a quantity that the data do not determine is
``None``, never a number that looks like one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats as scipy_stats

from twohop_lib.errors import TwohopError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
MeansStatistic = Callable[[FloatArray], FloatArray]
NamedStatistic = Literal["mean", "ratio", "difference", "relative_drop"]
#: One id for each item, or a frame of the columns that make the id.
Ids = Sequence[Any] | pd.Series | pd.DataFrame | NDArray[Any]

#: The columns that make an entity: ids are counted anew in each world, whose number is ``seed``.
ENTITY = ("seed", "entity_id")
#: The columns that make the donor of a pair; it is of its target's world.
DONOR = ("seed", "donor_id")

#: A resample can leave a statistic undefined (an all-zero denominator, no pair drawn). Such draws
#: are left out, and beyond this share of them no interval is given.
UNDEFINED_DRAWS_ALLOWED = 0.05
#: Numbers that are drawn at a time.
_BATCH = 4_000_000


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
    return means[..., 0] / means[..., 1]


def _difference(means: FloatArray) -> FloatArray:
    return means[..., 0] - means[..., 1]


def _relative_drop(means: FloatArray) -> FloatArray:
    # The reference is the third column, or the first where there is no third.
    reference = means[..., 2 if means.shape[-1] > 2 else 0]
    return (means[..., 0] - means[..., 1]) / reference


#: Named statistic -> (function of the column means, how many columns it may read).
STATISTICS: dict[str, tuple[MeansStatistic, tuple[int, ...]]] = {
    "mean": (_first, (1,)),
    "ratio": (_ratio, (2,)),
    "difference": (_difference, (2,)),
    "relative_drop": (_relative_drop, (2, 3)),
}


def entity_bootstrap(
    values: pd.DataFrame | pd.Series | ArrayLike,
    entities: Ids,
    statistic: NamedStatistic | MeansStatistic = "mean",
    *,
    donors: Ids | None = None,
    worlds: Ids | None = None,
    n_boot: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of a statistic of means, resampling entities with all their items.

    ``values`` holds one row per item and one column per quantity, shape (items,) or
    (items, columns); ``entities`` names each row's entity, ``donors`` its donor if it has one, and
    ``worlds`` the world that its entity is of; each is one id an item or a frame of the columns
    that make the id. ``statistic`` is ``"mean"`` of the only column, ``"ratio"`` first/second,
    ``"difference"`` first - second, ``"relative_drop"`` (first - second)/third (/first, if there
    are two columns), or a vectorised function from column means, shape (..., columns), to the
    statistic, shape (...). Items weigh equally; to weigh entities equally, pass one row per
    entity. For a statistic that is no function of means, see :func:`resample_entities`.

    The interval is the percentile bootstrap's; where every entity agrees that has width 0, and a
    named statistic gets the interval described at the head of this module: a mean of 0s and 1s
    at 0 % or 100 % has Wilson's interval on entities.

    Raises TwohopError if a value is missing or the shapes disagree.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim == 1:
        table = table[:, None]
    clusters = _clusters(entities, donors, worlds, len(table))
    function = _resolve(statistic, table.shape[1])
    if len(table) == 0:
        return Interval.empty(level=level)
    if not np.isfinite(table).all():
        raise TwohopError(
            "Values to bootstrap contain missing entries; drop or fill those items first."
        )
    # Sums per cell are all a statistic of means needs, so a draw costs cells, not items.
    sums = np.zeros((clusters.n_cells, table.shape[1] + 1))
    np.add.at(sums, clusters.cell, np.column_stack([table, np.ones(len(table))]))

    def spread(drawn: _Clusters) -> Interval:
        with np.errstate(divide="ignore", invalid="ignore"):
            estimate = float(function(table.mean(axis=0)))
            totals = (weights @ sums for weights in drawn.weights(n_boot, seed))
            draws = [function(total[:, :-1] / total[:, -1:]) for total in totals]
        return _percentile(estimate, draws, clusters, level)

    found = spread(clusters)
    if clusters.donor is not None:
        bounds = (table.min(), table.max()) if statistic == "mean" else (-np.inf, np.inf)
        found = _less_pairs(found, spread(clusters.pairs()), bounds)
    if isinstance(statistic, str) and found.estimate is not None:
        return _at_the_ends(found, statistic, sums, clusters)
    return found


def crossed_bootstrap(
    values: pd.Series | ArrayLike,
    entities: Ids,
    seeds: Ids,
    *,
    n_boot: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of a mean, resampling entities and, on their own, seeds crossed with them.

    One value, entity and seed an item. With one seed it is that of :func:`entity_bootstrap`; where
    all are 0, or all 1, it is Wilson's on entities.

    Raises TwohopError as :func:`entity_bootstrap` does.
    """
    table = np.asarray(values, dtype=np.float64)
    n_seeds = len(_keys(seeds, len(table)).drop_duplicates())
    plain = entity_bootstrap(table, entities, n_boot=n_boot, seed=seed, level=level)
    if n_seeds < 2 or plain.low is None or set(table) in ({0.0}, {1.0}):
        return plain
    (one,), (other,) = _codes([entities], len(table)), _codes([seeds], len(table))
    sums, sizes = (np.zeros((one.max() + 1, n_seeds)) for _ in range(2))
    np.add.at(sums, (one, other), table)
    np.add.at(sizes, (one, other), 1)
    rng = np.random.default_rng(seed)
    drawn = [rng.multinomial(n, [1 / n] * n, size=n_boot) for n in sums.shape]
    with np.errstate(divide="ignore", invalid="ignore"):
        total, items = (np.einsum("be,es,bs->b", drawn[0], x, drawn[1]) for x in (sums, sizes))
        draws = total / items
    clusters = _clusters(entities, None, None, len(table))
    return _percentile(float(table.mean()), [draws], clusters, level)


def resample_entities(
    entities: Ids,
    statistic: Callable[[NDArray[np.intp]], float],
    *,
    worlds: Ids | None = None,
    n_boot: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of any statistic (AUROC, a fitted layer), resampling entities.

    ``statistic`` receives the row numbers to use, with repeats, and returns one number. It is
    called once per draw; for functions of means :func:`entity_bootstrap` is much faster, and
    knows of donors and of what to do where all entities agree.
    """
    clusters = _clusters(entities, None, worlds, len(entities))
    if clusters.n_entities == 0:
        return Interval.empty(level=level)
    every = np.arange(len(clusters.cell))

    def drawn(weights: IntArray) -> float:
        rows = np.repeat(every, weights[clusters.cell])
        return float(statistic(rows))

    draws = [
        np.array([drawn(row) for row in weights]) for weights in clusters.weights(n_boot, seed)
    ]
    return _percentile(float(statistic(every)), draws, clusters, level)


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
    first: pd.Series | ArrayLike, second: pd.Series | ArrayLike, entities: Ids
) -> PairedTest:
    """Two-sided Wilcoxon signed-rank test of ``first`` against ``second`` over entity means.

    Where no entity differs there is no evidence of a difference: p is 1.
    """
    arms = np.column_stack(
        [np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)]
    )
    clusters = _clusters(entities, None, None, len(arms))
    n_entities = clusters.n_entities
    if n_entities == 0:
        return PairedTest(None, None, None, 0, 0)
    if not np.isfinite(arms).all():
        raise TwohopError("Values to compare contain missing entries; drop those items first.")
    codes = clusters.cell
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
    if n_columns not in wanted:
        raise TwohopError(
            f"Statistic {statistic!r} needs {' or '.join(map(str, wanted))} column(s), not "
            f"{n_columns}."
        )
    return function


# --- what is resampled ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Clusters:
    """Items by cell: all items of one entity, or of one pair of target and donor.

    ``cell`` ``[items]`` is each item's cell; ``target`` and ``donor`` ``[cells]`` number a cell's
    entities among the ``n_pool`` that are drawn, ``world`` ``[pool]`` an entity's world.
    """

    cell: IntArray
    target: IntArray
    donor: IntArray | None
    world: IntArray
    n_pool: int

    @property
    def n_cells(self) -> int:
        return len(self.target)

    @property
    def n_entities(self) -> int:
        return len(np.unique(self.target))

    @property
    def n_trials(self) -> int:
        """How many entities can be told apart: targets, or donors where these are fewer."""
        donors = self.n_entities if self.donor is None else len(np.unique(self.donor))
        return min(self.n_entities, donors)

    def pairs(self) -> _Clusters:
        """The same items with each pair an entity of its own."""
        own = np.arange(self.n_cells)
        return _Clusters(self.cell, own, None, np.zeros_like(own), self.n_cells)

    def weights(self, n_boot: int, seed: int) -> Iterator[IntArray]:
        """Yield each cell's weight in each draw, ``[draws, cells]``, ``n_boot`` draws in all.

        Nothing, where there is a single entity.
        """
        if self.n_trials < 2:
            return
        rng = np.random.default_rng(seed)
        batch = max(1, _BATCH // max(self.n_pool, self.n_cells))
        for start in range(0, n_boot, batch):
            size = min(batch, n_boot - start)
            # One world is drawn for each that there is.
            yield sum(self._drawn(rng, size) for _ in range(self.world.max() + 1))

    def _drawn(self, rng: np.random.Generator, size: int) -> IntArray:
        """Each cell's weight, ``[size, cells]``, in draws of one world and of its entities."""
        n_worlds = self.world.max() + 1
        chosen = rng.integers(n_worlds, size=size) if n_worlds > 1 else np.zeros(size, dtype=int)
        counts = np.zeros((size, self.n_pool), dtype=np.int64)
        for number in range(n_worlds):
            members = np.flatnonzero(self.world == number)
            draws = np.flatnonzero(chosen == number)
            drawn = rng.integers(len(members), size=(len(draws), len(members)))
            np.add.at(counts, (draws[:, None], members[drawn]), 1)
        own = counts[:, self.target]
        if self.donor is None:
            return own
        there = chosen[:, None] == self.world[self.target]
        return own + counts[:, self.donor] - there


def _clusters(entities: Ids, donors: Ids | None, worlds: Ids | None, n_items: int) -> _Clusters:
    """Number entities in sorted order, so that a shuffled frame gives the same draws."""
    world = np.zeros(n_items, dtype=np.int64) if worlds is None else _codes([worlds], n_items)[0]
    # An entity is of one world, whatever its id says.
    keys = [_keys(ids, n_items) for ids in ([entities] if donors is None else [entities, donors])]
    keys = [pd.concat([pd.Series(world), key], axis=1, ignore_index=True) for key in keys]
    target, *other = _codes(keys, n_items)
    if not n_items:
        return _Clusters(target, target, None, target, 0)
    pool = np.concatenate([target, *other])
    of_world = np.zeros(pool.max() + 1, dtype=np.int64)
    of_world[pool] = np.tile(world, len(keys))
    pairs, cell = np.unique(np.column_stack([target, *other]), axis=0, return_inverse=True)
    donor = pairs[:, 1] if other else None
    return _Clusters(cell.ravel(), pairs[:, 0], donor, of_world, len(of_world))


def _keys(ids: Ids, n_items: int) -> pd.DataFrame:
    """The columns that make an id, with a missing one refused."""
    frame = ids if isinstance(ids, pd.DataFrame) else pd.Series(list(ids), dtype=object).to_frame()
    if len(frame) != n_items:
        raise TwohopError(f"{n_items} items came with {len(frame)} entity ids; give one per item.")
    if frame.isna().any(axis=None):
        raise TwohopError("Some items have no entity id; every item must belong to an entity.")
    return frame.reset_index(drop=True)


def _codes(ids: Sequence[Ids], n_items: int) -> list[IntArray]:
    """Number ids, those of several lists together, from 0 in sorted order."""
    frames = [_keys(each, n_items) for each in ids]
    frames = [frame.set_axis(range(frame.shape[1]), axis=1) for frame in frames]
    every = pd.concat(frames, ignore_index=True)
    numbers = every.groupby(list(every.columns), sort=True).ngroup().to_numpy(dtype=np.int64)
    return np.split(numbers, len(ids))


# --- from draws to an interval ----------------------------------------------------------------


def _less_pairs(found: Interval, pairs: Interval, bounds: tuple[float, float]) -> Interval:
    """Take a pair's own noise, counted for each of its entities, off once; stay within bounds."""
    if found.low is None or pairs.low is None:
        return replace(found, low=None, high=None)

    def arm(wide: float, own: float) -> float:
        # No narrower than if every pair were on its own.
        return math.sqrt(max(max(0.0, wide) ** 2 - max(0.0, own) ** 2, max(0.0, own) ** 2))

    at = found.estimate
    low = at - arm(at - found.low, at - pairs.low)
    high = at + arm(found.high - at, pairs.high - at)
    return replace(found, low=max(low, float(bounds[0])), high=min(high, float(bounds[1])))


def _percentile(
    estimate: float, draws: Sequence[FloatArray], clusters: _Clusters, level: float
) -> Interval:
    n_items, n_entities = len(clusters.cell), clusters.n_entities
    if not math.isfinite(estimate):
        return Interval.empty(n_items, n_entities, level)
    every = np.concatenate(draws) if draws else np.empty(0)
    defined = every[np.isfinite(every)]
    if len(every) == 0 or len(defined) < (1 - UNDEFINED_DRAWS_ALLOWED) * len(every):
        return Interval(estimate, None, None, n_items, n_entities, level)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), n_items, n_entities, level)


def _at_the_ends(
    found: Interval, statistic: str, sums: FloatArray, clusters: _Clusters
) -> Interval:
    """Give a statistic its interval where every entity agrees (see the head of this module)."""
    means = sums[:, :-1] / sums[:, -1:]
    if (means < 0).any() or (means > 1).any():
        return found
    n = clusters.n_trials
    u = proportion_interval(0, n, found.level).high
    first, second, reference = means[:, 0], means[:, min(1, means.shape[1] - 1)], means[:, 0]
    if statistic == "mean":
        if not ((first == 0).all() or (first == 1).all()):
            return found
        own = proportion_interval(n * int(first[0]), n, found.level)
        return replace(found, low=own.low, high=own.high)
    if statistic == "ratio":
        first, second, reference = second, first, second
    elif means.shape[1] > 2:
        reference = means[:, 2]
    total = 1.0 if statistic == "difference" else np.average(reference, weights=sums[:, -1])
    if np.allclose(first, second, rtol=0, atol=1e-12):
        low, high = -u / total, u / total
    elif statistic == "difference" and (first == 1).all() and (second == 0).all():
        low, high = 1 - math.sqrt(2) * u, 1.0
    elif statistic == "difference" and (first == 0).all() and (second == 1).all():
        low, high = -1.0, math.sqrt(2) * u - 1
    elif statistic != "difference" and (second == 0).all() and (first == reference).all():
        low, high = 1 - u / total, 1.0
    else:
        return found
    if statistic == "ratio":
        low, high = 1 - high, 1 - low
    return replace(found, low=float(low), high=float(high))

"""Means and shares with intervals, group by group, world by world, arm against arm.

Frames are tidy records, one row an item. An entity is named by *columns*, by default
:data:`twohop_lib.stats.ENTITY`, so that entities of different worlds stay apart when worlds are
pooled. Groups keep the order in which they come.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from twohop_lib.errors import TwohopError
from twohop_lib.stats import ENTITY, Interval, crossed_bootstrap, entity_bootstrap

N_BOOT = 2000
#: What stands for all worlds together in a table by world.
ALL_WORLDS = "all"


def share(
    frame: pd.DataFrame,
    value: str | tuple[str, str],
    *,
    entity: Sequence[str] = ENTITY,
    donor: Sequence[str] | None = None,
    world: str | None = "seed",
    n_boot: int = N_BOOT,
) -> Interval:
    """The mean of a column, with an interval from resampling entities.

    ``value`` is a column of numbers or truth values, or (numerator, denominator) for a ratio of
    two means. ``entity`` and ``donor`` are the columns that make an item's entity and its donor.
    Where there are several values of ``world``, worlds are resampled first, and entities within
    each. See :func:`twohop_lib.stats.entity_bootstrap`.

    Raises TwohopError if a column is missing, or a value is.
    """
    columns = [value] if isinstance(value, str) else list(value)
    _need(frame, [*columns, *entity, *(donor or ()), *([world] if world else [])])
    return entity_bootstrap(
        frame[columns].astype(float),
        frame[list(entity)],
        "mean" if isinstance(value, str) else "ratio",
        donors=None if donor is None else frame[list(donor)],
        worlds=None if world is None else frame[world],
        n_boot=n_boot,
    )


def share_table(
    frame: pd.DataFrame,
    value: str | tuple[str, str],
    by: Sequence[str],
    *,
    entity: Sequence[str] = ENTITY,
    donor: Sequence[str] | None = None,
    world: str | None = "seed",
    n_boot: int = N_BOOT,
) -> pd.DataFrame:
    """:func:`share` in each group of ``by``; items without a value are left out.

    Returns the columns ``*by, value, low, high, n_items, n_entities``.
    """
    columns = [value] if isinstance(value, str) else list(value)
    _need(frame, [*columns, *by])
    rows = []
    for key, part in frame.dropna(subset=columns).groupby(list(by), sort=False):
        found = share(part, value, entity=entity, donor=donor, world=world, n_boot=n_boot)
        rows.append((*key, *_cells(found)))
    return pd.DataFrame(rows, columns=[*by, *_NAMES])


def crossed_table(
    frame: pd.DataFrame,
    value: str,
    by: Sequence[str],
) -> pd.DataFrame:
    """The mean of a column in each group of ``by``, over seeds that show the same entities.

    Entities and seeds are both resampled (:func:`twohop_lib.stats.crossed_bootstrap`); items
    without a value are left out. Returns ``*by, value, low, high, n_items, n_entities, n_seeds``.
    """
    _need(frame, [value, "entity_id", "seed", *by])
    rows = []
    for key, part in frame.dropna(subset=[value]).groupby(list(by), sort=False):
        numbers = part[value].astype(float)
        found = crossed_bootstrap(numbers, part["entity_id"], part["seed"], n_boot=N_BOOT)
        rows.append((*key, *_cells(found), part["seed"].nunique()))
    return pd.DataFrame(rows, columns=[*by, *_NAMES, "n_seeds"])


def share_by_world(
    frame: pd.DataFrame,
    value: str | tuple[str, str],
    by: Sequence[str],
) -> pd.DataFrame:
    """:func:`share` in each world, and over all of them, in each group of ``by``.

    Returns the columns ``*by, world, value, low, high, n_items, n_entities``: ``world`` is the
    world's number as text, or :data:`ALL_WORLDS`, whose interval resamples worlds and then
    entities within each. A group seen in one world has no such row.
    """
    each = share_table(frame, value, [*by, "seed"])
    each["seed"] = each["seed"].astype(int).astype(str)
    several = each.groupby(list(by), sort=False)["seed"].transform("size") > 1
    groups = each.loc[several, list(by)].drop_duplicates()
    wide = share_table(frame, value, by).merge(groups, on=list(by))
    wide.insert(len(by), "seed", ALL_WORLDS)
    table = pd.concat([each, wide], ignore_index=True) if len(wide) else each
    return table.rename(columns={"seed": "world"})


def paired_differences(
    frame: pd.DataFrame,
    value: str,
    arm: str,
    contrasts: Sequence[tuple[str, str]],
) -> pd.DataFrame:
    """How much more one arm has than another, question by question, with intervals over entities.

    ``contrasts`` are (more, less), values of the column ``arm``; a question of one model counts if
    it has both. Returns ``model, more, less, value, low, high, n_items, n_entities``, contrasts in
    their order for each model.
    """
    keys = ["model", *ENTITY, "question_id"]
    _need(frame, [value, arm, *keys])
    numbers = frame.assign(**{value: frame[value].astype(float)})
    wide = numbers.pivot_table(index=keys, columns=arm, values=value, sort=False).reset_index()
    rows = []
    for model, part in wide.groupby("model", sort=False):
        for more, less in contrasts:
            if not {more, less} <= set(part.columns):
                continue
            both = part.dropna(subset=[more, less])
            found = entity_bootstrap(
                both[[more, less]],
                both[list(ENTITY)],
                "difference",
                worlds=both["seed"],
                n_boot=N_BOOT,
            )
            rows.append((model, more, less, *_cells(found)))
    return pd.DataFrame(rows, columns=["model", "more", "less", *_NAMES])


_NAMES = ("value", "low", "high", "n_items", "n_entities")


def _cells(found: Interval) -> tuple[float | int | None, ...]:
    return found.estimate, found.low, found.high, found.n_items, found.n_entities


def _need(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise TwohopError(
            f"The records lack the column(s) {', '.join(missing)}; entities are told apart by "
            f"{' and '.join(ENTITY)}, so give every frame both."
            if set(missing) & set(ENTITY)
            else f"The records lack the column(s) {', '.join(missing)}."
        )

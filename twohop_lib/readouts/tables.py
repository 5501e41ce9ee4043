"""Tables as a page shows them: every cell a text, and few items as a count.

A percentage of three items says more than is known, so cells with fewer than :data:`FEWEST` items
give the count ("2 of 3").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

#: From so many items on, a share is given in percent.
FEWEST = 10
NOTHING = "–"


def share_words(values: pd.Series, digits: int = 1) -> str:
    """The share of true values in words: "98.9 %", "2 of 3", or a dash where there is none."""
    known = values.dropna()
    if known.empty:
        return NOTHING
    if len(known) < FEWEST:
        return f"{int(known.sum())} of {len(known)}"
    return f"{100 * known.astype(float).mean():.{digits}f} %"


def counted_table(
    frame: pd.DataFrame,
    rows: str | Sequence[str],
    columns: str,
    value: str = "correct",
    *,
    digits: int = 1,
    labels: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Shares of ``value`` (true or false) by row and column, as texts (:func:`share_words`).

    Rows and columns keep the order in which they come in ``frame``; ``labels`` rename them.
    """
    by = [rows] if isinstance(rows, str) else list(rows)
    frame = frame.astype(dict.fromkeys([*by, columns], object))
    if frame.empty:
        return pd.DataFrame()
    cells = frame.groupby([*by, columns], sort=False)[value].agg(lambda v: share_words(v, digits))
    table = cells.unstack(columns, fill_value=NOTHING)
    order = frame[by].drop_duplicates()
    index = order[by[0]] if len(by) == 1 else pd.MultiIndex.from_frame(order)
    table = table.reindex(index=index, columns=frame[columns].drop_duplicates())
    named = dict(labels or {})
    return table.rename(index=named, columns=named).rename_axis(columns=None)


def each_model(
    records: pd.DataFrame, table_of: Callable[..., pd.DataFrame], **options: Any
) -> pd.DataFrame:
    """Join the tables that a function of one model's records makes of each model's."""
    tables = [table_of(part, **options) for _, part in records.groupby("model", sort=False)]
    return pd.concat(tables, ignore_index=True)

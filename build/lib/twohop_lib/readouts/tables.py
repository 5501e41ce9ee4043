"""Tables as a page shows them: a text in every cell, and the share of few items as a count."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from twohop_lib.readouts.captions import NOT_MEASURED, counted, percent_range

Words = Callable[[pd.Series], str]


def share_words(digits: int = 1) -> Words:
    """What makes a cell of :func:`counted_table`: "98.9 %", "2 of 3", or a dash for nothing."""

    def words(values: pd.Series) -> str:
        known = values.dropna().astype(float)
        return counted(known.mean(), len(known), digits)

    return words


def share_and_n(values: pd.Series) -> str:
    """The same with its size: "98.9 % (n = 233)", or "2 of 3"."""
    told, n = share_words()(values), values.notna().sum()
    return f"{told} (n = {n})" if told.endswith("%") else told


def range_words(table: pd.DataFrame) -> str:
    """The shares of a table (``value, n_items``): "41 to 92 %"; "3 of 5" of one row with few."""
    if len(table) == 1:
        return counted(table["value"].iloc[0], table["n_items"].iloc[0])
    return percent_range(table["value"])


def counted_table(
    frame: pd.DataFrame,
    rows: str | Sequence[str],
    columns: str,
    value: str = "correct",
    *,
    words: Words | None = None,
    labels: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Shares of ``value`` (true or false) by row and column, as texts.

    Rows and columns keep the order in which they come in ``frame``; ``labels`` rename them.
    ``words`` makes a cell's text of its values (default: :func:`share_words`). Of no rows the table
    says that there are no items.
    """
    if frame.empty:
        return pd.DataFrame({"no items": [NOT_MEASURED]})
    by = [rows] if isinstance(rows, str) else list(rows)
    frame = frame.astype(dict.fromkeys([*by, columns], object))
    cells = frame.groupby([*by, columns], sort=False)[value].agg(words or share_words())
    table = cells.unstack(columns, fill_value=NOT_MEASURED)
    order = frame[by].drop_duplicates()
    index = order[by[0]] if len(by) == 1 else pd.MultiIndex.from_frame(order)
    table = table.reindex(index=index, columns=frame[columns].drop_duplicates())
    named = dict(labels or {})
    return table.rename(index=named, columns=named).rename_axis(columns=None)


def whose_table(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """How often the target's right fact, the donor's or neither's is given (``follows``)."""
    each = [
        frame.assign(whose=who, given=frame["follows"].eq(who))
        for who in ("right", "donor", "neither")
    ]
    return counted_table(joined(*each), by, "whose", "given", words=share_words(0))


def each_model(
    records: pd.DataFrame, table_of: Callable[..., pd.DataFrame], **options: Any
) -> pd.DataFrame:
    """Join the tables that a function of one model's records makes of each model's."""
    tables = [table_of(part, **options) for _, part in records.groupby("model", sort=False)]
    return pd.concat(tables, ignore_index=True)


def joined(*frames: pd.DataFrame) -> pd.DataFrame:
    """Frames one below the other, empty ones left out; empty, with their columns, if all are."""
    kept = [frame for frame in frames if len(frame)] or [pd.DataFrame(), *frames]
    return pd.concat(kept, ignore_index=True)

"""The first layer at which a curve passes a threshold, and the highest and lowest of a table.

A curve is a series of shares indexed by layer; layers are taken in ascending order.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd


def first_at_least(curve: pd.Series, threshold: float = 0.5) -> int | None:
    """The first layer at which a curve is at or above a threshold; None if it never is."""
    return _first(curve, curve >= threshold)


def first_below(curve: pd.Series, threshold: float = 0.5) -> int | None:
    """The first layer at which a curve is below a threshold; None if it never is."""
    return _first(curve, curve < threshold)


def around_half(curve: pd.Series) -> tuple[int | None, int | None]:
    """The last layer at which a curve has half of its first value or more, and the one behind.

    The second is None if the curve never falls below that, and both are if it begins at nothing.
    """
    curve = curve.sort_index()
    if curve.empty or not curve.iloc[0] > 0:
        return None, None
    gone = first_below(curve, curve.iloc[0] / 2)
    kept = curve.index if gone is None else curve.index[curve.index < gone]
    return int(kept[-1]), gone


def curves(table: pd.DataFrame, x: str = "layer", group: str = "model") -> dict[str, pd.Series]:
    """The curves of a table of shares (columns ``group, x, value``), in order of appearance."""
    return {
        str(name): part.set_index(x)["value"].sort_index()
        for name, part in table.groupby(group, sort=False)
    }


@dataclass(frozen=True)
class Extremes:
    """The lowest and the highest value of a table's rows, and which rows those are."""

    lowest: float
    at_lowest: str
    highest: float
    at_highest: str

    @property
    def one(self) -> bool:
        """Whether one row is both."""
        return self.at_lowest == self.at_highest


def highest(table: pd.DataFrame) -> pd.Series | None:
    """The row of a table with the highest value (the first of equals); None if there is none."""
    known = table["value"].dropna().astype(float)
    return None if known.empty else table.loc[known.idxmax()]


def lowest(table: pd.DataFrame) -> pd.Series | None:
    """The row of a table with the lowest value (the first of equals); None if there is none."""
    known = table["value"].dropna().astype(float)
    return None if known.empty else table.loc[known.idxmin()]


def extremes(values: pd.Series) -> Extremes | None:
    """The ends of a series by its labels (the first of equals); None if nothing was measured."""
    found = values.dropna().astype(float)
    if found.empty:
        return None
    return Extremes(
        float(found.min()), str(found.idxmin()), float(found.max()), str(found.idxmax())
    )


def _first(curve: pd.Series, passes: pd.Series) -> int | None:
    there = sorted(curve.index[passes])
    return int(there[0]) if there else None

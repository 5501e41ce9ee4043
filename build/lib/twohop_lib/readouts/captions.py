"""What captions and sentences say about counts and shares.

A range is one number where its ends are equal, a share of fewer than ten items is told as a
count, and what was not measured is a dash, never a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from twohop_lib.stats import ENTITY

#: A share of fewer items than this is told as a count.
LEAST_FOR_PERCENT = 10
NOT_MEASURED = "–"


def n_range(sizes: Iterable[int]) -> str:
    """The sizes as one number, or as a range: ``90`` or ``45–48``."""
    found = [int(size) for size in sizes]
    if not found:
        return "0"
    return _range(str(min(found)), str(max(found)), "–")


def n_words(frame: pd.DataFrame, unit: str, columns: Sequence[str] = ENTITY) -> str:
    """How many ``unit`` (distinct ``columns``) there are for each model.

    ``n = 45–48 entities for each model``; with one model, ``n = 45 entities``.
    """
    counts = frame.drop_duplicates(["model", *columns]).groupby("model").size()
    each = " for each model" if len(counts) > 1 else ""
    return f"n = {n_range(counts)} {unit}{each}"


def n_of(table: pd.DataFrame, unit: str, column: str = "n_items") -> str:
    """The sizes that a table of shares holds: ``n = 62–80 facts``."""
    return f"n = {n_range(table[column])} {unit}"


def counted(share: float | None, n: int, digits: int = 0) -> str:
    """A share of n items: ``43 %``, or ``3 of 7`` of fewer than ten."""
    if not n or _absent(share):
        return NOT_MEASURED
    if n < LEAST_FOR_PERCENT:
        return f"{round(share * n)} of {n}"
    return f"{100 * share:.{digits}f} %"


def counted_with_interval(
    share: float | None, low: float | None, high: float | None, n: int, digits: int = 0
) -> str:
    """The same with its interval and n: ``43 % [30, 57] (n = 80)``, or ``3 of 7``."""
    told = counted(share, n, digits)
    if told == NOT_MEASURED or n < LEAST_FOR_PERCENT:
        return told
    return f"{told}{spread_words(low, high, digits, scale=100)} (n = {n})"


def points_with_interval(
    difference: float | None, low: float | None, high: float | None, n: int
) -> str:
    """A difference of shares in points: ``+12 [5, 20] (n = 80)``."""
    if not n or _absent(difference):
        return NOT_MEASURED
    return f"{100 * difference:+.0f}{spread_words(low, high, 0, scale=100)} (n = {n})"


def spread_words(low: float | None, high: float | None, digits: int, scale: float = 1) -> str:
    """An interval in brackets, with the space before it; nothing where it is not known."""
    if _absent(low) or _absent(high):
        return ""
    return f" [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"


def percent(share: float | None, digits: int = 0) -> str:
    """A share as the number of a percentage, without the sign: ``43``."""
    return NOT_MEASURED if _absent(share) else f"{100 * share:.{digits}f}"


def percent_range(shares: Iterable[float | None]) -> str:
    """The lowest and the highest share: ``70 to 83 %``, or ``83 %`` where they print alike."""
    found = [share for share in shares if not _absent(share)]
    if not found:
        return NOT_MEASURED
    return f"{_range(percent(min(found)), percent(max(found)), ' to ')} %"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: ``late``, ``late and middle``, ``late, middle and early``."""
    names = list(names)
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def _range(low: str, high: str, between: str) -> str:
    return low if low == high else f"{low}{between}{high}"


def _absent(value: float | None) -> bool:
    return value is None or bool(pd.isna(value))

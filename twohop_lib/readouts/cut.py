"""Answers that the budget of new tokens cut off: how many, in which arm."""

from __future__ import annotations

import pandas as pd

#: A page says how many answers were cut where it is more than this share of an arm's.
TOLD = 0.02


def cut_by_arm(answers: pd.DataFrame) -> pd.DataFrame:
    """One row a model and condition, of answers as they are asked: ``cut`` (how many), ``n``,
    ``share``. Records without the column ``cut`` count as whole.
    """
    own = answers[answers["intervention"].isna()]
    cut = own["cut"] if "cut" in own else pd.Series(False, index=own.index)
    counted = own.assign(cut=cut.fillna(False).astype(bool)).groupby(
        ["model", "condition"], sort=False
    )["cut"]
    found = counted.agg(cut="sum", n="size").reset_index()
    return found.assign(share=found["cut"] / found["n"])


def cut_sentence(answers: pd.DataFrame) -> str:
    """For a page: which arms lost more than :data:`TOLD` of their answers; empty if none did."""
    found = cut_by_arm(answers)
    told = found[found["share"] > TOLD].sort_values("share", ascending=False, kind="stable")
    if told.empty:
        return ""
    listed = [f"{row.cut} of {row.n} in {row.condition} ({row.model})" for row in told.itertuples()]
    return (
        "Some answers were cut off by the budget of new tokens before they ended, and may be "
        f"scored as wrong for that alone: {', '.join(listed)}. Raise max_new_tokens, or ask for "
        "short answers."
    )

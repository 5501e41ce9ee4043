"""Answers that the budget of new tokens cut off: how many, in which arm."""

from __future__ import annotations

import pandas as pd

#: A page says how many answers were cut where it is more than this share of an arm's.
TOLD = 0.02


def cut_by_arm(answers: pd.DataFrame) -> pd.DataFrame:
    """One row a model and arm: ``model, condition, cut`` (how many), ``n``, ``share``.

    The answers of changed runs are an arm of their own ("by_picture, cross-patch"), each edit's
    together. Records without the column ``cut`` count as whole.
    """
    cut = answers["cut"] if "cut" in answers else pd.Series(False, index=answers.index)
    changed = answers["intervention"].notna()
    arm = answers["condition"].where(
        ~changed, answers["condition"] + ", " + answers["intervention"].astype("string")
    )
    labelled = answers.assign(cut=cut.fillna(False).astype(bool), condition=arm.astype(object))
    counted = labelled.groupby(["model", "condition"], sort=False)["cut"]
    found = counted.agg(cut="sum", n="size").reset_index()
    return found.assign(share=found["cut"] / found["n"])


def cut_sentence(answers: pd.DataFrame, what: str = "answers") -> str:
    """For a page: which arms lost more than :data:`TOLD` of their answers, or that none did.

    ``what`` these are: "answers of the grafts".
    """
    found = cut_by_arm(answers)
    told = found[found["share"] > TOLD].sort_values("share", ascending=False, kind="stable")
    if told.empty:
        lost, n = found["cut"].sum(), found["n"].sum()
        return f"The budget of new tokens cut off {lost or 'none'} of {n} {what}."
    listed = [f"{row.cut} of {row.n} in {row.condition} ({row.model})" for row in told.itertuples()]
    return (
        f"Some {what} were cut off by the budget of new tokens before they ended, and may be "
        f"scored as wrong for that alone: {', '.join(listed)}. Raise max_new_tokens, or ask for "
        "short answers (instruction)."
    )

"""The gap by matching beside the gap by likelihood ranking, and where the two part.

Matching judges what a model says (:mod:`twohop_lib.scoring.matching`); ranking, whether an accepted
answer is likelier than every other of its relation (:mod:`twohop_lib.scoring.ranking`). Both are
taken over the same items, so that a difference between them is one of scoring alone.
"""

from __future__ import annotations

import pandas as pd

from twohop_lib.errors import TwohopError
from twohop_lib.readouts import gap
from twohop_lib.readouts.captions import listed, spread_words
from twohop_lib.readouts.shares import share_table

#: Ways of scoring, as figures call them, and the column that holds their verdict.
SCORINGS = {
    "matching": "correct",
    "likeliest answer": "by_length",
    "likeliest first token": "by_first",
}
#: What tells an item of one arm apart.
ITEM = ["model", "seed", "entity_id", "question_id", "wording"]
_ARM = [*ITEM, "condition"]


def judged(
    answers: pd.DataFrame, ranked: pd.DataFrame, arms: tuple[str, str] = ("by_name", "by_picture")
) -> pd.DataFrame:
    """Answers in both arms with both verdicts: ``correct``, ``by_length`` and ``by_first``.

    ``ranked`` is of :func:`~twohop_lib.scoring.ranking.likeliest`; its candidate is added as
    ``likeliest``. Of a model that is in it, the items that were asked and ranked in both arms; of
    one that could not be ranked, all, without these verdicts. ``by_first`` is null in both arms
    where a first token decides nothing in one.

    Raises TwohopError if no item was asked in both arms.
    """
    best = ranked.rename(columns={"candidate": "likeliest"})
    best = best.reindex(columns=[*_ARM, "by_length", "by_first", "likeliest"])
    both = answers[answers["condition"].isin(arms)].merge(best, on=_ARM, how="left")
    both = both.astype({"by_length": "boolean", "by_first": "boolean"})
    both = both[both["by_length"].notna() | ~both["model"].isin(ranked["model"])]
    of_item = both.groupby(ITEM, sort=False)["condition"]
    both = both[of_item.transform("nunique") == len(arms)].reset_index(drop=True)
    if both.empty:
        raise TwohopError("No item was asked in both arms; ask the same questions in both.")
    undecided = both["by_first"].isna().groupby([both[c] for c in ITEM]).transform("any")
    return both.assign(by_first=both["by_first"].mask(undecided))


def gap_by_scoring(
    both: pd.DataFrame, arms: tuple[str, str] = ("by_name", "by_picture")
) -> pd.DataFrame:
    """Each model's gap in points under each way of scoring, of :func:`judged` answers.

    Columns ``model, scoring, reference, picture, gap, low, high, n_items, n_entities``.
    """
    names = dict(zip(arms, ("by_name", "by_picture"), strict=True))
    rows = []
    for model, own in both.groupby("model", sort=False):
        for scoring, verdict in SCORINGS.items():
            decided = own[own[verdict].notna()]
            if decided.empty:
                continue
            scored = decided.assign(
                condition=decided["condition"].map(names), correct=decided[verdict].astype(bool)
            )
            found = gap.gap_difference(scored, "full").row()
            rows.append({"model": model, "scoring": scoring} | found)
    kept = ["model", "scoring", "reference", "picture", "gap", "low", "high"]
    return pd.DataFrame(rows)[[*kept, "n_items", "n_entities"]]


def as_read(gaps: pd.DataFrame) -> pd.DataFrame:
    """:func:`gap_by_scoring` to read: one row a model and way of scoring, as texts."""
    return pd.DataFrame(
        {
            "model": gaps["model"],
            "scoring": gaps["scoring"],
            "by name": gaps["reference"].map("{:.1%}".format),
            "by picture": gaps["picture"].map("{:.1%}".format),
            "gap (points)": [
                f"{100 * r.gap:.1f}{spread_words(r.low, r.high, 1, 100)}" for r in gaps.itertuples()
            ],
            "n": [f"{r.n_items} of {r.n_entities}" for r in gaps.itertuples()],
        }
    )


def title(both: pd.DataFrame) -> str:
    """A title: in how many answers the two ways of scoring agree."""
    ranked = _ranked(both)
    agree = int((ranked["correct"].astype(bool) == ranked["by_length"].astype(bool)).sum())
    return f"Matching and likelihood judge {agree} of {len(ranked)} answers alike"


def move(both: pd.DataFrame, arms: tuple[str, str] = ("by_name", "by_picture")) -> pd.DataFrame:
    """By how much ranking's gap is larger than matching's, over the same items.

    Columns ``model`` and those of :func:`~twohop_lib.readouts.shares.share_table`; the ranking is
    that by length.
    """
    both = _ranked(both)
    differs = both["by_length"].astype(float) - both["correct"].astype(float)
    sign = both["condition"].map({arms[0]: 1.0, arms[1]: -1.0})
    summed = both.assign(moved=differs * sign).groupby(ITEM, sort=False)["moved"].sum()
    return share_table(summed.reset_index(), "moved", ["model"])


def move_sentence(both: pd.DataFrame, arms: tuple[str, str] = ("by_name", "by_picture")) -> str:
    """Whose gap matching and ranking disagree about, for a takeaway."""
    if _ranked(both).empty:
        return "Answers could not be ranked by their likelihood."
    gaps = gap_by_scoring(both, arms).set_index(["model", "scoring"])["gap"]
    moved = move(both, arms)
    clear = moved[(moved["low"] > 0) | (moved["high"] < 0)]
    said = [
        f"{r.model} ({100 * gaps[r.model, 'matching']:.1f} points by matching and "
        f"{100 * gaps[r.model, 'likeliest answer']:.1f} by likelihood)"
        for r in clear.itertuples()
    ]
    if said:
        return f"The two ways of scoring disagree about the gap of {listed(said)}."
    most = moved.loc[moved["value"].abs().idxmax()]
    apart = f"at most {100 * abs(most['value']):.1f} points apart"
    return (
        "Whether an accepted answer is likelier than every other of its relation gives the same "
        f"gap{'s' * (len(moved) > 1)} ({apart})."
    )


def counts(both: pd.DataFrame) -> pd.DataFrame:
    """How often the two agree, a row a model and arm: ``n, both, matching_only, ranking_only,
    neither`` (counts; ranking by length)."""
    both = _ranked(both)
    matched, likely = both["correct"].astype(bool), both["by_length"].astype(bool)
    each = both[["model", "condition"]].assign(
        n=1,
        both=matched & likely,
        matching_only=matched & ~likely,
        ranking_only=~matched & likely,
        neither=~matched & ~likely,
    )
    return each.groupby(["model", "condition"], sort=False).sum().astype(int).reset_index()


def partings(both: pd.DataFrame) -> pd.DataFrame:
    """Examples by one rule: the first answer that each way alone has right, by model and arm.

    First in the order of the answers; a table that says so if there is none. Columns ``model,
    condition, entity, relation, said, accepted, likeliest, right by``.
    """
    both = _ranked(both)
    matched, likely = both["correct"].astype(bool), both["by_length"].astype(bool)
    told = both.assign(by=matched.map({True: "matching", False: "likelihood"}))
    parted = told[matched != likely]
    first = parted.drop_duplicates(["model", "condition", "by"])
    if first.empty:
        return pd.DataFrame({"where the two part": ["nowhere"]})
    accepted = first["accepted"].map(lambda names: names[0])
    shown = first.assign(accepted=accepted, said=first["answer"], **{"right by": first["by"]})
    columns = ["model", "condition", "entity", "relation", "said", "accepted", "likeliest"]
    return shown[[*columns, "right by"]].reset_index(drop=True)


def _ranked(both: pd.DataFrame) -> pd.DataFrame:
    """The items that were ranked."""
    return both[both["by_length"].notna()]

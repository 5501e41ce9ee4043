"""How a chapter tells of gaps: which entities count, its tables, and its sentences.

Tables are those of :mod:`twohop_lib.readouts.gap`. What was not measured is said to be so.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from twohop_lib.figures.theme import ARM_OF_CONDITION
from twohop_lib.readouts import gap
from twohop_lib.readouts.captions import NOT_MEASURED, counted, spread_words
from twohop_lib.readouts.cascade import KnownBy, failure_types, known_column, passing
from twohop_lib.readouts.shares import share_table
from twohop_lib.readouts.tables import each_model

#: What can come, by picture, of a fact that passes the cascade.
OUTCOMES = ("right", "own name instead", "linking failure")


def recognised_rows(answers: pd.DataFrame) -> pd.DataFrame:
    """Answers about the entities that each model names from their pictures.

    All of a model's answers, if it names none in the world (``seed``) at hand.
    """
    named = answers[(answers["condition"] == "identify") & answers["correct"].astype(bool)]
    known = set(zip(named["model"], named["seed"], named["entity_id"], strict=True))
    able = {(model, seed) for model, seed, _ in known}
    keys = zip(answers["model"], answers["seed"], answers["entity_id"], strict=True)
    kept = [(m, s) not in able or (m, s, e) in known for m, s, e in keys]
    return answers[pd.Series(kept, index=answers.index, dtype=bool)]


def accuracy_of_recognised(answers: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of each model in each condition on :func:`recognised_rows`."""
    return each_model(recognised_rows(answers), gap.accuracy_table)


def of_recognised(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a gap table over the entities that the model recognises.

    For a model that recognises none, those over all. ``table`` is that of
    :func:`twohop_lib.readouts.gap.gap_table` or ``gap_by_seed``.
    """
    by = [column for column in ("seed", "model") if column in table]
    own = table[table["population"] == "recognised"]
    seen = own[own["definition"] == "difference"].groupby(by)["n_items"].sum()
    keys = pd.MultiIndex.from_frame(table[by]) if len(by) > 1 else pd.Index(table[by[0]])
    able = seen.reindex(keys, fill_value=0).to_numpy() > 0
    wanted = pd.Series("full", index=table.index).mask(able, "recognised")
    # The controlled slice implies recognition; it has no other population.
    wanted = wanted.mask(table["definition"] == "controlled", "recognised")
    return table[table["population"] == wanted]


def by_arm(accuracy: pd.DataFrame) -> pd.DataFrame:
    """Accuracies (column ``condition``) in the conditions that are arms, with their ``arm``."""
    arms = accuracy.assign(arm=accuracy["condition"].map(ARM_OF_CONDITION))
    return arms.dropna(subset=["arm"])


def difference_by_world(answers: pd.DataFrame) -> pd.DataFrame:
    """Each model's gap in points (by name against by picture) in each world.

    On recognised entities (:func:`of_recognised`). Rows of
    :func:`twohop_lib.readouts.gap.gap_by_seed`.
    """
    table = of_recognised(gap.gap_by_seed(gap.split_models(answers)))
    return table[table["definition"] == "difference"]


def overview(table: pd.DataFrame) -> pd.DataFrame:
    """A gap table to read: one row a model and definition, one column a population, as texts."""
    shown = table.assign(text=[_with_n(row) for row in table.itertuples()])
    wide = shown.pivot(index=["model", "definition"], columns="population", values="text")
    rows = pd.MultiIndex.from_frame(table[["model", "definition"]].drop_duplicates())
    return wide.reindex(index=rows, columns=list(gap.POPULATIONS)).fillna(NOT_MEASURED)


def by_world(table: pd.DataFrame, here: int) -> pd.DataFrame:
    """Gaps by model and world to read; ``here`` is the seed whose world the page computes."""
    return pd.DataFrame(
        {
            "model": table["model"],
            "seed": table["seed"],
            "from": table["seed"].eq(here).map({True: "this page", False: "the study's records"}),
            "by name": table["reference"].map(_percent),
            "by picture": table["picture"].map(_percent),
            "gap (points)": [_with_n(row) for row in table.itertuples()],
            "Wilcoxon p": table["p_value"].map(
                lambda p: NOT_MEASURED if pd.isna(p) else f"{p:.1e}"
            ),
        }
    )


def hop_values(answers: pd.DataFrame) -> dict[str, str]:
    """Both hops and the control over several models, by the names under which they are glued.

    The lowest share of entities named and of facts known by name, and the highest share answered
    with a blank picture (about recognised entities), in percent.
    """
    share = answers.groupby(["condition", "model"])["correct"].mean()
    known = min(share["by_name"].min(), share["llm_by_name"].min())
    seen = recognised_rows(answers).groupby(["condition", "model"])["correct"].mean()
    return {
        "recognition_lowest": f"{100 * share['identify'].min():.0f}",
        "text_lowest": "all" if known == 1 else f"at least {100 * known:.1f} %",
        "blind_highest": f"{100 * seen['blank_by_picture'].max():.1f}",
    }


def model_sentences(answers: pd.DataFrame, own: pd.DataFrame, among: str) -> dict[str, str]:
    """What a page says of one model, by the names under which it is glued.

    ``answers`` are the model's, ``own`` its gaps by definition (:func:`of_recognised`), ``among``
    which entities those are over.
    """
    gaps = own.set_index("definition")
    row, value = gaps.loc["difference"], gaps["gap"]
    share = answers.groupby("condition")["correct"].mean()
    blind = recognised_rows(answers).groupby("condition")["correct"].mean()["blank_by_picture"]
    return {
        "model_gap": f"On {row['n_items']} facts about {row['n_entities']} entities ({among}), it "
        f"loses {points(row['gap'])} when the entity is shown and not named: by name it answers "
        f"{points(row['reference'], '%')}, by picture {points(row['picture'], '%')}.",
        "model_hops": f"It names {points(share['identify'], '%')} of the entities from their "
        f"pictures. Asked by name it answers {points(share['by_name'], '%')} of the questions, and "
        f"its backbone {points(share['llm_by_name'], '%')}; with a blank picture, "
        f"{points(blind, '%')}.",
        "model_definitions": f"{points(value['degradation'], '%')} (against the backbone), "
        f"{points(value['difference'])} (against the same model by name) and "
        f"{points(value['controlled'], '%')} (on the controlled slice)",
    }


def outcomes_of_known(answers: pd.DataFrame, known_by: KnownBy = "vlm") -> pd.DataFrame:
    """What comes, by picture, of the facts that pass the cascade: known, seen, and not guessed.

    Columns ``model, outcome`` ("right", "own name instead", "linking failure") and those of
    :func:`twohop_lib.readouts.shares.share_table`.
    """
    parts = []
    for _, own in answers.groupby("model", sort=False):
        typed = passing(failure_types(own, known_by), "recognised")
        typed = passing(passing(typed, known_column(known_by)), "blind", False)
        each = [typed.assign(outcome=o, is_outcome=typed["type"].eq(o)) for o in OUTCOMES]
        parts.append(share_table(pd.concat(each), "is_outcome", ["model", "outcome"]))
    return pd.concat(parts, ignore_index=True)


def by_picture(arms: pd.DataFrame) -> str:
    """A title: who answers least by picture, and who most (:func:`by_arm`)."""
    shown = arms[arms["arm"] == ARM_OF_CONDITION["by_picture"]]
    ends = (shown.loc[shown["accuracy"].idxmin()], shown.loc[shown["accuracy"].idxmax()])
    said = [f"{r['model']} answers {counted(r['accuracy'], int(r['n_items']))}" for r in ends]
    return f"{' and '.join(dict.fromkeys(said))} by picture"


def own_names(shares: pd.DataFrame) -> str:
    """A title: who says the entity's own name instead, and how often (``failure_shares``)."""
    own = shares[shares["type"] == "own name instead"]
    most = own.loc[own["share"].idxmax()]
    share = counted(most["share"], int(most["n_items"]))
    return f"{most['model']} says the entity's own name instead in {share} of its answers"


def outcomes_sentence(outcomes: pd.DataFrame, noun: str) -> str:
    """:func:`outcomes_of_known` in words, the entity's own name told apart from other errors."""
    said = []
    for model, own in outcomes.groupby("model", sort=False):
        share, n = own.set_index("outcome")["value"], int(own["n_items"].iloc[0])
        right, name, other = (counted(share[outcome], n) for outcome in OUTCOMES)
        said.append(f"{model} {right} (the {noun}'s own name instead: {name}, another: {other})")
    return "; ".join(said)


def points(fraction: float | None, unit: str = "points") -> str:
    """A fraction in hundredths with its unit: ``18.7 points``; "not measured" if there is none."""
    return "not measured" if pd.isna(fraction) else f"{100 * fraction:.1f} {unit}"


def _percent(fraction: float | None) -> str:
    return NOT_MEASURED if pd.isna(fraction) else f"{100 * fraction:.1f} %"


def _with_n(row: Any) -> str:
    """``18.7 [13.2, 24.8], n = 455 of 91``: a gap, its interval, items and entities."""
    if pd.isna(row.gap):
        return NOT_MEASURED
    spread = spread_words(row.low, row.high, 1, scale=100)
    return f"{100 * row.gap:.1f}{spread}, n = {row.n_items} of {row.n_entities}"

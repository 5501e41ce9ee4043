"""Ways to bring back facts that are missed by picture: what they bring back, and whom they harm.

Three are asked for (:data:`SPOKEN`: name the entity first, begin with its name, begin with a
neutral sentence), others are patches of MLP outputs (:mod:`twohop_lib.interventions.mlp_patch`).
"""

from __future__ import annotations

import pandas as pd

from twohop_lib.readouts.captions import (
    counted,
    listed,
    n_range,
    percent,
    spread_words,
)
from twohop_lib.readouts.cascade import cascade, names_itself, passing
from twohop_lib.readouts.selection import FACT, keep, mark_missed, missed
from twohop_lib.readouts.shares import paired_differences, share_table
from twohop_lib.readouts.tables import counted_table, each_model, share_words

#: Condition of the answer records -> way of asking.
SPOKEN = {"name_first": "name first", "name_given": "name given", "neutral": "neutral sentence"}
#: The same, beside the plain question.
WAYS = {"by_picture": "directly"} | SPOKEN
#: Method of an MLP patch's records -> way of repair.
PATCHED = {m: f"MLP patch, {m}" for m in ("heuristic", "random", "wrong entity")}
#: Every way of repair, in the order in which they are shown, and what it costs.
COST = dict(
    zip(
        [*PATCHED.values(), *SPOKEN.values()],
        [
            "one backbone run, one run with its gradient",
            "one backbone run",
            "one backbone run",
            "a longer answer",
            "knowing the name",
            "nothing",
        ],
        strict=True,
    )
)


def spoken(answers: pd.DataFrame) -> pd.DataFrame:
    """Answers to another way of asking, about facts known by name and missed by picture.

    ``answers`` are records of clean runs; the backbone's say what is known. Adds ``method``.
    """
    rows = keep(answers, missed(answers, "llm_by_name", "by_picture"))
    return _called(rows, "condition", SPOKEN)


def side_by_side(patches: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """Records of every way of repair, with ``method`` and ``missed`` (by picture, unrepaired).

    ``patches`` are records of MLP patches, their unpatched runs included, ``answers`` those of
    clean runs on all facts.
    """
    asked = answers[answers["condition"] == "by_picture"]
    free = patches[patches["method"] == "unpatched"]
    parts = [
        mark_missed(_called(patches, "method", PATCHED), free),
        mark_missed(_called(answers, "condition", SPOKEN), asked),
    ]
    return pd.concat(parts, ignore_index=True)


def harm(repairs: pd.DataFrame) -> pd.DataFrame:
    """Facts answered rightly without a repair and wrongly with it, as texts: method by model.

    ``repairs`` as of :func:`side_by_side`. A first column says what each way costs.
    """
    right = repairs[~repairs["missed"]]
    lost = right.assign(lost=~right["correct"].astype(bool))
    table = counted_table(lost, "method", "model", "lost", words=share_words(0))
    if right.empty:
        return table
    models = [model for model in repairs["model"].unique() if model in table]
    table = table.reindex([method for method in COST if method in table.index])[models]
    table.insert(0, "cost beside the plain run", [COST[method] for method in table.index])
    return table


def override_sentence(cut: pd.DataFrame) -> str:
    """Does the picture override a written name? In words, with intervals.

    ``cut`` are records of :func:`twohop_lib.interventions.given_name.given_name`. It does where
    more facts are right without the picture, and the 95 % interval (over entities) leaves out 0.
    """
    gains = paired_differences(cut, "correct", "edge", [("last→image", "nothing")])
    told = [
        f"{100 * r.value:+.0f} points{spread_words(r.low, r.high, 0, scale=100)} in {r.model} "
        f"(n = {r.n_items})"
        for r in gains.itertuples()
    ]
    loud = gains.loc[gains["low"] > 0, "model"].tolist()
    told_of = (
        f"So in {listed(loud)} the picture overrides some written names."
        if loud
        else "The picture does not override the written name by this path."
    )
    return (
        "With the right name given, cutting the last position off from the picture changes the "
        f"facts by {', '.join(told)}. {told_of}"
    )


def cot_values(back: pd.DataFrame, models: list[str]) -> dict[str, str]:
    """Shares of missed facts that come back, in percent, by the names under which they are glued.

    ``back`` has columns ``model, method, value`` (:func:`twohop_lib.readouts.shares.share_table`).
    """
    value = back.set_index(["model", "method"])["value"].to_dict()
    return {
        f"{condition.removeprefix('name_')}_{model}": percent(value.get((model, method)))
        for model in models
        for condition, method in SPOKEN.items()
    }


def of_known(answers: pd.DataFrame) -> pd.DataFrame:
    """Answers to each of :data:`WAYS` of asking, about facts known by name of recognised entities.

    Missed or not. Adds ``method``, and ``own_name``: the answer is wrong, and is the entity's own
    name (behind the one that is asked for first).
    """
    typed = passing(passing(each_model(answers, cascade), "known_llm"), "recognised")
    rows = _called(keep(answers, typed[list(FACT)]), "condition", WAYS)
    return rows.assign(own_name=names_itself(rows, answers))


def own_name_instead(answers: pd.DataFrame) -> pd.DataFrame:
    """How often the entity's own name is the answer, by picture, to facts as in :func:`of_known`.

    As of :func:`~twohop_lib.readouts.shares.share_table`, one row a model. Facts that were not
    asked by picture are left out.
    """
    typed = each_model(answers, cascade).dropna(subset=["right"])
    typed = passing(passing(typed, "known_llm"), "recognised")
    return share_table(typed, "own_name", ["model"])


def own_name_words(named: pd.DataFrame) -> str:
    """:func:`own_name_instead` for captions: ``84 % (caption) and 3 % (names)``."""
    return listed([f"{counted(r.value, r.n_items)} ({r.model})" for r in named.itertuples()])


def first_title(table: pd.DataFrame) -> str:
    """A title: from how many known facts to how many naming first takes each model.

    ``table`` has columns ``model, method, value`` (of :func:`of_known`).
    """
    at = table.pivot(index="model", columns="method", values="value")
    told = [
        f"{model} from {percent(at.loc[model, WAYS['by_picture']])} to "
        f"{percent(at.loc[model, WAYS['name_first']])} %"
        for model in table["model"].unique()
    ]
    return f"naming first takes {listed(told)} of known facts"


def ways_sentence(ways: pd.DataFrame, noun: str) -> str:
    """Sentences, one a model: how many known facts are right in each way of asking.

    ``ways`` as of :func:`of_known`.
    """
    told = []
    for model, own in ways.groupby("model", sort=False):
        each = []
        for method, part in own.groupby("method", sort=False):
            right, name = (counted(part[c].mean(), len(part)) for c in ("correct", "own_name"))
            each.append(f"{method} {right} ({name})")
        sizes = n_range(own.groupby("method").size())
        told.append(f"{model} {', '.join(each)} (n = {sizes})")
    if not told:
        return "It names nothing that its language model knows."
    return (
        f"Of what its language model gives by name are right, with the {noun}'s own name instead "
        f"in brackets: {'; '.join(told)}."
    )


def _called(rows: pd.DataFrame, column: str, names: dict[str, str]) -> pd.DataFrame:
    kept = rows[rows[column].isin(names)]
    return kept.assign(method=kept[column].map(names))

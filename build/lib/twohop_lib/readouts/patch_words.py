"""What patches bring back, and how a chapter tells of it.

Frames are records of MLP patches and back-patches about facts that the backbone knows, with
``missed`` (:func:`twohop_lib.readouts.selection.mark_missed`).
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from twohop_lib.readouts.captions import (
    counted,
    listed,
    n_range,
    percent,
    percent_range,
    points_with_interval,
    spread_words,
)
from twohop_lib.readouts.selection import best_of_all, best_on_dev
from twohop_lib.readouts.shares import ALL_WORLDS, paired_differences, share_by_world, share_table
from twohop_lib.readouts.tables import counted_table, joined, share_words, whose_table

BACK, BEST = "back-patching", "back-patching, best of all"
#: Methods in the order in which they are shown.
ORDER = (
    "heuristic",
    "all",
    "last",
    "random",
    "residual stream",
    "added",
    BACK,
    BEST,
    "late blocks",
    "noise",
    "wrong entity",
)
#: Patches over all of the picture, by which blocks' outputs are written where.
WINDOWS = (
    "unpatched",
    "first blocks",
    "next blocks",
    "late blocks",
    "written later",
    "wrong entity",
)
#: Those of which it is told whose fact they give, and those that the study recorded.
FOLLOWED = ("unpatched", "heuristic", "wrong entity", "late blocks", "noise")
RECORDED = ("heuristic", "random", "late blocks", "noise", "wrong entity")
#: Pairs of methods that are compared fact by fact.
CONTRASTS = (
    ("heuristic", "random"),
    ("random", "wrong entity"),
    ("heuristic", "late blocks"),
)
#: Short names of the values that a page glues.
SHORT = {"heuristic": "heuristic", "random": "random", "late": "late blocks", "back": BACK}


def how_many(missed: pd.DataFrame) -> pd.DataFrame:
    """How many facts each model misses."""
    once = missed[missed["method"] == "unpatched"]
    return once.groupby("model", sort=False).size().rename("missed facts").to_frame()


def fixed_routes(backed: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, tuple[int, int]]]:
    """Back-patches by the pair of layers that did best on dev entities, on the others.

    Returns the other entities' rows, and each model's (source, layer); models with too few
    entities to choose on are left out.
    """
    parts, routes = [], {}
    moved = backed[backed["source"] > backed["layer"]]
    for model, rows in moved.groupby("model", sort=False):
        chosen = best_on_dev(rows, ("source", "layer"))
        if chosen is not None:
            measured, (source, layer) = chosen
            parts.append(measured)
            routes[str(model)] = (int(source), int(layer))
    return joined(*parts), routes


def recovered(missed: pd.DataFrame, backed: pd.DataFrame) -> pd.DataFrame:
    """Share of missed facts that are right after each method, with intervals over entities.

    ``backed`` are back-patches of missed facts, over all routes. Columns ``model, method, value,
    low, high, n_items, n_entities``.
    """
    fixed, _ = fixed_routes(backed)
    best = best_of_all(backed) if len(backed) else backed
    patched = missed[missed["method"] != "unpatched"]
    every = joined(patched, fixed.assign(method=BACK), best.assign(method=BEST))
    return share_table(every, "correct", ("model", "method"))


def brings_back(table: pd.DataFrame) -> str:
    """A title: the least and the most that the heuristic span brings back."""
    best = table.loc[table["method"] == "heuristic", "value"]
    return f"Early MLP outputs of the backbone bring back {percent_range(best)} of the missed facts"


def whose_facts(missed: pd.DataFrame) -> pd.DataFrame:
    """Whose fact is given after each method of :data:`FOLLOWED`, as texts."""
    rows = missed[missed["method"].isin(FOLLOWED)]
    return whose_table(rows, ("model", "method"))


def harm(patched: pd.DataFrame) -> pd.DataFrame | str:
    """Of the facts that are right without a patch: the share lost to each method, as texts."""
    right = patched[~patched["missed"] & (patched["method"] != "unpatched")]
    if not len(right):
        return "No fact that the backbone knows is right by picture, so none could be lost."
    order = {method: i for i, method in enumerate(ORDER)}
    right = right.sort_values("method", key=lambda m: m.map(order), kind="stable")
    return counted_table(
        right.assign(lost=~right["correct"]), "method", "model", "lost", words=share_words(0)
    )


def values(table: pd.DataFrame, missed: pd.DataFrame, models: Sequence[str]) -> dict[str, str]:
    """Percentages to glue: ``heuristic_late``, ``donor_late`` (the wrong entity's own facts), …"""
    at = table.set_index(["method", "model"])["value"] if len(table) else pd.Series(dtype=float)
    wrong = missed[missed["method"] == "wrong entity"]
    donor = wrong["follows"].eq("donor").groupby(wrong["model"]).mean()
    found = {
        f"{short}_{model}": percent(at.get((method, model)))
        for model in models
        for short, method in SHORT.items()
    }
    return found | {f"donor_{model}": percent(donor.get(model)) for model in models}


def about_one(table: pd.DataFrame, model: str) -> str:
    """A sentence about one model's missed facts."""
    at = table[table["model"] == model].set_index("method")["value"] if len(table) else {}
    if not len(at):
        return f"The backbone knows no fact that {model} misses, so there is nothing to bring back."
    heuristic, random, back = (percent(at.get(m)) for m in ("heuristic", "random", BACK))
    return (
        f"Of the facts that the backbone knows and {model} misses, {heuristic} % come back with "
        f"the heuristic span, {random} % with a random one, and {back} % with back-patching."
    )


def first_against_late(table: pd.DataFrame) -> str:
    """A title: shares right without a patch, and with the first and the late blocks' outputs."""
    at = table.pivot(index="model", columns="method", values="value")
    told = [
        f"{model} from {percent(at.loc[model, 'unpatched'])} to "
        f"{percent(at.loc[model, 'first blocks'])} % ({percent(at.loc[model, 'late blocks'])} %)"
        for model in table["model"].unique()
    ]
    return f"the first (late) blocks' MLP outputs take {listed(told)} of known facts"


def windows_sentence(table: pd.DataFrame, patched: pd.DataFrame) -> str:
    """Sentences, one a model: what is right after each of :data:`WINDOWS`, and whose fact comes.

    ``table`` has columns ``model, method, value, n_items``; ``patched`` are the records.
    """
    wrong = patched[patched["method"] == "wrong entity"]
    donor = wrong["follows"].eq("donor").groupby(wrong["model"]).mean()
    told = []
    for model, own in table.groupby("model", sort=False):
        n = int(own["n_items"].min())
        at = {r.method: counted(r.value, r.n_items) for r in own.itertuples()}
        told.append(
            f"Of known facts {at['unpatched']} are right in {model}, and {at['first blocks']} with "
            "the first blocks' MLP outputs written at the picture (next blocks "
            f"{at['next blocks']}, late ones {at['late blocks']}, the first ones' written later "
            f"{at['written later']}; "
            f"the wrong entity's give its fact in {counted(donor[model], n)}; n = {n})."
        )
    return " ".join(told)


def by_world(missed: pd.DataFrame) -> pd.DataFrame:
    """What :data:`RECORDED` methods bring back in each world and over all, as texts.

    Of the wrong entity's outputs, the share that gives *its* fact. n are the facts of one world.
    """
    rows = missed[missed["method"].isin(RECORDED)]
    wrong = rows["method"] == "wrong entity"
    wanted = rows["follows"].eq("right").mask(wrong, rows["follows"].eq("donor"))
    table = share_by_world(rows.assign(wanted=wanted), "wanted", ("model", "method"))
    told = [
        counted(r.value, r.n_items) + spread_words(r.low, r.high, 0, scale=100)
        for r in table.itertuples()
    ]
    if not told:
        return pd.DataFrame({"no fact is missed": ["–"]})
    sizes = table[table["world"] != ALL_WORLDS].groupby("model")["n_items"].agg(n_range)
    table["model"] = table["model"] + " (n = " + table["model"].map(sizes) + ")"
    wide = table.assign(share=told).pivot(
        index=["model", "method"], columns="world", values="share"
    )
    worlds = sorted(c for c in wide.columns if c != ALL_WORLDS)
    return wide.reindex(columns=[*worlds, *({ALL_WORLDS} & set(wide.columns))]).fillna("–")


def differences(missed: pd.DataFrame) -> pd.DataFrame:
    """:data:`CONTRASTS` fact by fact over all worlds, with intervals."""
    right = missed.assign(right=missed["follows"].eq("right"))
    return paired_differences(right, "right", "method", CONTRASTS)


def readable_differences(table: pd.DataFrame) -> pd.DataFrame:
    """The same to read, in points."""
    told = [points_with_interval(r.value, r.low, r.high, r.n_items) for r in table.itertuples()]
    contrast = table["more"] + " − " + table["less"]
    return pd.DataFrame({"model": table["model"], "difference": contrast, "points [95 %]": told})


def random_sentence(table: pd.DataFrame) -> str:
    """A sentence: how much more the heuristic span brings back than random positions."""
    own = table[(table["more"] == "heuristic") & (table["less"] == "random")]
    told = [
        f"{points_with_interval(r.value, r.low, r.high, r.n_items)} in {r.model}"
        for r in own.itertuples()
    ]
    if not told:
        return "No fact is missed that the backbone knows."
    return (
        "Fact by fact and over all worlds, the heuristic brings back so many points more than "
        f"random positions: {', '.join(told)}."
    )

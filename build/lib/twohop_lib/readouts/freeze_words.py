"""How a chapter tells of frozen pictures: titles, tables and sentences.

Frames are records of freezes (``model, task, layer, until, correct, blocks_read``); ``kept`` and
tables of switches are those of :mod:`twohop_lib.readouts.switch`.
"""

from __future__ import annotations

import pandas as pd

from twohop_lib.models.blocks import UnsupportedSite
from twohop_lib.readouts.captions import counted, counted_with_interval, percent
from twohop_lib.readouts.layers import extremes
from twohop_lib.readouts.selection import split_by_entities
from twohop_lib.readouts.shares import share_table
from twohop_lib.readouts.switch import NEVER, switch_words, to_the_top
from twohop_lib.stats import ENTITY

#: Groups of fewer entities, or that answer less than this share by picture, are not compared.
FEWEST_ENTITIES, LEAST_ANSWERED = 5, 0.1
GROUPS = ("early", "late")


def something(frozen: pd.DataFrame) -> pd.DataFrame:
    """The records of a freeze; raises UnsupportedSite if there are none."""
    if not len(frozen):
        raise UnsupportedSite(
            "This model shows pictures through cross-attention and has no text backbone to freeze "
            "names in; leave this chapter out."
        )
    return frozen


def named_at_the_door(naming: pd.DataFrame) -> str:
    """A title: the most and the least that is named with the picture as it enters the model."""
    ends = extremes(naming[naming["layer"] == 0].groupby("model")["correct"].mean())
    assert ends is not None
    title = f"A picture frozen at the door is still named in {percent(ends.highest)} %"
    title += f" ({ends.at_highest})"
    return title if ends.one else f"{title} to {percent(ends.lowest)} % ({ends.at_lowest})"


def at_the_door(naming: pd.DataFrame) -> str:
    """What is named with the picture as it enters each model: ``41 % (a), 3 of 8 (b)``."""
    first = naming[naming["layer"] == 0].groupby("model", sort=False)["correct"]
    return ", ".join(f"{counted(own.mean(), len(own))} ({model})" for model, own in first)


def facts_at_the_door(facts: pd.DataFrame) -> str:
    """A sentence: the facts that are given with the picture as it enters, and without freezing."""
    told = []
    for model, own in facts.groupby("model", sort=False):
        ends = (own[own["layer"] == 0], own[own["layer"] == own["until"]])
        frozen, free = (counted(end["correct"].mean(), len(end)) for end in ends)
        told.append(f"{model} gives {frozen} with it frozen and {free} without")
    return f"{'; '.join(told)}."


def work_for_facts(facts: pd.DataFrame) -> str:
    """A title: the model whose facts gain most from the first point to the run left alone."""
    by = facts["model"]
    first = facts[facts["layer"] == 0].groupby(by)["correct"].mean()
    free = facts[facts["layer"] == facts["until"]].groupby(by)["correct"].mean()
    most = (free - first).idxmax()
    return (
        f"Facts need blocks to work on the picture: {most} goes from {percent(first[most])} to "
        f"{percent(free[most])} %"
    )


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table of switches to read: one row a model, task and last frozen block T."""
    told = [switch_words(r.switch, r.low, r.high, 2) for r in table.itertuples()]
    return pd.DataFrame(
        {
            "model": table["model"],
            "task": table["task"],
            "T": table["until"].astype(int),
            "blocks until half is back": told,
            "entities": table["n_entities"],
        }
    )


def by_identification(naming: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """Facts by picture of entities identified early, and of the others, in each model.

    Early: named although the picture is frozen from layer 1 on. ``known`` are answers by picture
    to facts that the model knows by name. Columns ``model, identified, value, low, high, n_items,
    n_entities``; groups without an entity are left out.
    """
    at_one = naming[(naming["layer"] == 1) & naming["model"].isin(known["model"])]
    parts = []
    for model, rows in known.groupby("model", sort=False):
        own = at_one[at_one["model"] == model]
        asked = rows.merge(own[list(ENTITY)].drop_duplicates(), on=list(ENTITY))
        named = own[own["correct"].astype(bool)]
        parts.append(asked.assign(identified=split_by_entities(asked, named, GROUPS)))
    every = pd.concat(parts) if parts else known.assign(identified=[])
    table = share_table(every, "correct", ("model", "identified"))
    return table.sort_values(["model", "identified"], kind="stable", ignore_index=True)


def readable_groups(groups: pd.DataFrame) -> pd.DataFrame:
    """The same to read; few facts are counted."""
    told = [
        counted_with_interval(r.value, r.low, r.high, r.n_items, 1) for r in groups.itertuples()
    ]
    shown = groups[["model", "identified"]].assign(**{"facts by picture": told})
    return shown.assign(entities=groups["n_entities"])


def early_against_late(groups: pd.DataFrame) -> str:
    """A sentence: how many more of their facts entities identified early keep."""
    wide = groups.pivot(index="model", columns="identified").reindex(
        columns=pd.MultiIndex.from_product([("value", "n_entities"), GROUPS])
    )
    enough = wide["n_entities"].fillna(0).min(axis=1) >= FEWEST_ENTITIES
    answered = wide["value"].max(axis=1) > LEAST_ANSWERED
    apart = (wide["value"]["early"] - wide["value"]["late"])[enough & answered]
    if apart.empty:
        return (
            "Whether houses identified late lose more facts cannot be told here: where enough are "
            "identified late, hardly any fact is answered by picture."
        )
    told = ", ".join(f"{100 * points:+.0f} points in {model}" for model, points in apart.items())
    return (
        "Houses identified early keep more of their known facts than those identified late by "
        f"{told} (intervals below)."
    )


def blocks_needed(kept: pd.DataFrame, table: pd.DataFrame) -> dict[tuple[str, str], str]:
    """In words, by (model, task): how many blocks must read the picture until half is back.

    Frozen to the top. "at most 1" where half is there from the first point on.
    """
    found = {}
    at = to_the_top(table).set_index(["model", "task"])["switch"]
    start = kept[kept["layer"] == 0].groupby(["model", "task"])["retained"].mean()
    every = pd.concat([kept[["model", "task"]], table[["model", "task"]]]).drop_duplicates()
    for key in every.itertuples(index=False, name=None):
        told = switch_words(at.get(key))
        if told == NEVER and start.get(key, 0.0) >= 0.5:
            told = "at most 1"
        found[key] = told
    return found


def facts_back(needed: dict[tuple[str, str], str]) -> str:
    """A sentence: with how many blocks half of the facts are back, in each model."""
    told = [
        f"{blocks} in {model}"
        for (model, task), blocks in needed.items()
        if task == "fact" and blocks != NEVER
    ]
    return f"half of them are back with {', '.join(told)}." if told else "none are back."


def about_one(model: str, start: pd.Series, needed: dict[tuple[str, str], str]) -> str:
    """A sentence about one model's names and facts under the freeze."""
    if model not in start:
        return f"{model} shows pictures through cross-attention; nothing in it can be frozen."
    blocks = [needed.get((model, task), NEVER) for task in ("identify", "fact")]
    return (
        f"Frozen as it enters the first block, the picture lets {percent(start[model])} % of the "
        f"entities be named; half of them are back after {blocks[0]} blocks (facts: {blocks[1]})."
    )

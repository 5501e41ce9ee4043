"""How a chapter tells of grafts: sentences and titles that follow from their records.

Tables are those of :mod:`.graft_gap` and :mod:`.graft_inside`. What was not measured is said so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from twohop_lib.grafts.recipes import DOSES
from twohop_lib.readouts import deadline_words, graft_gap, graft_inside
from twohop_lib.readouts.captions import (
    NOT_MEASURED,
    counted,
    listed,
    percent,
    percent_range,
)

#: Formats as prose calls them.
FORMATS = {"card": "on cards", "chat": "in chat"}
#: Points from which two seeds of a recipe are told apart.
APART = 0.15


def cell(table: pd.DataFrame, **where: object) -> pd.Series | None:
    """The one row of a table of shares with these values; None if there is none."""
    for column, value in where.items():
        table = table[table[column] == value]
    return None if table.empty else table.iloc[0]


def share(table: pd.DataFrame, **where: object) -> str:
    """A share in words: "4 %", "3 of 7"."""
    row = cell(table, **where)
    return NOT_MEASURED if row is None else counted(row["value"], row["n_items"])


# --- the gap ----------------------------------------------------------------------------------


def base_told(table: pd.DataFrame) -> str:
    """Which relations the language model knows best and least, in one format.

    ``table`` has ``relation, value, n_items``.
    """
    best, worst = table.loc[table["value"].idxmax()], table.loc[table["value"].idxmin()]
    said = [
        f"{r['relation'].replace('_', ' ')} ({counted(r['value'], r['n_items'])})"
        for r in (best, worst)
    ]
    return f"It knows best the {said[0]} of a country, least the {said[1]}"


def named_told(table: pd.DataFrame, format: str) -> str:
    """How many flags the recipes name, as drawn and in other renderings; which names fewest."""
    drawn = _of(table, format, "named")
    unseen = _of(table, format, "named, unseen rendering")
    least = drawn.loc[drawn["value"].idxmin()]
    return (
        f"The recipes name {percent_range(drawn['value'])} of the flags as drawn, and "
        f"{percent_range(unseen['value'])} in renderings that nothing was trained on "
        f"({least['model']} fewest)"
    )


def gap_title(table: pd.DataFrame, format: str) -> str:
    """The least and the most that a recipe gives by picture, of facts that all give by name."""
    rows = _of(table, format, "by picture")
    if rows.empty:
        return "No facts by picture were measured"
    low, high = rows.loc[rows["value"].idxmin()], rows.loc[rows["value"].idxmax()]
    told = f"{low['model']} gives {counted(low['value'], low['n_items'])} by picture"
    if low["model"] != high["model"]:
        told += f", {high['model']} {counted(high['value'], high['n_items'])}"
    return f"Of facts that come by name, {told}"


def formats_told(table: pd.DataFrame) -> str:
    """For which recipes the two formats agree, and what both give where they do not.

    They disagree where the intervals do not overlap.
    """
    agree, differ = [], []
    for model, rows in table[table["measure"] == "by picture"].groupby("model", sort=False):
        both = rows.set_index("format")
        if len(both) < 2 or both["low"].isna().any():
            continue
        one, other = (both.loc[f] for f in FORMATS)
        if max(one["low"], other["low"]) <= min(one["high"], other["high"]):
            agree.append(str(model))
        else:
            rows = [(FORMATS[f], both.loc[f]) for f in FORMATS]
            said = " and ".join(f"{counted(r['value'], r['n_items'])} {where}" for where, r in rows)
            differ.append(f"{model} ({said})")
    if not agree and not differ:
        return "The two formats could not be compared."
    parts = []
    if agree:
        parts.append(f"The two formats agree, within their intervals, for {listed(agree)}")
    if differ:
        lead = "they disagree" if agree else "The two formats disagree"
        parts.append(f"{lead} for {listed(differ)}")
    return "; ".join(parts) + "."


def seeds_told(by_seed: pd.DataFrame, format: str, measure: str = "by picture") -> str:
    """How far seeds of a recipe lie apart in a measure, and for which recipes that is much."""
    rows = _of(by_seed, format, measure)
    spread = rows.groupby("model", sort=False)["value"].agg(["min", "max", "size"])
    spread = spread[spread["size"] > 1]
    if spread.empty:
        return "One seed was measured, so seeds cannot be compared."
    points = 100 * (spread["max"] - spread["min"])
    wide = spread[points > 100 * APART]
    told = f"Seeds of one recipe lie at most {points.max():.0f} points apart ({points.idxmax()})"
    if len(wide) > 1:
        ranges = [f"{m} ({percent_range([r['min'], r['max']])})" for m, r in wide.iterrows()]
        told += f"; they disagree for {listed(ranges)}"
    return told + "."


def own_name_told(table: pd.DataFrame, model: str, format: str) -> str:
    """What a recipe says instead of facts, and whether it answers another question at all."""
    own = share(table, model=model, format=format, measure="its own name")
    colours = share(table, model=model, format=format, measure="colours")
    named = share(table, model=model, format=format, measure="its own name, asked for colours")
    return (
        f"Of the facts asked of {model} by picture, {own} are answered with the country's own "
        f"name; asked for the flag's colours it says the name in {named} and all the colours "
        f"in {colours}"
    )


def outcome_title(table: pd.DataFrame) -> str:
    """Which recipe says its own name most, and which of the others errs otherwise."""
    rows = table[table["outcome"] == graft_gap.OUTCOMES[1]]
    if rows.empty:
        return "What grafts answer by picture"
    most, least = rows.loc[rows["value"].idxmax()], rows.loc[rows["value"].idxmin()]
    told = f"{most['model']} answers {counted(most['value'], most['n_items'])} of questions with "
    told += "the country's own name"
    if most["model"] != least["model"]:
        told += f", {least['model']} {counted(least['value'], least['n_items'])}"
    return told


def course(table: pd.DataFrame, order: Sequence[str], measure: str, format: str) -> str:
    """A measure along a curve of recipes: "4 % (caption), 9 % (caption-0.1), …"."""
    rows = _of(table, format, measure).set_index("model")
    told = [
        f"{counted(rows.loc[m, 'value'], rows.loc[m, 'n_items'])} ({m})"
        for m in order
        if m in rows.index
    ]
    return ", ".join(told) or NOT_MEASURED


def curve_title(table: pd.DataFrame, order: Sequence[str], format: str, what: str) -> str:
    """From what to what facts by picture go along a curve of recipes."""
    rows = _of(table, format, "by picture").set_index("model")
    there = [m for m in order if m in rows.index]
    if len(there) < 2:
        return f"{what}: not yet measured"
    ends = [rows.loc[m] for m in (there[0], there[-1])]
    shares = [counted(row["value"], row["n_items"]) for row in ends]
    return f"{what}: facts by picture go from {shares[0]} ({there[0]}) to {shares[1]} ({there[-1]})"


def _of(table: pd.DataFrame, format: str, measure: str) -> pd.DataFrame:
    return table[(table["format"] == format) & (table["measure"] == measure)]


# --- inside -----------------------------------------------------------------------------------


def likeness_told(
    arrives: Mapping[str, int | None], reading: int | None, facts: Mapping[str, float]
) -> str:
    """Which recipes become name-like, when, and whether the others recall facts all the same.

    ``arrives`` is that of :func:`.graft_inside.arrives`, ``reading`` the last layer at which the
    language model reads the position, ``facts`` each recipe's share of facts by picture.
    """
    never = [m for m in arrives if arrives[m] is None]
    told_at = {m: f"{m} (from layer {at})" for m, at in arrives.items() if at is not None}
    late = [told_at[m] for m in told_at if reading is not None and arrives[m] > reading]
    early = [text for text in told_at.values() if text not in late]
    parts = []
    if early:
        parts.append(
            f"half of the pictures or more are nearest to their own name in {listed(early)}"
        )
    if late:
        parts.append(f"only when the position is no longer read, in {listed(late)}")
    if never:
        parts.append(f"at no layer in {listed(never)}")
    told = "; ".join(parts)
    recall = {m: facts[m] for m in never if m in facts}
    if recall:
        best = max(recall, key=lambda m: recall[m])
        told += f". Yet {best}, never name-like, gives {percent(recall[best])} % by picture"
    return f"{told[:1].upper()}{told[1:]}." if told else "Name-likeness was not measured."


def likeness_title(peaks: pd.DataFrame) -> str:
    """The highest and the lowest peak of name-likeness without a map."""
    rows = peaks[peaks["search"] == "mean of positions"]
    if rows.empty:
        return "Name-likeness by layer"
    high, low = rows.loc[rows["value"].idxmax()], rows.loc[rows["value"].idxmin()]
    said = [
        f"{row['model']} {counted(row['value'], int(row['n_items']))} ({row['where']})"
        for row in (high, low)
    ]
    told = ", ".join(dict.fromkeys(said))
    return f"Pictures nearest to their own name: {told}"


def patch_title(table: pd.DataFrame, early: str) -> str:
    """What the early MLP outputs bring the recipe to that they help most."""
    wide = table.pivot(index="model", columns="patch", values="value")
    if not {"unpatched", early} <= set(wide.columns):
        return "What patches bring back"
    gain = (wide[early] - wide["unpatched"]).idxmax()
    sizes = table.set_index(["model", "patch"])["n_items"]
    before, after = (counted(wide.loc[gain, p], sizes[gain, p]) for p in ("unpatched", early))
    return f"The language model's {early} at the picture take {gain} from {before} to {after}"


def window_title(table: pd.DataFrame) -> str:
    """Where a window of blocks must begin to help most, over all recipes."""
    mean = table.groupby("start")["value"].mean()
    best, worst = int(mean.idxmax()), int(mean.idxmin())
    width = graft_inside.width(table)
    return (
        f"Windows of {width} blocks: those from block {best} on bring back most "
        f"({percent(mean[best])} % on average), from block {worst} on least "
        f"({percent(mean[worst])} %)"
    )


def growth_title(curves: pd.DataFrame) -> str:
    """How far the loss falls in the run on the page, or in the first recipe."""
    one = curves[curves["model"] == curves["model"].iloc[0]].sort_values("step")
    first, last = one["value"].iloc[:3].mean(), one["value"].iloc[-3:].mean()
    return (
        f"In {one['step'].max() + 1} steps ({one['model'].iloc[0]}) the loss goes from {first:.1f} "
        f"to {last:.1f} nats a token"
    )


def takeaways(
    answers: pd.DataFrame, measured: pd.DataFrame, names: Sequence[str], format: str
) -> dict[str, str]:
    """The sentences about answers that the page glues."""
    table = graft_gap.recipes_of(measured, names)
    named = _of(table, format, "named")["value"]
    first = names[0]
    own = own_name_told(table, first, format)
    dosed = [first, *DOSES, "names"]
    dose = course(measured, dosed, "by picture", format)
    some = set(DOSES) & set(measured["model"])
    formats = formats_told(table)
    each = graft_gap.by_seed(graft_gap.recipes_of(answers, names))
    seeds = seeds_told(each, format)
    known = graft_gap.base_answers(answers)
    known = known[known["format"] == format].groupby("relation")["correct"]
    base = known.agg(value="mean", n_items="size").reset_index()
    return {
        "eyes_base": base_told(base),
        "eyes_named": named_told(table, format),
        "eyes_seeds": str(answers["seed"].nunique()),
        "eyes_gap": (
            f"Grafts that name {percent_range(named)} of the flags give by picture, of the facts "
            f"that their language model gives by name: {course(table, names, 'by picture', format)}"
        ),
        "eyes_own": own,
        "eyes_dose": (
            f"The more the name weighs in training, from captions alone to "
            f"the name alone, facts by picture are {dose}"
            if some
            else "The dose between captions and names was not measured"
        ),
        "eyes_formats": formats,
        "eyes_seeds_told": seeds,
        "eyes_own_seeds": seeds_told(each, format, graft_gap.OUTCOMES[1]),
    }


def inner_takeaways(
    deadlines: pd.DataFrame,
    near: pd.DataFrame,
    right: pd.DataFrame,
    early: str,
    by_picture: pd.DataFrame,
    donor: pd.DataFrame,
) -> dict[str, str]:
    """The sentences about the inside that the page glues.

    ``by_picture`` are the rows of :func:`.graft_gap.measured` with facts by picture, one a recipe;
    ``donor`` is :func:`.graft_inside.patched` of the wrong entity's facts.
    """
    reading = deadline_words.last_layers(deadlines)[deadline_words.READ]
    facts = by_picture.set_index("model")["value"].to_dict()
    title = deadline_words.two_deadlines_title(deadlines, 2)
    return {
        "eyes_deadlines": f"{title[:1].lower()}{title[1:]}",
        "eyes_patch": patch_title(right, early),
        "eyes_wrong": percent_range(donor.loc[donor["method"] == "wrong entity", "value"]),
        "eyes_likeness": likeness_told(graft_inside.arrives(near), reading, facts),
    }

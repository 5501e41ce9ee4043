"""How a chapter tells of the stream, layer by layer: titles, sentences and values.

``found`` are tidy frames of 0 and 1 (``model, seed, entity_id, layer, found``; see
:mod:`twohop_lib.readouts.states`), ``lens`` those of :mod:`twohop_lib.readouts.lens` with their
``model``.
"""

from __future__ import annotations

import pandas as pd

from twohop_lib.readouts import arrival
from twohop_lib.readouts.arrival import arrivals
from twohop_lib.readouts.captions import NOT_MEASURED, listed, percent, percent_range
from twohop_lib.readouts.layers import extremes, first_at_least

#: Entities are told apart from the first layer at which so large a share is.
TOLD_APART = 0.9


def likeness_title(found: pd.DataFrame) -> str:
    """Where name-likeness is lowest and highest, by its peak over layers."""
    ends = extremes(arrivals(found).set_index("model")["peak"])
    if ends is None:
        return "Name-likeness was not measured"
    highest = "" if ends.one else f" and {percent(ends.highest)} % in {ends.at_highest}"
    return f"Name-likeness peaks at {percent(ends.lowest)} % in {ends.at_lowest}{highest}"


def nearest_title(found: pd.DataFrame) -> str:
    """A title: how often each model's pictures are nearest to their own name, at its best layer."""
    told = [f"{percent(row.peak)} % ({row.model})" for row in arrivals(found).itertuples()]
    return f"the own name is nearest to at most {listed(told)} of pictures"


def positions_title(found: pd.DataFrame) -> str:
    """A title: at each model's best layer, how often positions are nearest, least to most."""
    told = []
    for model, own in found[found["position"] != "mean"].groupby("model", sort=False):
        at = own.groupby("layer")["found"].mean().idxmax()
        share = own[own["layer"] == at].groupby("position")["found"].mean()
        told.append(f"{percent_range(share)} ({model}, layer {at})")
    return f"position by position, the own name is nearest to {listed(told)} of pictures"


def nearest_sentence(found: pd.DataFrame) -> str:
    """A sentence: of the pictures' mean state, at which layers the own name is nearest.

    ``found`` as of :func:`~twohop_lib.readouts.name_likeness.nearest_by_position`, of the mean.
    """
    told = []
    for model, own in found.groupby("model", sort=False):
        share = own.groupby("layer")["found"].mean()
        half = first_at_least(share, arrival.THRESHOLD)
        first = f"at layer {half} for the first time"
        when = {None: "at no layer", 0: "then already"}.get(half, first)
        told.append(
            f"of {model}'s pictures, {percent(share[0])} % are nearest to their own name as they "
            f"enter, and at most {percent(share.max())} %, at layer {share.idxmax()}; half "
            f"of them are {when}"
        )
    n = found["entity_id"].nunique()
    return f"With no map fitted, {'; '.join(told)} (n = {n}, chance {100 / n:.0f} %)."


def apart_title(found: pd.DataFrame) -> str:
    """From which layer on the entities of each model are told apart (:data:`TOLD_APART`)."""
    first = {
        model: first_at_least(part.groupby("layer")["found"].mean(), TOLD_APART)
        for model, part in found.groupby("model", sort=False)
    }
    told = [f"{layer} ({model})" for model, layer in first.items() if layer is not None]
    if not told:
        return "No model's entities are told apart nine times in ten"
    return f"Entities are told apart ({percent(TOLD_APART)} %) from layer {', '.join(told)}"


def page_values(likeness: pd.DataFrame, probed: pd.DataFrame, lens: pd.DataFrame) -> dict[str, str]:
    """What a page says of the stream, by the names under which it is glued.

    Of each model: the share told apart at layer 1, the peak of name-likeness, its arrival, and its
    peak before arrival. ``model_like`` is a sentence on the first model, ``lens_sentence`` one on
    the model that ``lens`` is of.
    """
    share = probed.groupby(["model", "layer"])["found"].mean()
    table = arrivals(likeness)
    values = {"lens_sentence": lens_sentence(lens)}
    for row in table.itertuples():
        values |= {
            f"probe_{row.model}": percent(share[row.model, 1]),
            f"like_{row.model}": percent(row.peak),
            f"arrives_{row.model}": "none" if pd.isna(row.arrives) else f"{row.arrives:.0f}",
            f"before_{row.model}": percent(row.before),
        }
    first = table.iloc[0]
    n = first["n_entities"]
    values["model_like"] = (
        f"Name-likeness peaks at {percent(first['peak'])} % of {n} unseen entities (chance "
        f"{100 / n:.1f} %); a linear probe tells {percent(share[first['model']].max())} % apart."
    )
    return values


def worlds_table(likeness: pd.DataFrame, recorded: pd.DataFrame) -> pd.DataFrame:
    """Peak and arrival of name-likeness by model and world, as texts.

    ``recorded`` are the study's; where the page has computed the same itself, that is shown.
    """
    keys = ["model", "seed", "entity_id", "layer"]
    table = arrivals(pd.concat([likeness, recorded]).drop_duplicates(keys))
    table["peak"] = table["peak"].map(lambda share: f"{percent(share)} %")
    table["first layer"] = table["arrives"].map(lambda at: "never" if pd.isna(at) else f"{at:.0f}")
    wide = table.pivot(index="model", columns="seed", values=["peak", "first layer"])
    return wide.fillna(NOT_MEASURED)


def control_table(mapped: pd.DataFrame, probe: pd.DataFrame) -> pd.DataFrame:
    """The peaks of both readings with what they are fitted on dealt out at random, and chance.

    ``mapped`` and ``probe`` have a column ``shuffled``.
    """
    columns = {}
    for what, found in (
        ("name-likeness, names dealt out", mapped),
        ("probe, labels shuffled", probe),
    ):
        peaks = arrivals(found[found["shuffled"]]).set_index("model")["peak"]
        chance = 1 / found["entity_id"].nunique()
        columns[f"{what} (chance {percent(chance, 1)} %)"] = peaks.map(
            lambda share: f"{percent(share, 1)} %"
        )
    return pd.DataFrame(columns)


def lens_ends(lens: pd.DataFrame) -> pd.DataFrame:
    """The logit lens at the top: mean probabilities of the right and of the emitted token, and n.

    One row a model and outcome.
    """
    top = lens[lens["layer"] == lens.groupby("model")["layer"].transform("max")]
    return top.groupby(["model", "outcome"], sort=False).agg(
        right=("right", "mean"), emitted=("emitted", "mean"), n=("right", "size")
    )


def lens_n(lens: pd.DataFrame) -> str:
    """How many facts of one model were answered and missed: "n = 34 answered, n = 11 missed"."""
    sizes = lens.drop_duplicates("question_id")["outcome"].value_counts()
    return ", ".join(f"n = {n} {outcome}" for outcome, n in sizes.items())


def lens_title(lens: pd.DataFrame) -> str:
    """Does the right answer rise in one model, where it is given?"""
    (model,) = lens["model"].unique()
    answered = lens_ends(lens)["right"].get((model, "answered"), 0.0)
    rises = "rises only where it is given" if answered > 0.5 else "does not rise"
    return f"In {model}, the right answer {rises}"


def lens_sentence(lens: pd.DataFrame) -> str:
    """How probable the right answer is at the top of one model, answered against missed."""
    (model,) = lens["model"].unique()
    right = lens_ends(lens)["right"].xs(model, level="model")
    if "missed" not in right:
        return f"Through the logit lens, {model} gives no answer that is missed."
    missed = f"{percent(right['missed'])} % where it is missed."
    if "answered" not in right:
        return f"Through the logit lens, the right answer ends at a probability of {missed}"
    return (
        "Through the logit lens, the right answer ends at a probability of "
        f"{percent(right['answered'])} % in {model} where it is given, and at {missed}"
    )

"""Figures of cells: something for each item or component, at each layer or block."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from twohop_lib.figures import theme
from twohop_lib.figures.theme import AnyChart


def draw(rows: pd.DataFrame, x: str, x_title: str, y: alt.Y, colour: Any, tips: Any) -> alt.Chart:
    """Draw a cell for each row of the frame."""
    across = alt.X(f"{x}:O", title=x_title, axis=alt.Axis(labelAngle=0))
    cells = alt.Chart(rows).mark_rect(stroke="#FFFFFF", strokeWidth=0.4)
    return cells.encode(x=across, y=y, color=colour, tooltip=tips)


def items_by_layer(frame: pd.DataFrame, title: str) -> AnyChart:
    """Draw what each item's answer is after a patch at each layer, one row an item.

    Columns ``entity, donor, layer, says, answer``; rows are ordered by where the answer turns.
    Items and answers are shown on hover.
    """
    rows = theme.tidy(frame, ["entity", "donor", "layer", "says"], [], ["answer"])
    rows["item"] = rows["entity"] + " ← " + rows["donor"]
    turned = rows["says"].eq("target").groupby(rows["item"]).sum()
    order = turned.sort_values(kind="stable").index.tolist()
    bare = alt.Axis(labels=False, ticks=False, domain=False)
    says = theme.LOOKS["says"]
    chart = draw(
        rows,
        "layer",
        "Layer patched",
        alt.Y("item:N", sort=order, title=f"{len(order)} pairs (target ← donor)", axis=bare),
        theme.encode(alt.Color, "says", says, theme.legend(says, (3, 3))),
        [alt.Tooltip("entity:N", title="target"), "donor:N", "layer:O", "says:N", "answer:N"],
    )
    shares = rows.groupby("layer")["says"].value_counts(normalize=True).unstack(fill_value=0)
    said = "; ".join(
        f"layer {layer}: " + ", ".join(f"{name} {100 * row.get(name, 0):.0f} %" for name in says)
        for layer, row in shares.iterrows()
    )
    return theme.finish(chart, title, f"What each item says by layer. {said}.", 300)


def component_map(frame: pd.DataFrame, title: str) -> AnyChart:
    """Draw each component's share of attribution: ``component, role, block, share``."""
    rows = theme.tidy(frame, ["component", "role", "block"], ["share"])
    rows["place"] = rows["component"] + " at " + rows["role"].replace({"entity": "name"})
    order = [f"{c} at {r}" for r in ("name", "question", "last") for c in ("mlp", "attn")]
    colour = alt.Color(
        "share:Q",
        title="Share of positive scores",
        scale=alt.Scale(scheme="blues"),
        legend=alt.Legend(orient="bottom", format=".0%"),
    )
    y = alt.Y("place:N", sort=order, title=None)
    tips = ["place:N", "block:O", *theme.tips("share", fmt=".1%")]
    chart = draw(rows, "block", "Block", y, colour, tips)
    said = "; ".join(
        f"{r.place}, block {r.block}: {100 * r.share:.0f} %"
        for r in rows.sort_values("share", ascending=False).head(5).itertuples()
    )
    words = f"Attribution by block and place. {said}."
    return theme.finish(chart, title, words, theme.per_row(26))


def positions_by_layer(frame: pd.DataFrame, title: str) -> AnyChart:
    """Draw a share at each position of the picture and layer: a row for each model and position.

    Columns ``model, position, layer, found``, one row an item.
    """
    keys = ["model", "position", "layer"]
    shares = frame.groupby(keys, sort=False)["found"].mean().rename("share").reset_index()
    rows = theme.tidy(shares, keys, ["share"])
    rows["row"] = rows["model"] + ", " + rows["position"].astype(str)
    colour = alt.Color(
        "share:Q",
        title="Own name nearest",
        scale=alt.Scale(scheme="blues", domain=[0, 1]),
        legend=alt.Legend(orient="bottom", format=".0%"),
    )
    y = alt.Y("row:N", sort=list(dict.fromkeys(rows["row"])), title=None)
    tips = ["row:N", "layer:O", *theme.tips("share", fmt=".0%")]
    chart = draw(rows, "layer", "Layer", y, colour, tips)
    best = rows.loc[rows.groupby("row", sort=False)["share"].idxmax()]
    said = "; ".join(
        f"{r.row}: {100 * r.share:.0f} % at layer {r.layer}" for r in best.itertuples()
    )
    words = f"Share by position of the picture and layer. Highest of each row: {said}."
    return theme.finish(chart, title, words, theme.per_row(16))


def confusion(frame: pd.DataFrame, title: str) -> AnyChart:
    """Draw how often each planted cause was found to be which: ``planted, found, n, of``.

    A cell's colour is its share of the row, its text the count.
    """
    rows = theme.tidy(frame, ["planted", "found"], ["n", "of"])
    rows["share"] = rows["n"] / rows["of"]
    rows["label"] = rows["n"].astype(int).astype(str)
    planted = list(dict.fromkeys(rows["planted"]))
    order = [*planted, *(c for c in dict.fromkeys(rows["found"]) if c not in planted)]
    colour = alt.Color(
        "share:Q", scale=alt.Scale(scheme="blues", domain=[0, 1]), legend=None, title="Share of row"
    )
    y = alt.Y("planted:N", sort=planted, title="Planted")
    x = alt.X(
        "found:N", sort=order, title="Found", axis=alt.Axis(labelAngle=-30, labelOverlap=False)
    )
    base = alt.Chart(rows).encode(x=x, y=y)
    cells = base.mark_rect(stroke="#FFFFFF").encode(
        color=colour, tooltip=["planted:N", "found:N", "n:Q", "of:Q"]
    )
    text = base.mark_text(fontSize=13).encode(
        text="label:N",
        color=alt.condition("datum.share > 0.5", alt.value(theme.PAPER), alt.value(theme.INK)),
    )
    said = "; ".join(
        f"{r.planted} found as {r.found}: {int(r.n)} of {int(r.of)}"
        for r in rows[rows["n"] > 0].itertuples()
    )
    words = f"Counts of models by planted and found cause. {said}."
    return theme.finish(cells + text, title, words, theme.per_row(34))

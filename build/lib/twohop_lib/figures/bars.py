"""Figures of bars: what is left at each step, what it consists of, and how often rules agree."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from twohop_lib.figures import theme
from twohop_lib.figures.theme import INK, AnyChart


def rows_of(rows: pd.DataFrame, by: str) -> alt.Chart:
    """Return a chart with a row for each value of a column, on which bars and labels stand."""
    return alt.Chart(rows).encode(y=theme.bands(by, theme.looks(by, rows[by])))


def label(base: alt.Chart, x: Any, size: int = 11, **mark: Any) -> alt.Chart:
    """Return the texts of column ``label``, at ``x``."""
    return base.mark_text(fontSize=size, **mark).encode(x=x, text="label:N")


def _said(rows: pd.DataFrame, what: pd.Series) -> str:
    """Each model's values in words."""
    models = theme.looks("model", rows["model"])
    return "; ".join(f"{m}: {', '.join(what[rows['model'] == m])}" for m in models) + "."


def cascade_bars(frame: pd.DataFrame) -> AnyChart:
    """Draw how many items each model has left at each step of the cascade.

    Columns ``model, step, n_items``: :func:`twohop_lib.readouts.cascade.cascade_counts` of each
    model. Bars carry the model's name and n, so that no legend is needed.
    """
    rows = theme.tidy(frame, ["model", "step"], ["n_items"])
    models = theme.looks("model", rows["model"])
    largest = max(1, int(rows["n_items"].max()))
    # Long names do not fit on a bar: they go to a legend, whose order is that of the bars.
    named = max(map(len, models)) <= theme.LABEL_WIDTH
    counts = rows["n_items"].map("{:,}".format)
    rows["label"] = rows["model"] + "  " + counts if named else counts
    rows["inside"] = rows["n_items"] > 0.5 * largest
    inks = {model: theme.ink_on(look.colour) for model, look in models.items()}
    rows["ink"] = rows["model"].map(inks).where(rows["inside"], INK)
    base = rows_of(rows, "step").encode(
        yOffset=alt.YOffset("model:N", sort=list(models), scale=alt.Scale(paddingInner=0.1))
    )
    legend = None if named else theme.legend(models, (1, 2))
    bars = base.mark_bar().encode(
        x=alt.X("n_items:Q", title="Facts left (n)", scale=alt.Scale(domain=[0, largest])),
        color=theme.encode(alt.Color, "model", models, legend),
        tooltip=["model:N", "step:N", "n_items:Q"],
    )
    inked, x = base.encode(color=alt.Color("ink:N", scale=None, legend=None)), alt.X("n_items:Q")
    inside = label(inked.transform_filter("datum.inside"), x, align="right", dx=-5)
    outside = label(inked.transform_filter("!datum.inside"), x, align="left", dx=5)
    said = _said(rows, rows["step"].astype(str) + " " + rows["n_items"].astype(str))
    return theme.finish(
        bars + inside + outside,
        _cascade_finding(rows),
        f"Bars of the number of facts left at each step. {said}",
        alt.Step(max(16, min(22, 60 // len(models))), **{"for": "offset"}),
    )


def _cascade_finding(rows: pd.DataFrame) -> str:
    steps = rows.pivot(index="model", columns="step", values="n_items")
    if not {"not blind-solvable", "linking failure"} <= set(steps.columns):
        return "Facts left at each step of the cascade"
    shares = steps["linking failure"] / steps["not blind-solvable"]
    if shares.isna().all():
        return "No model has facts left after the cascade"
    failed, of = steps.loc[shares.idxmax(), ["linking failure", "not blind-solvable"]]
    return f"{shares.idxmax()} fails to link {failed:,} of the {of:,} facts that pass its cascade"


def failure_bars(frame: pd.DataFrame, title: str | None = None) -> AnyChart:
    """Draw the share of each type of outcome, stacked, one bar per model.

    Columns ``model, type, share``: :func:`twohop_lib.readouts.cascade.failure_shares` of each
    model. Segments stand in the order of the legend and carry their share where there is room.
    """
    rows = theme.tidy(frame, ["model", "type"], ["share"])
    rows["type"] = rows["type"].astype(str)
    rows["order"] = rows["type"].map(list(theme.LOOKS["type"]).index)
    rows = rows.sort_values(["model", "order"], kind="stable")
    # Stacked here, so that a label can sit in the middle of its segment.
    rows["end"] = rows.groupby("model")["share"].cumsum()
    rows["start"] = rows["end"] - rows["share"]
    rows["middle"] = (rows["start"] + rows["end"]) / 2
    shown = rows["share"].map(theme.percentage)
    rows["label"] = shown.where(rows["share"] >= 0.1, "")
    kinds, models = theme.looks("type", rows["type"]), theme.looks("model", rows["model"])
    legend = theme.legend(kinds, (2, 3), beside=models, symbolStrokeWidth=1.5)
    base = rows_of(rows, "model")
    bars = base.mark_bar(strokeWidth=1.5).encode(
        x=theme.shares(alt.X, "start", "Share of facts (%)"),
        x2="end:Q",
        fill=theme.encode(alt.Fill, "type", kinds, legend),
        stroke=theme.encode(alt.Stroke, "type", kinds, legend),
        strokeDash=theme.encode(alt.StrokeDash, "type", kinds, legend),
        tooltip=["model:N", "type:N", *theme.tips("share", fmt=".1%")],
    )
    linking = rows[rows["type"] == "linking failure"].set_index("model")["share"]
    finding = "Types of outcome"
    if len(linking):
        most, least = theme.percentage(linking.max()), theme.percentage(linking.min())
        finding = f"Linking failures are {most} of {linking.idxmax()}'s answers"
        finding += f" and {least} of {linking.idxmin()}'s" if len(linking) > 1 else ""
    return theme.finish(
        bars + label(base, "middle:Q", color=INK),
        title or finding,
        "Stacked bars of the share of each type of outcome. "
        + _said(rows, rows["type"] + " " + shown),
        theme.per_row(max(34, theme.row_height(models))),
    )

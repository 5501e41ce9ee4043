"""Figures of lines with bands: a quantity against the training step or the layer."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from twohop_lib.figures import theme
from twohop_lib.figures.theme import AnyChart


def draw(
    rows: pd.DataFrame,
    title: str,
    description: str,
    x: alt.X,
    y: alt.Y,
    *,
    group: str,
    tooltip: list[Any],
    columns: tuple[int, int],
    **line: Any,
) -> AnyChart:
    """Draw a line for each of ``group``, and a band if there are columns ``low`` and ``high``.

    ``columns`` are the legend's; ``line`` goes to the mark.
    """
    names = theme.looks(group, rows[group])
    stroke = {"symbolType": "stroke", "symbolSize": 500, "symbolStrokeWidth": 2.5}
    legend = theme.legend(names, columns, symbolOpacity=1, **stroke)
    base = alt.Chart(rows).encode(x=x, color=theme.encode(alt.Color, group, names, legend))
    dash = theme.encode(alt.StrokeDash, group, names, legend)
    chart: AnyChart = base.mark_line(strokeWidth=2, **line)
    chart = chart.encode(y=y, strokeDash=dash, tooltip=tooltip)
    if {"low", "high"} <= set(rows.columns):
        low = alt.Y("low:Q", title=y["title"], scale=y["scale"])
        chart = base.mark_area(opacity=0.16).encode(y=low, y2="high:Q") + chart
    return theme.finish(chart, title, description, 260)


def line_by_step(
    frame: pd.DataFrame,
    title: str | None = None,
    *,
    y_title: str,
    percent: bool = False,
    log: bool = False,
) -> AnyChart:
    """Draw a quantity of each model (a loss, an accuracy) against the training step.

    Columns ``model, step, value`` and optionally ``low, high``, drawn as a band. ``y_title``
    names the quantity and its unit; ``percent`` shows fractions as percentages.
    """
    band = [column for column in ("low", "high") if column in frame.columns]
    rows = theme.tidy(frame, ["model", "step"], ["value", *band])
    last = rows.sort_values("step").groupby("model")["value"].last()
    last = last.map(theme.percentage if percent else "{:.2g}".format)
    said = ", ".join(f"{model} {last[model]}" for model in theme.looks("model", rows["model"]))
    final = f"{y_title} at the last step: {said}"
    scale = alt.Scale(type="log") if log else alt.Scale(zero=True)
    value = alt.Y("value:Q", title=y_title, scale=scale, axis=alt.Axis())
    return draw(
        rows,
        title or final,
        f"Lines of {y_title} against training step. {final}.",
        alt.X("step:Q", title="Training step", axis=alt.Axis(grid=False, format="~s")),
        theme.shares(alt.Y, "value", y_title) if percent else value,
        group="model",
        tooltip=["model:N", "step:Q", *theme.tips("value", fmt=".3~f")],
        columns=(2, 6),
    )


def lines_by_layer(
    frame: pd.DataFrame,
    title: str,
    *,
    y_title: str,
    x: str = "layer",
    x_title: str = "Layer",
    group: str = "model",
    share: bool = True,
) -> AnyChart:
    """Draw a quantity against the layer, one line with points and a band for each ``group``.

    Columns ``group, x, value, low, high`` (:func:`twohop_lib.readouts.switch.curve`). ``share``
    shows fractions as percentages from 0 to 100.
    """
    rows = theme.tidy(frame, [group, x], ["value", "low", "high"])
    shown = "{:.0%}".format if share else "{:.2f}".format

    def course(name: str) -> str:
        own = rows[rows[group] == name].sort_values(x)
        values = own["value"].map(shown).str.replace("%", " %")
        return ", ".join(f"{at:g}: {value}" for at, value in zip(own[x], values, strict=True))

    said = "; ".join(f"{name}, by layer {course(name)}" for name in theme.looks(group, rows[group]))
    axis = alt.Axis(title=x_title, grid=False, tickMinStep=1, format="d")
    value = alt.Y("value:Q", title=y_title, scale=alt.Scale(zero=True), axis=alt.Axis())
    fmt = ".0%" if share else ".2f"
    where = alt.Tooltip(f"{x}:Q", title=x_title)
    what = alt.Tooltip("value:Q", title=y_title, format=fmt)
    return draw(
        rows,
        title,
        f"{y_title} against {x_title}. {said}.",
        alt.X(f"{x}:Q", axis=axis, scale=alt.Scale(nice=False)),
        theme.shares(alt.Y, "value", y_title) if share else value,
        group=group,
        tooltip=[f"{group}:N", where, what, *theme.tips("low", "high", fmt=fmt)],
        columns=(1, 4),
        point=alt.OverlayMarkDef(size=28),
    )

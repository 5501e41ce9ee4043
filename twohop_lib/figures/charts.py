"""The book's figures: one Altair theme, one palette, and a function per kind of figure.

Importing this module registers and enables the theme. Every figure is a single or layered view as
wide as its container, with the legend below, so that it stays readable on a phone; title and
legend break their lines by the width at hand. A colour always comes with a second encoding (a
position, a shape, a dash or a label), and every chart carries a ``description`` for readers who
cannot see it. The functions take tidy frames of fractions and return an ``alt.Chart`` or
``alt.LayerChart``; titles state the finding, and are computed where none is given.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import altair as alt
import pandas as pd

from twohop_lib.errors import TwohopError

AnyChart = alt.Chart | alt.LayerChart
Unit = Literal["points", "relative"]

# --- the palette: Okabe & Ito, and where a colour is spent it is spent nowhere else in a chart --

#: Colour of each organism. Other models take :data:`OTHER_COLOURS` in order of appearance.
MODEL_COLOURS = {
    "backbone": "#000000",
    "late": "#D55E00",
    "middle": "#E69F00",
    "early": "#009E73",
    "cross": "#CC79A7",
}
MODEL_SHAPES = {
    "backbone": "circle",
    "late": "square",
    "middle": "triangle-up",
    "early": "diamond",
    "cross": "cross",
}
MODEL_DASHES: dict[str, list[int]] = {
    "backbone": [1, 0],
    "late": [8, 3],
    "middle": [4, 2],
    "early": [1, 2],
    "cross": [8, 3, 1, 3],
}
OTHER_COLOURS = ("#0072B2", "#56B4E9", "#8C510A", "#5E4FA2", "#66A61E", "#666666")
OTHER_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
OTHER_DASHES: tuple[list[int], ...] = (
    [1, 0],
    [8, 3],
    [4, 2],
    [1, 2],
    [8, 3, 1, 3],
    [12, 4],
)

#: Colour of each arm: how the question was put.
ARM_COLOURS = {
    "backbone by name": "#000000",
    "by name": "#0072B2",
    "by picture": "#D55E00",
    "name first": "#56B4E9",
    "blank picture": "#999999",
}
ARM_SHAPES = {
    "backbone by name": "diamond",
    "by name": "circle",
    "by picture": "square",
    "name first": "triangle-up",
    "blank picture": "cross",
}
#: Condition of the answer records -> arm.
ARM_OF_CONDITION = {
    "llm_by_name": "backbone by name",
    "by_name": "by name",
    "by_picture": "by picture",
    "name_first": "name first",
    "blank_by_picture": "blank picture",
}

#: Colour of each type of outcome, in stacking order (:data:`twohop_lib.readouts.gap.TYPES`).
TYPE_COLOURS = {
    "right": "#009E73",
    "right without recognition": "#8FD3BC",
    "linking failure": "#D55E00",
    "unknown fact": "#E69F00",
    "unseen entity": "#999999",
}

#: Outlines tell types apart where colour does not: a linking failure is ruled in, an unseen
#: entity dotted.
TYPE_OUTLINES = dict.fromkeys(TYPE_COLOURS, "#FFFFFF") | {
    "linking failure": "#222222",
    "unseen entity": "#222222",
}
TYPE_DASHES: dict[str, list[int]] = {kind: [1, 0] for kind in TYPE_COLOURS} | {
    "unseen entity": [2, 2]
}

#: Definition of the gap -> its label, with the unit that its value has.
DEFINITION_LABELS = {
    "degradation": "against backbone (% of it)",
    "difference": "against by name (points)",
    "controlled": "controlled drop (% of by name)",
}
DEFINITION_COLOURS = {
    "degradation": "#000000",
    "difference": "#0072B2",
    "controlled": "#CC79A7",
}
DEFINITION_SHAPES = {"degradation": "diamond", "difference": "circle", "controlled": "square"}

#: Scoring rules, in the order in which they are shown.
RULE_COLOURS = {"twohop": "#000000", "popvqa": "#0072B2", "inclusion": "#E69F00"}
RULE_SHAPES = {"twohop": "circle", "popvqa": "square", "inclusion": "triangle-up"}

INK = "#222222"
FAINT = "#DDDDDD"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

#: Below these widths of a figure (pixels) titles, and below the first legends, are narrower.
NARROW, MEDIUM = 500, 660
#: That width. Not the plot's, which changes when the room for a title is already taken.
_SHOWN = "(isFinite(containerSize()[0]) ? containerSize()[0] : width)"
#: Characters of a row's name per line.
LABEL_WIDTH = 18
#: Characters of a title per line, by width.
_TITLE = (42, 60, 84)


@alt.theme.register("twohop", enable=True)
def theme() -> alt.theme.ThemeConfig:
    """Return the theme shared by every figure of the book."""
    text = {"labelFont": FONT, "titleFont": FONT, "labelColor": INK, "titleColor": INK}
    return {
        "config": {
            "background": "#FFFFFF",
            "font": FONT,
            "padding": 4,
            "autosize": {"type": "fit-x", "contains": "padding", "resize": True},
            "title": {
                "anchor": "start",
                "frame": "bounds",
                "fontSize": 14,
                "fontWeight": 600,
                "color": INK,
                "offset": 10,
                "lineHeight": 18,
            },
            "axis": {
                **text,
                "labelFontSize": 12,
                "titleFontSize": 12,
                "titleFontWeight": "normal",
                "gridColor": FAINT,
                "domainColor": "#888888",
                "tickColor": "#888888",
                "labelOverlap": True,
            },
            "axisX": {"titlePadding": 8, "tickCount": 5, "labelFlush": True, "labelSeparation": 6},
            "axisY": {"tickCount": 5, "labelLimit": 160},
            "legend": {
                **text,
                "orient": "bottom",
                "direction": "horizontal",
                "labelFontSize": 12,
                "titleFontSize": 12,
                "titleFontWeight": "normal",
                "labelLimit": {"expr": f"{_SHOWN} < {NARROW} ? 215 : 320"},
                "symbolSize": 90,
                "columnPadding": 14,
                "offset": 12,
            },
            "view": {"stroke": None},
            "range": {"category": [*MODEL_COLOURS.values()]},
        }
    }


# --- the figures ----------------------------------------------------------------------------


def accuracy_by_arm(frame: pd.DataFrame, title: str | None = None) -> AnyChart:
    """Draw the accuracy of each model in each arm, with intervals.

    Columns ``model, arm, accuracy, low, high``; ``arm`` is a key of :data:`ARM_COLOURS` (see
    :data:`ARM_OF_CONDITION`).
    """
    rows = _rows(frame, "accuracy_by_arm", ["model", "arm", "accuracy", "low", "high"])
    _known_values(rows, "arm", ARM_COLOURS)
    return _dots(
        rows,
        value="accuracy",
        group="arm",
        colours=ARM_COLOURS,
        shapes=ARM_SHAPES,
        x=alt.X("accuracy:Q", title="Facts answered (%)", axis=_percent(), scale=_share()),
        title=title or _accuracy_finding(rows),
        what="Accuracy of each model by arm",
        unit=" %",
    )


def gap_by_model(
    frame: pd.DataFrame, title: str | None = None, *, unit: Unit = "points"
) -> AnyChart:
    """Draw each model's gap, one point per training seed, with intervals and a rule at zero.

    Columns ``model, seed, gap, low, high``. ``unit`` says whether the gap is a difference of
    accuracies ("points") or a share of the reference arm ("relative").
    """
    rows = _rows(frame, "gap_by_model", ["model", "seed", "gap", "low", "high"])
    rows["seed"] = "seed " + rows["seed"].astype(str)
    models = _order(rows["model"], MODEL_COLOURS)
    seeds = list(dict.fromkeys(sorted(rows["seed"])))
    means = rows.dropna(subset=["gap"]).groupby("model")["gap"].mean()
    finding = "No model has a gap that can be measured"
    if len(means):
        worst, best = means.idxmax(), means.idxmin()
        finding = f"The gap is {_amount(means[worst], unit)} in {worst}"
        if worst != best:
            finding += f" and {_amount(means[best], unit)} in {best}"
    return _dots(
        rows,
        value="gap",
        group="seed",
        colours=_styles(models, MODEL_COLOURS, OTHER_COLOURS),
        shapes=dict(zip(seeds, _cycle(OTHER_SHAPES, len(seeds)), strict=True)),
        colour_by="model",
        x=_gap_axis(_gap_title(unit)),
        title=title or finding,
        what="Gap of each model by training seed",
        unit=" points" if unit == "points" else " %",
        zero=True,
    )


def gap_definitions(frame: pd.DataFrame, title: str | None = None) -> AnyChart:
    """Draw the three definitions of the gap side by side for each model, with intervals.

    Columns ``model, definition, gap, low, high``, one row per model and definition: take one
    population of :func:`twohop_lib.readouts.gap.gap_table`.
    """
    rows = _rows(frame, "gap_definitions", ["model", "definition", "gap", "low", "high"])
    _known_values(rows, "definition", DEFINITION_LABELS)
    _one_each(rows, ["model", "definition"], "gap_definitions")
    spread = rows.dropna(subset=["gap"]).groupby("model")["gap"].agg(["min", "max"])
    finding = "No gap can be measured"
    if len(spread):
        widest = (spread["max"] - spread["min"]).idxmax()
        low, high = (round(100 * v) for v in spread.loc[widest])
        finding = f"The definition alone takes {widest}'s gap from {low} to {high}"
    rows["definition"] = rows["definition"].map(DEFINITION_LABELS)
    return _dots(
        rows,
        value="gap",
        group="definition",
        colours={DEFINITION_LABELS[k]: v for k, v in DEFINITION_COLOURS.items()},
        shapes={DEFINITION_LABELS[k]: v for k, v in DEFINITION_SHAPES.items()},
        x=_gap_axis("Gap (% or points, see legend)"),
        title=title or finding,
        what="Gap of each model by three definitions",
        unit="",
        zero=True,
        legend_columns=(1, 3),
    )


def rule_effect(
    frame: pd.DataFrame, title: str | None = None, *, unit: Unit = "points"
) -> AnyChart:
    """Draw each model's gap under each scoring rule, with intervals.

    Columns ``model, rule, gap, low, high``; ``rule`` is a key of :data:`RULE_COLOURS`.
    """
    rows = _rows(frame, "rule_effect", ["model", "rule", "gap", "low", "high"])
    _known_values(rows, "rule", RULE_COLOURS)
    _one_each(rows, ["model", "rule"], "rule_effect")
    ranges = rows.dropna(subset=["gap"]).groupby("model")["gap"].agg(lambda g: g.max() - g.min())
    finding = "The gap under each scoring rule"
    if len(ranges):
        most = ranges.idxmax()
        finding = f"The scoring rule moves {most}'s gap by {_amount(ranges[most], 'points')}"
        finding += " at most" if len(ranges) == 1 else ", and no other model's by more"
    return _dots(
        rows,
        value="gap",
        group="rule",
        colours=RULE_COLOURS,
        shapes=RULE_SHAPES,
        x=_gap_axis(_gap_title(unit)),
        title=title or finding,
        what="Gap of each model by scoring rule",
        unit=" points" if unit == "points" else " %",
        zero=True,
    )


def cascade_bars(frame: pd.DataFrame, title: str | None = None) -> AnyChart:
    """Draw how many items each model has left at each step of the cascade.

    Columns ``model, step, n_items``: :func:`twohop_lib.readouts.gap.cascade_counts` of each
    model. Bars carry the model's name and n, so that no legend is needed.
    """
    rows = _rows(frame, "cascade_bars", ["model", "step", "n_items"])
    _one_each(rows, ["model", "step"], "cascade_bars")
    models = _order(rows["model"], MODEL_COLOURS)
    steps = list(dict.fromkeys(rows["step"]))
    colours = _styles(models, MODEL_COLOURS, OTHER_COLOURS)
    largest = max(1, int(rows["n_items"].max()))
    # Long names do not fit on a bar: they go to a legend, whose order is that of the bars.
    named = max(map(len, models)) <= LABEL_WIDTH
    counts = rows["n_items"].map("{:,}".format)
    rows["label"] = rows["model"] + "  " + counts if named else counts
    rows["inside"] = rows["n_items"] > 0.5 * largest
    rows["ink"] = [
        _ink_on(colours[model]) if inside else INK
        for model, inside in zip(rows["model"], rows["inside"], strict=True)
    ]
    base = alt.Chart(rows).encode(
        y=alt.Y("step:N", sort=steps, title=None, axis=_category_axis(steps), scale=_bands()),
        yOffset=alt.YOffset("model:N", sort=models, scale=alt.Scale(paddingInner=0.1)),
    )
    bars = base.mark_bar().encode(
        x=alt.X("n_items:Q", title="Facts left (n)", scale=alt.Scale(domain=[0, largest])),
        color=_colour("model", models, colours, None if named else _legend(models, (1, 2))),
        tooltip=["model:N", "step:N", "n_items:Q"],
    )
    text = base.encode(
        x=alt.X("n_items:Q"), text="label:N", color=alt.Color("ink:N", scale=None, legend=None)
    )
    inside = text.transform_filter("datum.inside").mark_text(align="right", dx=-5, fontSize=11)
    outside = text.transform_filter("!datum.inside").mark_text(align="left", dx=5, fontSize=11)
    if title is None:
        title = _cascade_finding(rows)
    said = [
        f"{model}: "
        + ", ".join(f"{r.step} {r.n_items}" for r in rows[rows["model"] == model].itertuples())
        for model in models
    ]
    return _finish(
        bars + inside + outside,
        title,
        f"Bars of the number of facts left at each step. {'; '.join(said)}.",
        step=max(16, min(22, 60 // len(models))),
    )


def failure_bars(frame: pd.DataFrame, title: str | None = None) -> AnyChart:
    """Draw the share of each type of outcome, stacked, one bar per model.

    Columns ``model, type, share``: :func:`twohop_lib.readouts.gap.failure_shares` of each model.
    Segments stand in the order of the legend and carry their share where there is room.
    """
    rows = _rows(frame, "failure_bars", ["model", "type", "share"])
    _known_values(rows, "type", TYPE_COLOURS)
    _one_each(rows, ["model", "type"], "failure_bars")
    models = _order(rows["model"], MODEL_COLOURS)
    rows["order"] = rows["type"].map({kind: i for i, kind in enumerate(TYPE_COLOURS)}).astype(int)
    rows["type"] = rows["type"].astype(str)
    rows = rows.sort_values(["model", "order"], kind="stable")
    # Stacked here, so that a label can sit in the middle of its segment.
    rows["end"] = rows.groupby("model")["share"].cumsum()
    rows["start"] = rows["end"] - rows["share"]
    rows["middle"] = (rows["start"] + rows["end"]) / 2
    rows["label"] = [_percentage(share) if share >= 0.1 else "" for share in rows["share"]]
    kinds = [kind for kind in TYPE_COLOURS if rows["type"].eq(kind).any()]
    base = alt.Chart(rows).encode(
        y=alt.Y("model:N", sort=models, title=None, axis=_category_axis(models), scale=_bands())
    )
    legend = _legend(kinds, (2, 3), beside=models, symbolStrokeWidth=1.5)
    bars = base.mark_bar(strokeWidth=1.5).encode(
        x=alt.X("start:Q", title="Share of facts (%)", axis=_percent(), scale=_share()),
        x2="end:Q",
        fill=alt.Fill("type:N", title=None, legend=legend, **_scaled(kinds, TYPE_COLOURS)),
        stroke=alt.Stroke("type:N", title=None, legend=legend, **_scaled(kinds, TYPE_OUTLINES)),
        strokeDash=alt.StrokeDash(
            "type:N", title=None, legend=legend, **_scaled(kinds, TYPE_DASHES)
        ),
        tooltip=["model:N", "type:N", alt.Tooltip("share:Q", format=".1%")],
    )
    labels = base.mark_text(fontSize=11, color=INK).encode(x="middle:Q", text="label:N")
    if title is None:
        linking = rows[rows["type"] == "linking failure"].set_index("model")["share"]
        title = "Types of outcome"
        if len(linking):
            title = f"Linking failures are {_percentage(linking.max())} of {linking.idxmax()}'s"
            title += " answers"
            if len(linking) > 1:
                title += f" and {_percentage(linking.min())} of {linking.idxmin()}'s"
    said = [
        f"{model}: "
        + ", ".join(
            f"{r.type} {_percentage(r.share)}" for r in rows[rows["model"] == model].itertuples()
        )
        for model in models
    ]
    return _finish(
        bars + labels,
        title,
        f"Stacked bars of the share of each type of outcome. {'; '.join(said)}.",
        step=max(34, _row_height(models)),
        step_for="position",
    )


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
    rows = _rows(frame, "line_by_step", ["model", "step", "value"])
    models = _order(rows["model"], MODEL_COLOURS)
    colours = _styles(models, MODEL_COLOURS, OTHER_COLOURS)
    dashes = _styles(models, MODEL_DASHES, OTHER_DASHES)
    legend = _legend(
        models,
        (2, 6),
        symbolType="stroke",
        symbolSize=500,
        symbolStrokeWidth=2.5,
        symbolOpacity=1,
    )
    scale = alt.Scale(type="log") if log else _share() if percent else alt.Scale(zero=True)
    x = alt.X("step:Q", title="Training step", axis=alt.Axis(grid=False, format="~s"))
    y = alt.Y(
        "value:Q",
        title=y_title,
        scale=scale,
        axis=_percent() if percent else alt.Axis(),
    )
    lines = (
        alt.Chart(rows)
        .mark_line(strokeWidth=2)
        .encode(
            x=x,
            y=y,
            color=_colour("model", models, colours, legend=legend),
            strokeDash=alt.StrokeDash(
                "model:N",
                legend=legend,
                title=None,
                **_scaled(models, dashes),
            ),
            tooltip=["model:N", "step:Q", alt.Tooltip("value:Q", format=".3~f")],
        )
    )
    chart: AnyChart = lines
    if {"low", "high"} <= set(rows.columns):
        band = (
            alt.Chart(rows)
            .mark_area(opacity=0.18)
            .encode(
                x=x,
                y=alt.Y("low:Q", title=y_title, scale=scale),
                y2="high:Q",
                color=_colour("model", models, colours, legend=legend),
            )
        )
        chart = band + lines
    last = rows.sort_values("step").groupby("model").tail(1).set_index("model")
    ends = [
        f"{model} {_percentage(v) if percent else f'{v:.2g}'}"
        for model, v in ((m, last["value"][m]) for m in models)
    ]
    final = f"{y_title} at the last step: {', '.join(ends)}"
    return _finish(
        chart,
        title or final,
        f"Lines of {y_title} against training step. {final}.",
        height=260,
    )


def agreement_by_rule(frame: pd.DataFrame, title: str | None = None) -> AnyChart:
    """Draw how often each scoring rule agrees with the labels given by hand, with intervals.

    Columns ``rule, agreement, low, high``; ``rule`` is a key of :data:`RULE_COLOURS`.
    """
    rows = _rows(frame, "agreement_by_rule", ["rule", "agreement", "low", "high"])
    _known_values(rows, "rule", RULE_COLOURS)
    _one_each(rows, ["rule"], "agreement_by_rule")
    rules = _order(rows["rule"], RULE_COLOURS)
    best = rows.loc[rows["agreement"].idxmax()]
    finding = f"{best['rule']} agrees with {_percentage(best['agreement'])} of the hand labels"
    rows["label"] = rows["agreement"].map(_percentage)
    base = alt.Chart(rows).encode(
        y=alt.Y("rule:N", sort=rules, title=None, axis=_category_axis(rules), scale=_bands())
    )
    axis = alt.X(
        "agreement:Q",
        title="Agreement with hand labels (%)",
        axis=_percent(grid=False),
        scale=_share(),
    )
    bars = base.mark_bar().encode(
        x=axis,
        color=_colour("rule", rules, RULE_COLOURS, legend=None),
        # Pale enough to carry dark text.
        opacity=alt.value(0.35),
        tooltip=["rule:N", *_interval_tips("agreement", ".1%")],
    )
    interval = base.mark_rule(strokeWidth=2, color=INK).encode(x="low:Q", x2="high:Q")
    # At the foot of the bar, out of the interval's way.
    labels = base.mark_text(align="left", dx=6, fontSize=12, color=INK).encode(
        x=alt.datum(0), text="label:N"
    )
    said = "; ".join(
        f"{r.rule} {_percentage(r.agreement)}{_interval_words(r.low, r.high, ' %')}"
        for r in rows.itertuples()
    )
    return _finish(
        bars + interval + labels,
        title or finding,
        f"Bars of the agreement of each scoring rule with hand labels. {said}.",
        step=34,
        step_for="position",
    )


def rule_shares(frame: pd.DataFrame, title: str, *, x_title: str) -> AnyChart:
    """Draw a share per relation and scoring rule, with intervals.

    Columns ``relation, rule, share, low, high``; ``rule`` is a key of :data:`RULE_COLOURS`.
    """
    rows = _rows(frame, "rule_shares", ["relation", "rule", "share", "low", "high"])
    _known_values(rows, "rule", RULE_COLOURS)
    _one_each(rows, ["relation", "rule"], "rule_shares")
    return _dots(
        rows,
        by="relation",
        value="share",
        group="rule",
        colours=RULE_COLOURS,
        shapes=RULE_SHAPES,
        x=alt.X("share:Q", title=x_title, axis=_percent(), scale=_share()),
        title=title,
        what=f"{x_title}, by relation and scoring rule",
        unit=" %",
    )


# --- captions and pictures ------------------------------------------------------------------


def caption_n(frame: pd.DataFrame, by: str = "model", items: str = "facts") -> str:
    """Return the sample sizes of a figure as a phrase for its caption.

    ``frame`` has columns ``n_items``, optionally ``n_entities``, and ``by``. Sizes that vary
    within a group are given as a range.
    """
    _rows(frame, "caption_n", [by, "n_items"])

    def size(group: pd.DataFrame) -> str:
        words = f"{_range(group['n_items'])} {items}"
        if "n_entities" in group:
            words += f" of {_range(group['n_entities'])} entities"
        return words

    sizes = {str(name): size(group) for name, group in frame.groupby(by, sort=False)}
    if len(set(sizes.values())) == 1:
        each = f" for each {by}" if len(sizes) > 1 else ""
        return f"n = {next(iter(sizes.values()))}{each}"
    return "n = " + "; ".join(f"{words} ({name})" for name, words in sizes.items())


def at_width(chart: AnyChart, width: int) -> AnyChart:
    """Return a copy of a figure with a width in pixels, for output that has no container."""
    return alt.Chart.from_dict(fixed(chart.to_dict(), width))


def fixed(spec: Mapping[str, Any], width: int) -> dict[str, Any]:
    """A figure's specification with a width in pixels, for output that has no container."""
    known = json.loads(json.dumps(spec).replace(_SHOWN, str(width)))
    return known | ({"width": width} if known.get("width") == "container" else {})


def save_png(chart: AnyChart, path: str | Path, width: int = 700, scale: float = 2) -> None:
    """Save a figure as a PNG of ``width`` pixels times ``scale``."""
    at_width(chart, width).save(str(path), format="png", scale_factor=scale)


# --- inside: frames -------------------------------------------------------------------------


def _rows(frame: pd.DataFrame, name: str, columns: Sequence[str]) -> pd.DataFrame:
    """Return a copy of what the chart needs, rounded: it is written into the page."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise TwohopError(f"{name} needs the column(s) {', '.join(missing)}.")
    if frame.empty:
        raise TwohopError(f"{name} was given no rows; there is nothing to draw.")
    extra = [column for column in ("low", "high") if column in frame.columns]
    rows = frame[list(dict.fromkeys([*columns, *extra]))].copy()
    if "model" in rows:
        rows["model"] = rows["model"].map(lambda model: str(model).rsplit("/", 1)[-1])
    for column in rows.columns:
        if column not in ("model", "arm", "seed", "definition", "rule", "type", "step", "relation"):
            rows[column] = pd.to_numeric(rows[column])
            if rows[column].dtype.kind == "f":
                rows[column] = rows[column].round(5)
    return rows.reset_index(drop=True)


def _known_values(rows: pd.DataFrame, column: str, known: Mapping[str, str]) -> None:
    unknown = sorted(set(rows[column].astype(str)) - set(known))
    if unknown:
        raise TwohopError(
            f"Unknown {column} {', '.join(unknown)}; this chart knows {', '.join(known)}."
        )


def _one_each(rows: pd.DataFrame, keys: list[str], name: str) -> None:
    repeated = rows[rows.duplicated(keys)]
    if len(repeated):
        which = ", ".join(str(repeated.iloc[0][key]) for key in keys)
        raise TwohopError(f"{name} needs one row per {' and '.join(keys)}; {which} has several.")


def _order(values: pd.Series, fixed: Mapping[str, Any]) -> list[str]:
    present = list(dict.fromkeys(values.astype(str)))
    return [v for v in fixed if v in present] + [v for v in present if v not in fixed]


def _cycle(values: Sequence[Any], n: int) -> list[Any]:
    return [values[i % len(values)] for i in range(n)]


def _styles(names: Sequence[str], fixed: Mapping[str, Any], others: Sequence[Any]) -> dict:
    free = [name for name in names if name not in fixed]
    return {
        **{name: fixed[name] for name in names if name in fixed},
        **dict(zip(free, _cycle(others, len(free)), strict=True)),
    }


# --- inside: pieces of charts ---------------------------------------------------------------


def _dots(
    rows: pd.DataFrame,
    *,
    value: str,
    group: str,
    colours: Mapping[str, str],
    shapes: Mapping[str, str],
    x: alt.X,
    title: str,
    what: str,
    unit: str,
    by: str = "model",
    colour_by: str | None = None,
    zero: bool = False,
    legend_columns: tuple[int, int] = (2, 5),
) -> AnyChart:
    """Draw points with intervals: a band for each of ``by``, and in it a row per ``group``."""
    bands = _order(rows[by], MODEL_COLOURS)
    groups = _order(rows[group], shapes)
    colour_by = colour_by or group
    keys = bands if colour_by == by else groups
    # One legend for colour and shape; where colour is the model, the axis names it already.
    legend = _legend(groups, legend_columns, beside=bands) if len(groups) > 1 else None
    base = alt.Chart(rows).encode(
        y=alt.Y(f"{by}:N", sort=bands, title=None, axis=_category_axis(bands), scale=_bands()),
        yOffset=alt.YOffset(f"{group}:N", sort=groups, scale=alt.Scale(padding=0.4)),
        color=_colour(colour_by, keys, colours, legend=legend if colour_by == group else None),
    )
    intervals = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", title=x["title"]), x2="high:Q"
    )
    points = base.mark_point(filled=True, size=70, opacity=1).encode(
        x=x,
        shape=alt.Shape(
            f"{group}:N",
            legend=legend,
            title=None,
            **_scaled(groups, shapes),
        ),
        tooltip=[f"{by}:N", f"{group}:N", *_interval_tips(value, ".1%")],
    )
    layers: list[AnyChart] = [intervals, points]
    if zero:
        rule = alt.Chart(pd.DataFrame({"zero": [0]})).mark_rule(color="#888888", strokeWidth=1.5)
        layers.insert(0, rule.encode(x=alt.X("zero:Q", title=x["title"])))
    said = "; ".join(
        f"{row[by]}, {row[group]}: {_number(row[value])}{unit if _there(row[value]) else ''}"
        f"{_interval_words(row['low'], row['high'], '')}"
        for _, row in rows.iterrows()
    )
    step = max(14 * len(groups) + 12, _row_height(bands))
    return _finish(
        alt.layer(*layers),
        title,
        f"{what}, with intervals. {said}.",
        step=step,
        step_for="position",
    )


def _finish(
    chart: AnyChart,
    title: str,
    description: str,
    *,
    step: int | None = None,
    step_for: Literal["offset", "position"] = "offset",
    height: int | None = None,
) -> AnyChart:
    tall = height if step is None else alt.Step(step, **{"for": step_for})
    return chart.properties(
        width="container",
        height=tall,
        title=alt.TitleParams(text=_wrapped(title)),
        description=f"{title}. {description}".replace("..", "."),
    )


def _wrapped(title: str) -> alt.ExprRef:
    """Break a title into lines by the width that the figure has when it is shown."""
    # Ordinary hyphenated words stay whole; the names of published models are too long to.
    hyphens = any(len(word) > LABEL_WIDTH for word in title.split())
    narrow, medium, wide = (
        json.dumps(
            textwrap.wrap(title, width, break_on_hyphens=hyphens) or [""], ensure_ascii=False
        )
        for width in _TITLE
    )
    return _by_width(narrow, medium, wide)


def _by_width(narrow: object, medium: object, wide: object) -> alt.ExprRef:
    """An expression of the value for the width that the figure has when it is shown."""
    return alt.ExprRef(f"{_SHOWN} < {NARROW} ? {narrow} : {_SHOWN} < {MEDIUM} ? {medium} : {wide}")


def _legend(
    labels: Sequence[str], columns: tuple[int, int], beside: Sequence[str] = (), **more: Any
) -> alt.Legend:
    """Lay a legend out in at most ``columns`` columns, on a phone and on a desktop.

    The legend starts where the plot does, so the row names ``beside`` the plot take their width
    from it.
    """
    taken = max((7 * len(line) for name in beside for line in _label_lines(name)), default=0)

    def fitting(most: int, pixels: int) -> int:
        most = max(1, min(most, len(labels)))
        return max(n for n in range(1, most + 1) if n == 1 or _fits(labels, n, pixels - taken))

    narrow, medium = fitting(columns[0], 320), fitting(columns[1], NARROW - 10)
    wide = fitting(columns[1], MEDIUM - 10)
    return alt.Legend(title=None, columns=_by_width(narrow, medium, wide), **more)


def _fits(labels: Sequence[str], columns: int, pixels: float) -> bool:
    widths = [max(map(len, labels[i::columns]), default=0) for i in range(columns)]
    return sum(6.2 * width + 16 for width in widths) + 14 * (columns - 1) <= pixels


def _colour(
    column: str, domain: Sequence[str], colours: Mapping[str, str], legend: alt.Legend | None
) -> alt.Color:
    return alt.Color(f"{column}:N", legend=legend, title=None, **_scaled(domain, colours))


def _scaled(domain: Sequence[str], styles: Mapping[str, Any]) -> dict[str, Any]:
    """Fix which style each name has, and the order of the names."""
    values = [styles[name] for name in domain]
    return {"sort": list(domain), "scale": alt.Scale(domain=list(domain), range=values)}


def _category_axis(names: Sequence[str]) -> alt.Axis:
    """Name the rows, in several lines where a name (of a published model) is long."""
    broken = {name: lines for name in names if len(lines := _label_lines(name)) > 1}
    more: dict[str, Any] = {}
    if broken:
        lookup = json.dumps(broken, ensure_ascii=False)
        more["labelExpr"] = f"{lookup}[datum.label] || datum.label"
        # Vega centres the first line on the row; move the block up so that its middle is.
        more["labelOffset"] = {
            "condition": [
                {"test": f"datum.value === {json.dumps(name)}", "value": -7 * (len(lines) - 1)}
                for name, lines in broken.items()
            ],
            "value": 0,
        }
    return alt.Axis(ticks=False, domain=False, labelPadding=6, grid=False, **more)


def _label_lines(name: str) -> list[str]:
    pieces = [piece for piece in re.split(r"(?<=[-_ ])", name) if piece]
    lines = [""]
    for piece in pieces:
        if lines[-1] and len(lines[-1] + piece.rstrip()) > LABEL_WIDTH:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def _row_height(names: Sequence[str]) -> int:
    """Return the pixels that a row needs for its name."""
    return 10 + 14 * max(len(_label_lines(name)) for name in names)


def _bands() -> alt.Scale:
    return alt.Scale(paddingInner=0.25, paddingOuter=0.1)


def _percent(grid: bool = True) -> alt.Axis:
    # The unit stands in the axis title, once.
    return alt.Axis(labelExpr="round(datum.value * 100)", values=[0, 0.25, 0.5, 0.75, 1], grid=grid)


def _share() -> alt.Scale:
    return alt.Scale(domain=[0, 1])


def _gap_axis(title: str) -> alt.X:
    # Fractions on a scale labelled in hundredths: percent and points read the same.
    return alt.X("gap:Q", title=title, axis=alt.Axis(labelExpr="round(datum.value * 100)"))


def _gap_title(unit: Unit) -> str:
    return "Gap (percentage points)" if unit == "points" else "Gap (% of the reference arm)"


def _interval_tips(value: str, fmt: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{column}:Q", format=fmt) for column in (value, "low", "high")]


# --- inside: words --------------------------------------------------------------------------


def _there(value: float | None) -> bool:
    return value is not None and value == value


def _number(value: float | None) -> str:
    return f"{100 * value:.0f}" if _there(value) else "not measured"


def _percentage(value: float) -> str:
    return f"{100 * value:.0f}\N{NO-BREAK SPACE}%"


def _amount(value: float, unit: Unit) -> str:
    return f"{100 * value:.0f}\N{NO-BREAK SPACE}points" if unit == "points" else _percentage(value)


def _interval_words(low: float | None, high: float | None, unit: str) -> str:
    if not (_there(low) and _there(high)):
        return ""
    return f" ({_number(low)} to {_number(high)}{unit})"


def _range(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _accuracy_finding(rows: pd.DataFrame) -> str:
    arms = rows.pivot_table(index="model", columns="arm", values="accuracy", aggfunc="mean")
    if not {"by name", "by picture"} <= set(arms.columns):
        return "Accuracy of each model by arm"
    worst = (arms["by name"] - arms["by picture"]).idxmax()
    name, picture = arms.loc[worst, ["by name", "by picture"]]
    return f"{worst} answers {_percentage(name)} by name and {_percentage(picture)} by picture"


def _cascade_finding(rows: pd.DataFrame) -> str:
    steps = rows.pivot(index="model", columns="step", values="n_items")
    if not {"not blind-solvable", "linking failure"} <= set(steps.columns):
        return "Facts left at each step of the cascade"
    shares = steps["linking failure"] / steps["not blind-solvable"]
    if shares.isna().all():
        return "No model has facts left after the cascade"
    worst = shares.idxmax()
    return (
        f"{worst} fails to link {steps['linking failure'][worst]:,} of the "
        f"{steps['not blind-solvable'][worst]:,} facts that pass its cascade"
    )


def luminance(colour: str) -> float:
    """Return the relative luminance of ``#RRGGBB``, 0 to 1 (WCAG 2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(first: str, second: str) -> float:
    """Return the contrast ratio of two colours, 1 to 21 (WCAG 2)."""
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def _ink_on(colour: str) -> str:
    return max((INK, "#FFFFFF"), key=lambda ink: contrast(ink, colour))

"""Figures of points with intervals: a row for each model, relation or method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from twohop_lib.errors import TwohopError
from twohop_lib.figures import theme
from twohop_lib.figures.theme import AnyChart, Unit


def draw(
    rows: pd.DataFrame,
    title: str,
    what: str,
    x: alt.X,
    *,
    value: str,
    group: str,
    by: str = "model",
    bands: Sequence[str] = (),
    coloured: str = "",
    unit: str = " %",
    scale: int = 100,
    zero: bool = False,
    columns: tuple[int, int] = (2, 5),
) -> AnyChart:
    """Draw points with intervals: a band for each of ``by``, and in it a row per ``group``.

    Columns ``by, group, value, low, high``. The description says ``what`` is drawn, and values
    times ``scale`` with their ``unit``. ``coloured`` is the column that the colour shows, if that
    is not ``group``; ``columns`` are the legend's.
    """
    bands = list(bands or theme.looks(by, rows[by]))
    groups = theme.looks(group, rows[group])
    # One legend for colour and shape; where colour is the model, the axis names it already.
    legend = theme.legend(groups, columns, beside=bands) if len(groups) > 1 else None
    colour = theme.encode(alt.Color, group, groups, legend)
    if coloured:
        colour = theme.encode(alt.Color, coloured, theme.looks(coloured, rows[coloured]))
    base = alt.Chart(rows).encode(
        y=theme.bands(by, bands),
        yOffset=alt.YOffset(f"{group}:N", sort=list(groups), scale=alt.Scale(padding=0.4)),
        color=colour,
    )
    intervals = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", title=x["title"]), x2="high:Q"
    )
    tips = theme.tips(value, "low", "high", fmt=".1%" if scale == 100 else ".1f")
    points = base.mark_point(filled=True, size=70, opacity=1).encode(
        x=x,
        shape=theme.encode(alt.Shape, group, groups, legend),
        tooltip=[f"{by}:N", f"{group}:N", *tips],
    )
    layers: list[AnyChart] = [intervals, points]
    if zero:
        rule = alt.Chart(pd.DataFrame({"zero": [0]})).mark_rule(color="#888888", strokeWidth=1.5)
        layers.insert(0, rule.encode(x=alt.X("zero:Q", title=x["title"])))
    said = (
        f"{row[by]}, {row[group]}: "
        + theme.measured(*(scale * row[[value, "low", "high"]]), unit, digits=int(scale == 1))
        for _, row in rows.iterrows()
    )
    height = theme.per_row(max(14 * len(groups) + 12, theme.row_height(bands)))
    return theme.finish(
        alt.layer(*layers), title, f"{what}, with intervals. {'; '.join(said)}.", height
    )


def accuracy_by_arm(frame: pd.DataFrame, title: str | None = None) -> AnyChart:
    """Draw accuracies: columns ``model, arm, accuracy, low, high`` (see ``ARM_OF_CONDITION``)."""
    rows = theme.tidy(frame, ["model", "arm"], ["accuracy", "low", "high"])
    what = finding = "Accuracy of each model by arm"
    arms = rows.pivot(index="model", columns="arm", values="accuracy")
    if {"by name", "by picture"} <= set(arms.columns):
        worst = (arms["by name"] - arms["by picture"]).idxmax()
        name, picture = map(theme.percentage, arms.loc[worst, ["by name", "by picture"]])
        finding = f"{worst} answers {name} by name and {picture} by picture"
    x = theme.shares(alt.X, "accuracy", "Facts answered (%)")
    return draw(rows, title or finding, what, x, value="accuracy", group="arm")


def _gaps(rows: pd.DataFrame, title: str, by: str, unit: Unit | None, **more: Any) -> AnyChart:
    """Draw gaps: fractions on a scale in hundredths, so that percent and points read the same."""
    where, said = {
        "points": ("Gap (percentage points)", " points"),
        "relative": ("Gap (% of the reference arm)", " %"),
        None: ("Gap (% or points, see legend)", ""),
    }[unit]
    x = alt.X("gap:Q", title=where, axis=alt.Axis(labelExpr="round(datum.value * 100)"))
    what = f"Gap of each model by {by}"
    return draw(rows, title, what, x, value="gap", unit=said, zero=True, **more)


def _amount(value: float, unit: Unit) -> str:
    words = theme.percentage(value)
    return words.replace("%", "points") if unit == "points" else words


def gap_by_model(
    frame: pd.DataFrame, title: str | None = None, *, unit: Unit = "points"
) -> AnyChart:
    """Draw each model's gap, one point per training seed: ``model, seed, gap, low, high``.

    ``unit`` says whether the gap is a difference of accuracies ("points") or a share of the
    reference arm ("relative").
    """
    rows = theme.tidy(frame, ["model", "seed"], ["gap", "low", "high"])
    rows["seed"] = "seed " + rows["seed"].astype(str)
    means = rows.dropna(subset=["gap"]).groupby("model")["gap"].mean()
    finding = "No model has a gap that can be measured"
    if len(means):
        worst, best = means.idxmax(), means.idxmin()
        finding = f"The gap is {_amount(means[worst], unit)} in {worst}"
        finding += f" and {_amount(means[best], unit)} in {best}" if worst != best else ""
    rows = rows.sort_values("seed", kind="stable")
    return _gaps(rows, title or finding, "training seed", unit, group="seed", coloured="model")


def gap_definitions(frame: pd.DataFrame) -> AnyChart:
    """Draw the three definitions of the gap side by side for each model.

    Columns ``model, definition, gap, low, high``: one population of
    :func:`twohop_lib.readouts.gap.gap_table`.
    """
    frame = frame.replace({"definition": theme.DEFINITION_LABELS})
    rows = theme.tidy(frame, ["model", "definition"], ["gap", "low", "high"])
    spread = rows.dropna(subset=["gap"]).groupby("model")["gap"].agg(["min", "max"])
    finding = "No gap can be measured"
    if len(spread):
        widest = (spread["max"] - spread["min"]).idxmax()
        low, high = (round(100 * v) for v in spread.loc[widest])
        finding = f"The definition alone takes {widest}'s gap from {low} to {high}"
    by = "three definitions"
    return _gaps(rows, finding, by, None, group="definition", columns=(1, 3))


def rule_effect(frame: pd.DataFrame) -> AnyChart:
    """Draw each model's gap under each scoring rule: ``model, rule, gap, low, high``."""
    rows = theme.tidy(frame, ["model", "rule"], ["gap", "low", "high"])
    ranges = rows.dropna(subset=["gap"]).groupby("model")["gap"].agg(lambda g: g.max() - g.min())
    finding = "The gap under each scoring rule"
    if len(ranges):
        most = ranges.idxmax()
        finding = f"The scoring rule moves {most}'s gap by {_amount(ranges[most], 'points')}"
        finding += " at most" if len(ranges) == 1 else ", and no other model's by more"
    return _gaps(rows, finding, "scoring rule", "points", group="rule")


def scoring_effect(frame: pd.DataFrame, title: str) -> AnyChart:
    """Draw each model's gap under each way of scoring: ``model, scoring, gap, low, high``."""
    rows = theme.tidy(frame, ["model", "scoring"], ["gap", "low", "high"])
    return _gaps(rows, title, "way of scoring", "points", group="scoring")


def rule_shares(frame: pd.DataFrame, title: str, *, x_title: str) -> AnyChart:
    """Draw a share per relation and scoring rule: ``relation, rule, share, low, high``."""
    rows = theme.tidy(frame, ["relation", "rule"], ["share", "low", "high"])
    x, what = theme.shares(alt.X, "share", x_title), f"{x_title}, by relation and scoring rule"
    return draw(rows, title, what, x, by="relation", value="share", group="rule")


def depths(frame: pd.DataFrame, title: str) -> AnyChart:
    """Draw the block at which each experiment turns: ``model, experiment, switch, low, high``.

    Experiments without a ``switch`` are left out.
    """
    rows = theme.tidy(frame, ["model", "experiment"], ["switch", "low", "high"])
    rows = rows.dropna(subset=["switch"])
    if rows.empty:
        raise TwohopError("No experiment turned at any depth; there is nothing to draw.")
    reads = "Blocks that read the picture undisturbed"
    x = alt.X("switch:Q", title=reads, scale=alt.Scale(zero=True), axis=alt.Axis(format="~g"))
    look: dict[str, Any] = {"unit": "", "scale": 1, "columns": (1, 3)}
    what = "Depth at which each experiment turns"
    return draw(rows, title, what, x, value="switch", group="experiment", **look)


def by_method(frame: pd.DataFrame, order: Sequence[str], title: str) -> AnyChart:
    """Draw a share for each method, one point a model: ``model, method, value, low, high``.

    Methods stand in ``order``; others are left out.
    """
    rows = theme.tidy(frame, ["method", "model"], ["value", "low", "high"])
    rows = rows[rows["method"].isin(order)].dropna(subset=["value"])
    if rows.empty:
        raise TwohopError("The figure was given no rows; there is nothing to draw.")
    x = theme.shares(alt.X, "value", "Share (%)")
    bands = [method for method in order if method in set(rows["method"])]
    by: dict[str, Any] = {"by": "method", "bands": bands, "group": "model"}
    return draw(rows, title, "Share by method", x, value="value", **by)


def predicted_measured(frame: pd.DataFrame, title: str) -> AnyChart:
    """Draw measured against predicted shares, with the line of equality.

    Columns ``model, seed, predicted, measured``.
    """
    rows = theme.tidy(frame, ["model", "seed"], ["predicted", "measured"])
    models = theme.looks("model", rows["model"])
    legend = theme.legend(models, (2, 4))
    across = theme.shares(alt.X, "predicted", "Predicted (%)")
    up = theme.shares(alt.Y, "measured", "Measured (%)")
    equal = alt.Chart(pd.DataFrame({"predicted": [0, 1], "measured": [0, 1]}))
    equal = equal.mark_line(color="#888888", strokeDash=[4, 3], strokeWidth=1.5)
    points = alt.Chart(rows).mark_point(filled=True, size=90, opacity=0.9)
    points = points.encode(
        x=across,
        y=up,
        color=theme.encode(alt.Color, "model", models, legend),
        shape=theme.encode(alt.Shape, "model", models, legend),
        tooltip=["model:N", "seed:N", "predicted:Q", "measured:Q"],
    )
    said = "; ".join(
        f"{r.model}, seed {r.seed}: predicted {100 * r.predicted:.0f} %, "
        f"measured {100 * r.measured:.0f} %"
        for r in rows.itertuples()
    )
    return theme.finish(alt.layer(equal.encode(x=across, y=up), points), title, f"{said}.", 320)


def explorer(frame: pd.DataFrame, title: str) -> AnyChart:
    """Draw the answers of one pair at every layer; a menu chooses the pair, without a kernel.

    Columns ``entity, donor, layer, says, answer``.
    """
    rows = theme.tidy(frame, ["entity", "donor", "layer", "says"], [], ["answer"])
    rows["pair"] = rows["entity"] + " ← " + rows["donor"]
    pairs = sorted(rows["pair"].unique())
    menu = alt.binding_select(options=pairs, name="Target ← donor: ")
    pair = alt.selection_point(name="shown", fields=["pair"], bind=menu, value=rows["pair"].iloc[0])
    says = theme.LOOKS["says"]
    base = alt.Chart(rows).transform_filter(pair)
    base = base.encode(
        y=alt.Y("layer:O", title="Layer patched", sort="ascending"),
        tooltip=["entity:N", "donor:N", "layer:O", "says:N", "answer:N"],
    )
    upright = alt.Axis(labelAngle=0)
    marks = base.mark_point(size=110, filled=True, opacity=1).encode(
        x=alt.X("says:N", sort=list(says), title="The answer is that of the", axis=upright),
        color=theme.encode(alt.Color, "says", says),
        shape=theme.encode(alt.Shape, "says", says),
    )
    words = base.mark_text(dy=-12, fontSize=11)
    words = words.encode(x=alt.X("says:N", sort=list(says)), text="answer:N")
    return theme.finish(
        alt.layer(marks, words).add_params(pair),
        title,
        f"Answers at each layer for one of {len(pairs)} pairs of {rows['entity'].nunique()} "
        "targets and their donors, chosen from a menu.",
        360,
    )

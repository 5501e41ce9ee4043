"""Figures of sweeps: outcomes by layer, items by layer, and depths side by side.

They follow :mod:`twohop_lib.figures.charts`: same theme, same colours for the same models, a second
encoding beside every colour, a description for readers who cannot see the figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from twohop_lib.errors import TwohopError
from twohop_lib.figures import charts
from twohop_lib.figures.charts import AnyChart

#: Whose name or fact is given after a patch.
SAYS_COLOURS = {"donor": "#0072B2", "neither": "#BBBBBB", "target": "#D55E00"}
SAYS_DASHES: dict[str, list[int]] = {"donor": [1, 0], "neither": [2, 2], "target": [8, 3]}
SAYS_SHAPES = {"donor": "circle", "neither": "diamond", "target": "square"}

EXPERIMENT_COLOURS = {
    "cross-patch": "#0072B2",
    "cross-patch, fact": "#56B4E9",
    "freeze": "#E69F00",
    "knockout": "#CC79A7",
    "name in the backbone": "#000000",
}
EXPERIMENT_SHAPES = {
    "cross-patch": "circle",
    "cross-patch, fact": "circle",
    "freeze": "square",
    "knockout": "triangle-up",
    "name in the backbone": "diamond",
}
EDGE_COLOURS = {
    "question→image": "#0072B2",
    "last→image": "#D55E00",
    "last→question": "#009E73",
}
EDGE_DASHES: dict[str, list[int]] = {
    "question→image": [1, 0],
    "last→image": [8, 3],
    "last→question": [2, 2],
}
OUTCOME_COLOURS = {"answered": "#009E73", "missed": "#D55E00"}
OUTCOME_DASHES: dict[str, list[int]] = {"answered": [1, 0], "missed": [8, 3]}
#: States of different depth, from the lowest up.
STATE_COLOURS = ("#56B4E9", "#0072B2", "#000000")
STATE_DASHES: tuple[list[int], ...] = ([2, 2], [1, 0], [8, 3])
#: Characters of an answer that a figure shows.
LONGEST = 40
_X_TITLE = "Layer"


def lines_by_layer(
    frame: pd.DataFrame,
    title: str,
    *,
    y_title: str,
    x: str = "layer",
    x_title: str = _X_TITLE,
    group: str = "model",
    colours: Mapping[str, str] | None = None,
    dashes: Mapping[str, list[int]] | None = None,
    share: bool = True,
) -> AnyChart:
    """Draw a quantity against the layer, one line with points and a band for each ``group``.

    Columns ``group, x, value, low, high`` (:func:`twohop_lib.readouts.switch.curve`). ``share``
    shows fractions as percentages from 0 to 100. ``colours`` and ``dashes`` default to the
    models' own.
    """
    rows = _clean(frame, [group, x, "value", "low", "high"])
    rows[group] = rows[group].map(lambda name: str(name).rsplit("/", 1)[-1])
    colours, dashes = colours or charts.MODEL_COLOURS, dashes or charts.MODEL_DASHES
    names = charts._order(rows[group], colours)
    legend = charts._legend(
        names, (1, 4), symbolType="stroke", symbolSize=500, symbolStrokeWidth=2.5, symbolOpacity=1
    )
    scale = charts._share() if share else alt.Scale(zero=True)
    axis = alt.Axis(title=x_title, grid=False, tickMinStep=1, format="d")
    across = alt.X(f"{x}:Q", axis=axis, scale=alt.Scale(nice=False))
    value = alt.Y(
        "value:Q", title=y_title, scale=scale, axis=charts._percent() if share else alt.Axis()
    )
    colour = charts._colour(
        group, names, charts._styles(names, colours, charts.OTHER_COLOURS), legend=legend
    )
    base = alt.Chart(rows)
    band = base.mark_area(opacity=0.16).encode(
        x=across, y=alt.Y("low:Q", title=y_title, scale=scale), y2="high:Q", color=colour
    )
    lines = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=28)).encode(
        x=across,
        y=value,
        color=colour,
        strokeDash=alt.StrokeDash(
            f"{group}:N",
            legend=legend,
            title=None,
            **charts._scaled(names, charts._styles(names, dashes, charts.OTHER_DASHES)),
        ),
        tooltip=[
            f"{group}:N",
            alt.Tooltip(f"{x}:Q", title=x_title),
            alt.Tooltip("value:Q", title=y_title, format=".0%" if share else ".2f"),
            alt.Tooltip("low:Q", format=".0%" if share else ".2f"),
            alt.Tooltip("high:Q", format=".0%" if share else ".2f"),
        ],
    )
    said = "; ".join(_course(rows[rows[group] == name], name, x, share) for name in names)
    return charts._finish(
        alt.layer(band, lines), title, f"{y_title} against {x_title}. {said}.", height=260
    )


def _course(rows: pd.DataFrame, name: str, x: str, share: bool) -> str:
    ordered = rows.sort_values(x)
    shown = [
        f"{row[x]:g}: {100 * row['value']:.0f} %" if share else f"{row[x]:g}: {row['value']:.2f}"
        for _, row in ordered.iterrows()
    ]
    return f"{name}, by layer {', '.join(shown)}"


def items_by_layer(frame: pd.DataFrame, title: str) -> AnyChart:
    """Draw what each item's answer is after a patch at each layer, one row an item.

    Columns ``entity, donor, layer, says, answer``; rows are ordered by where the answer turns.
    Items and answers are shown on hover.
    """
    rows = _clean(frame, ["entity", "donor", "layer", "says", "answer"])
    _known(rows["says"], SAYS_COLOURS)
    rows["item"] = rows["entity"] + " ← " + rows["donor"]
    turned = rows.assign(own=rows["says"].eq("target")).groupby("item")["own"].sum()
    order = turned.sort_values(kind="stable").index.tolist()
    says = list(SAYS_COLOURS)
    chart = (
        alt.Chart(rows)
        .mark_rect(stroke="#FFFFFF", strokeWidth=0.4)
        .encode(
            x=alt.X("layer:O", title="Layer patched", axis=alt.Axis(labelAngle=0)),
            y=alt.Y(
                "item:N", sort=order, title=f"{len(order)} pairs (target ← donor)", axis=_bare()
            ),
            color=charts._colour("says", says, SAYS_COLOURS, legend=charts._legend(says, (3, 3))),
            tooltip=[
                alt.Tooltip("entity:N", title="target"),
                "donor:N",
                "layer:O",
                "says:N",
                "answer:N",
            ],
        )
    )
    shares = rows.groupby("layer")["says"].value_counts(normalize=True).unstack(fill_value=0)
    said = "; ".join(
        f"layer {layer}: "
        + ", ".join(f"{name} {100 * shares.loc[layer].get(name, 0):.0f} %" for name in says)
        for layer in shares.index
    )
    return charts._finish(chart, title, f"What each item says by layer. {said}.", height=300)


def depths(
    frame: pd.DataFrame, title: str, *, x_title: str = "Blocks that read the picture undisturbed"
) -> AnyChart:
    """Draw the depth at which each experiment turns, one row a model, with intervals.

    Columns ``model, experiment, switch, low, high``; rows without a depth are left out.
    """
    rows = _clean(frame, ["model", "experiment", "switch", "low", "high"])
    rows["model"] = rows["model"].map(lambda name: str(name).rsplit("/", 1)[-1])
    rows = rows.dropna(subset=["switch"])
    if rows.empty:
        raise TwohopError("No experiment turned at any depth; there is nothing to draw.")
    _known(rows["experiment"], EXPERIMENT_COLOURS)
    return charts._dots(
        rows,
        value="switch",
        group="experiment",
        colours=EXPERIMENT_COLOURS,
        shapes=EXPERIMENT_SHAPES,
        x=alt.X("switch:Q", title=x_title, scale=alt.Scale(zero=True), axis=alt.Axis(format="~g")),
        title=title,
        what="Depth at which each experiment turns",
        unit="",
        legend_columns=(1, 3),
    )


def by_method(frame: pd.DataFrame, order: Sequence[str], title: str) -> AnyChart:
    """Draw a share for each method, one point a model, with intervals.

    Columns ``model, method, value, low, high``; methods in ``order``, others left out.
    """
    rows = _clean(frame, ["model", "method", "value", "low", "high"])
    rows["model"] = rows["model"].map(lambda name: str(name).rsplit("/", 1)[-1])
    rows = rows[rows["method"].isin(order)].dropna(subset=["value"])
    if rows.empty:
        raise TwohopError("The figure was given no rows; there is nothing to draw.")
    methods = [m for m in order if m in set(rows["method"])]
    models = charts._order(rows["model"], charts.MODEL_COLOURS)
    colours = charts._styles(models, charts.MODEL_COLOURS, charts.OTHER_COLOURS)
    shapes = charts._styles(models, charts.MODEL_SHAPES, charts.OTHER_SHAPES)
    base = alt.Chart(rows).encode(
        y=alt.Y("method:N", sort=methods, title=None, axis=alt.Axis(labelLimit=220)),
        yOffset=alt.YOffset("model:N", sort=models, scale=alt.Scale(padding=0.4)),
        color=charts._colour("model", models, colours, legend=charts._legend(models, (2, 5))),
    )
    axis = alt.X("value:Q", title="Share (%)", axis=charts._percent(), scale=charts._share())
    bars = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", title="Share (%)", scale=charts._share()), x2="high:Q"
    )
    points = base.mark_point(filled=True, size=60, opacity=1).encode(
        x=axis,
        shape=alt.Shape("model:N", legend=None, **charts._scaled(models, shapes)),
        tooltip=["model:N", "method:N", *charts._interval_tips("value", ".0%")],
    )
    said = "; ".join(
        f"{row['method']}, {row['model']}: {100 * row['value']:.0f} %" for _, row in rows.iterrows()
    )
    return charts._finish(
        alt.layer(bars, points),
        title,
        f"Share by method, with intervals. {said}.",
        step=14 * len(models) + 12,
        step_for="position",
    )


def component_map(frame: pd.DataFrame, title: str) -> AnyChart:
    """Draw each component's share of attribution: blocks across, components and roles down.

    Columns ``component, role, block, share``.
    """
    rows = _clean(frame, ["component", "role", "block", "share"])
    rows["share"] = rows["share"].astype(float).round(5)
    rows["place"] = rows["component"] + " at " + rows["role"].replace({"entity": "name"})
    order = [f"{c} at {r}" for r in ("name", "question", "last") for c in ("mlp", "attn")]
    chart = (
        alt.Chart(rows)
        .mark_rect(stroke="#FFFFFF")
        .encode(
            x=alt.X("block:O", title="Block", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("place:N", sort=order, title=None),
            color=alt.Color(
                "share:Q",
                title="Share of positive scores",
                scale=alt.Scale(scheme="blues"),
                legend=alt.Legend(orient="bottom", format=".0%"),
            ),
            tooltip=["place:N", "block:O", alt.Tooltip("share:Q", format=".1%")],
        )
    )
    largest = rows.sort_values("share", ascending=False).head(5)
    said = "; ".join(
        f"{r['place']}, block {r['block']}: {100 * r['share']:.0f} %" for _, r in largest.iterrows()
    )
    return charts._finish(chart, title, f"Attribution by block and place. {said}.", step=26)


def predicted_measured(frame: pd.DataFrame, title: str) -> AnyChart:
    """Draw measured against predicted shares, one point a model, with the line of equality.

    Columns ``model, seed, predicted, measured``.
    """
    rows = _clean(frame, ["model", "seed", "predicted", "measured"])
    rows["model"] = rows["model"].map(lambda name: str(name).rsplit("/", 1)[-1])
    for column in ("predicted", "measured"):
        rows[column] = rows[column].astype(float).round(5)
    models = charts._order(rows["model"], charts.MODEL_COLOURS)
    shapes = charts._styles(models, charts.MODEL_SHAPES, charts.OTHER_SHAPES)
    scale = charts._share()
    x = alt.X("predicted:Q", title="Predicted (%)", axis=charts._percent(), scale=scale)
    y = alt.Y("measured:Q", title="Measured (%)", axis=charts._percent(), scale=scale)
    line = (
        alt.Chart(pd.DataFrame({"predicted": [0, 1], "measured": [0, 1]}))
        .mark_line(color="#888888", strokeDash=[4, 3], strokeWidth=1.5)
        .encode(x=x, y=y)
    )
    legend = charts._legend(models, (2, 4))
    points = (
        alt.Chart(rows)
        .mark_point(filled=True, size=90, opacity=0.9)
        .encode(
            x=x,
            y=y,
            color=charts._colour(
                "model",
                models,
                charts._styles(models, charts.MODEL_COLOURS, charts.OTHER_COLOURS),
                legend=legend,
            ),
            shape=alt.Shape("model:N", legend=legend, title=None, **charts._scaled(models, shapes)),
            tooltip=["model:N", "seed:N", "predicted:Q", "measured:Q"],
        )
    )
    said = "; ".join(
        f"{r['model']}, seed {r['seed']}: predicted {100 * r['predicted']:.0f} %, measured "
        f"{100 * r['measured']:.0f} %"
        for _, r in rows.iterrows()
    )
    return charts._finish(alt.layer(line, points), title, f"{said}.", height=320)


def explorer(frame: pd.DataFrame, title: str) -> AnyChart:
    """Draw the answers of one pair at every layer; two menus choose target and donor.

    Columns ``entity, donor, layer, says, answer``. It needs no kernel.
    """
    rows = _clean(frame, ["entity", "donor", "layer", "says", "answer"])
    _known(rows["says"], SAYS_COLOURS)
    targets = sorted(rows["entity"].unique())
    pair = alt.selection_point(
        name="shown",
        fields=["pair"],
        bind=alt.binding_select(
            options=sorted((rows["entity"] + " ← " + rows["donor"]).unique()),
            name="Target ← donor: ",
        ),
        value=(rows["entity"] + " ← " + rows["donor"]).iloc[0],
    )
    rows["pair"] = rows["entity"] + " ← " + rows["donor"]
    says = list(SAYS_COLOURS)
    base = (
        alt.Chart(rows)
        .transform_filter(pair)
        .encode(
            y=alt.Y("layer:O", title="Layer patched", sort="ascending"),
            tooltip=["entity:N", "donor:N", "layer:O", "says:N", "answer:N"],
        )
    )
    marks = base.mark_point(size=110, filled=True, opacity=1).encode(
        x=alt.X(
            "says:N", sort=says, title="The answer is that of the", axis=alt.Axis(labelAngle=0)
        ),
        color=charts._colour("says", says, SAYS_COLOURS, legend=None),
        shape=alt.Shape("says:N", legend=None, **charts._scaled(says, SAYS_SHAPES)),
    )
    words = base.mark_text(dy=-12, fontSize=11).encode(
        x=alt.X("says:N", sort=says), text="answer:N"
    )
    return charts._finish(
        alt.layer(marks, words).add_params(pair),
        title,
        f"Answers at each layer for one of {rows['pair'].nunique()} pairs of "
        f"{len(targets)} targets and their donors, chosen from a menu.",
        height=360,
    )


# --- inside -----------------------------------------------------------------------------------


def _clean(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise TwohopError(f"The figure needs the column(s) {', '.join(missing)}.")
    if frame.empty:
        raise TwohopError("The figure was given no rows; there is nothing to draw.")
    rows = frame[list(columns)].copy().reset_index(drop=True)
    for column in ("entity", "donor", "answer"):
        if column in rows:
            rows[column] = rows[column].map(_drawable)
    for column in ("value", "low", "high", "switch"):
        if column in rows:
            rows[column] = pd.to_numeric(rows[column]).astype(float).round(5)
    return rows


def _drawable(text: str) -> str:
    """A text as a figure can hold it: answers may contain any character, and be long."""
    shown = "".join(c if c.isprintable() else "·" for c in str(text))
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"


def _known(values: pd.Series, known: Mapping[str, Any]) -> None:
    unknown = sorted(set(values.astype(str)) - set(known))
    if unknown:
        raise TwohopError(
            f"Unknown value(s) {', '.join(unknown)}; this figure knows {', '.join(known)}."
        )


def _bare() -> alt.Axis:
    return alt.Axis(labels=False, ticks=False, domain=False)

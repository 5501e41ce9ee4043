"""What all figures share: theme, palette, scales, legends, titles, and words for descriptions.

Importing this module registers and enables the theme. Every figure is a single or layered view as
wide as its container, with the legend below, so that it stays readable on a phone; title and
legend break their lines by the width at hand. A colour always comes with a second encoding (a
position, a shape, a dash or a label), and every chart carries a ``description`` for readers who
cannot see it.

The grammars beside this module (``dots``, ``lines``, ``bars``, ``heat``) take tidy frames in
which shares are fractions, and return an Altair chart. The name of a column decides how its
values look (:data:`LOOKS`). Titles state the finding, and are computed where none is given.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import altair as alt
import pandas as pd

from twohop_lib.errors import TwohopError

AnyChart = alt.Chart | alt.LayerChart
Unit = Literal["points", "relative"]

# --- how names look: the palette of Okabe and Ito, and no colour twice in one chart -------------

INK, FAINT, PAPER = "#222222", "#DDDDDD", "#FFFFFF"
SOLID, LONG, MIDDLE, SHORT, DOTTED, MIXED = [1, 0], [8, 3], [4, 2], [1, 2], [2, 2], [8, 3, 1, 3]
BLACK, BLUE, SKY, GREEN = "#000000", "#0072B2", "#56B4E9", "#009E73"
AMBER, ORANGE, PINK, GREY = "#E69F00", "#D55E00", "#CC79A7", "#999999"


class Look(NamedTuple):
    """A colour and its second encoding: a shape of points, a dash of lines, an outline of bars."""

    colour: str
    shape: str = "circle"
    dash: list[int] = SOLID
    outline: str = PAPER


#: Column -> what it may hold, in the order of the legend, and how each value looks.
LOOKS: dict[str, dict[str, Look]] = {
    "model": {
        "backbone": Look(BLACK, "circle", SOLID),
        "late": Look(ORANGE, "square", LONG),
        "middle": Look(AMBER, "triangle-up", MIDDLE),
        "early": Look(GREEN, "diamond", SHORT),
        "cross": Look(PINK, "cross", MIXED),
        # Grafts, in Tol's muted colours: told apart from the organisms', and by the colour-blind.
        "caption": Look("#332288", "triangle-down", LONG),
        "described": Look("#88CCEE", "cross", MIXED),
        "facts": Look("#661100", "square", MIDDLE),
        "aligned": Look("#999933", "triangle-up", [12, 4]),
        "names": Look("#AA4499", "diamond", SHORT),
        "tuned": Look("#117733", "triangle-right", [6, 2, 2, 2]),
    },
    "arm": {  # how the question was put
        "backbone by name": Look(BLACK, "diamond"),
        "by name": Look(BLUE, "circle"),
        "by picture": Look(ORANGE, "square"),
        "name first": Look(SKY, "triangle-up"),
        "blank picture": Look(GREY, "cross"),
    },
    "type": {  # of outcome, in stacking order: twohop_lib.readouts.cascade.TYPES
        "right": Look(GREEN),
        "right without recognition": Look("#8FD3BC"),
        "own name instead": Look(PINK, dash=SHORT, outline=INK),
        "linking failure": Look(ORANGE, outline=INK),
        "unknown fact": Look(AMBER),
        "unseen entity": Look(GREY, dash=DOTTED, outline=INK),
    },
    "definition": {  # of the gap, with the unit of its value
        "against backbone (% of it)": Look(BLACK, "diamond"),
        "against by name (points)": Look(BLUE, "circle"),
        "controlled drop (% of by name)": Look(PINK, "square"),
    },
    "rule": {
        "twohop": Look(BLACK, "circle"),
        "popvqa": Look(BLUE, "square"),
        "inclusion": Look(AMBER, "triangle-up"),
    },
    "says": {  # whose name or fact is given after a patch
        "donor": Look(BLUE, "circle"),
        "neither": Look("#BBBBBB", "diamond"),
        "target": Look(ORANGE, "square"),
    },
    "experiment": {
        "cross-patch": Look(BLUE, "circle"),
        "cross-patch, fact": Look(SKY, "circle"),
        "freeze": Look(AMBER, "square"),
        "knockout": Look(PINK, "triangle-up"),
        "name in the backbone": Look(BLACK, "diamond"),
    },
    "edge": {
        "question→image": Look(BLUE, dash=SOLID),
        "last→image": Look(ORANGE, dash=LONG),
        "last→question": Look(GREEN, dash=DOTTED),
    },
    "outcome": {"answered": Look(GREEN, dash=SOLID), "missed": Look(ORANGE, dash=LONG)},
}
#: Columns that may hold other values too, and how these look, in order of appearance.
OTHERS = [
    Look(BLUE, "circle", SOLID),
    Look(SKY, "square", LONG),
    Look("#8C510A", "triangle-up", MIDDLE),
    Look("#5E4FA2", "diamond", SHORT),
    Look("#66A61E", "cross", MIXED),
    Look("#666666", "triangle-down", [12, 4]),
]
OPEN = {"arrives": [Look(SKY, dash=DOTTED), Look(BLUE), Look(BLACK, dash=LONG)], "model": OTHERS}
_CONDITIONS = ("llm_by_name", "by_name", "by_picture", "name_first", "blank_by_picture")
#: Condition of the answer records, definition of the gap -> what figures call it.
ARM_OF_CONDITION = dict(zip(_CONDITIONS, LOOKS["arm"], strict=True))
_DEFINITIONS = ("degradation", "difference", "controlled")
DEFINITION_LABELS = dict(zip(_DEFINITIONS, LOOKS["definition"], strict=True))


def looks(column: str, values: Iterable[Any]) -> dict[str, Look]:
    """How the values of a column look, in the order in which they are shown."""
    own, others = LOOKS.get(column, {}), OPEN.get(column, OTHERS)
    present = list(dict.fromkeys(map(str, values)))
    free = [value for value in present if value not in own]
    return {value: look for value, look in own.items() if value in present} | {
        value: others[i % len(others)] for i, value in enumerate(free)
    }


def encode(channel: Any, column: str, shown: Mapping[str, Look], legend: Any = None) -> Any:
    """Encode a column in an Altair channel, by that part of its looks which the channel shows."""
    part = {alt.Shape: "shape", alt.StrokeDash: "dash", alt.Stroke: "outline"}.get(
        channel, "colour"
    )
    scale = alt.Scale(domain=list(shown), range=[getattr(look, part) for look in shown.values()])
    return channel(f"{column}:N", title=None, sort=list(shown), scale=scale, legend=legend)


def luminance(colour: str) -> float:
    """Return the relative luminance of ``#RRGGBB``, 0 to 1 (WCAG 2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def ink_on(colour: str) -> str:
    """Return the ink, dark or white, that has more contrast on a colour."""
    return INK if luminance(colour) > 0.213 else PAPER


# --- the theme --------------------------------------------------------------------------------

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
#: Below these widths of a figure (pixels) titles, and below the first legends, are narrower.
NARROW, MEDIUM = 500, 660
#: That width. Not the plot's, which changes when the room for a title is already taken.
_SHOWN = "(isFinite(containerSize()[0]) ? containerSize()[0] : width)"
#: Characters of a row's name per line, of a title per line by width, and of an answer in all.
LABEL_WIDTH, TITLE_WIDTHS, LONGEST = 18, (42, 58, 78), 40


@alt.theme.register("twohop", enable=True)
def theme() -> alt.theme.ThemeConfig:
    """Return the theme shared by every figure of the book."""
    words = {"labelFont": FONT, "labelFontSize": 12, "labelColor": INK, "titleFont": FONT}
    words |= {"titleFontSize": 12, "titleFontWeight": "normal", "titleColor": INK}
    lines = {"gridColor": FAINT, "domainColor": "#888888", "tickColor": "#888888"}
    title = {"anchor": "start", "frame": "bounds", "fontSize": 14, "fontWeight": 600}
    legend = {"orient": "bottom", "direction": "horizontal", "symbolSize": 90, "offset": 12}
    width = {"labelLimit": {"expr": f"{_SHOWN} < {NARROW} ? 215 : 320"}, "columnPadding": 14}
    return {
        "config": {
            "background": PAPER,
            "font": FONT,
            "padding": 4,
            "autosize": {"type": "fit-x", "contains": "padding", "resize": True},
            "title": {**title, "color": INK, "offset": 10, "lineHeight": 18},
            "axis": {**words, **lines, "labelOverlap": True},
            "axisX": {"titlePadding": 8, "tickCount": 5, "labelFlush": True, "labelSeparation": 6},
            "axisY": {"tickCount": 5, "labelLimit": 160},
            "legend": {**words, **legend, **width},
            "view": {"stroke": None},
            "range": {"category": [look.colour for look in LOOKS["model"].values()]},
        }
    }


def finish(chart: AnyChart, title: str, description: str, height: int | alt.Step) -> AnyChart:
    """Give a chart its title, its description, and its height: pixels, or :func:`per_row`."""
    title = drawable(title)
    # Ordinary hyphenated words stay whole; the names of published models are too long to.
    hyphens = any(len(word) > LABEL_WIDTH for word in title.split())
    # In ASCII, as Vega's expressions do not bear all characters that JSON does.
    lines = (textwrap.wrap(title, w, break_on_hyphens=hyphens) or [""] for w in TITLE_WIDTHS)
    return chart.properties(
        width="container",
        height=height,
        title=alt.TitleParams(text=_by_width(*map(json.dumps, lines))),
        description=f"{title}. {drawable(description)}".replace("..", "."),
    )


def per_row(pixels: int) -> alt.Step:
    """The height of a figure whose rows are so high."""
    return alt.Step(pixels, **{"for": "position"})


def _by_width(narrow: object, medium: object, wide: object) -> alt.ExprRef:
    """An expression of the value for the width that the figure has when it is shown."""
    return alt.ExprRef(f"{_SHOWN} < {NARROW} ? {narrow} : {_SHOWN} < {MEDIUM} ? {medium} : {wide}")


def fixed(spec: Mapping[str, Any], width: int) -> dict[str, Any]:
    """A figure's specification with a width in pixels, for output that has no container."""
    known = json.loads(json.dumps(spec).replace(_SHOWN, str(width)))
    return known | ({"width": width} if known.get("width") == "container" else {})


# --- frames -----------------------------------------------------------------------------------


def tidy(
    frame: pd.DataFrame, keys: Sequence[str], numbers: Sequence[str], texts: Sequence[str] = ()
) -> pd.DataFrame:
    """Return a copy of the columns that a figure needs: they are written into the page.

    ``keys`` tell the rows apart; models lose the part of their name before the last slash.
    ``numbers`` are rounded. ``texts`` are made such that a figure can hold them.

    Raises:
        TwohopError: a column is missing, there are no rows, two rows have the same keys, or a
            column holds something that has no look.
    """
    columns = [*keys, *numbers, *texts]
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise TwohopError(f"The figure needs the column(s) {', '.join(missing)}.")
    if frame.empty:
        raise TwohopError("The figure was given no rows; there is nothing to draw.")
    rows = frame[columns].reset_index(drop=True)
    for column in texts:
        rows[column] = [drawable(text, LONGEST) for text in rows[column]]
    if "model" in rows:
        rows["model"] = [drawable(str(name).rsplit("/", 1)[-1]) for name in rows["model"]]
    for column in set(columns) & (set(LOOKS) - set(OPEN)):
        unknown = sorted(set(rows[column].astype(str)) - set(LOOKS[column]))
        if unknown:
            raise TwohopError(
                f"Unknown value(s) {', '.join(unknown)} in column {column!r}; "
                f"this figure knows {', '.join(LOOKS[column])}."
            )
    repeated = rows[rows.duplicated(list(keys))]
    if len(repeated):
        which = ", ".join(map(str, repeated.iloc[0][list(keys)]))
        raise TwohopError(
            f"The figure needs one row per {' and '.join(keys)}; {which} has several."
        )
    rows[list(numbers)] = rows[list(numbers)].apply(pd.to_numeric).round(5)
    return rows


def drawable(text: object, longest: int | None = None) -> str:
    """A text as a figure can hold it: without control characters, and no longer than so much."""
    shown = "".join(c if c.isprintable() or c == "\N{NO-BREAK SPACE}" else "·" for c in str(text))
    return shown if longest is None or len(shown) <= longest else shown[: longest - 1] + "…"


# --- axes and legends -------------------------------------------------------------------------


def shares(channel: Any, column: str, title: str, **axis: Any) -> Any:
    """Encode fractions as 0 to 100 % in ``alt.X`` or ``alt.Y``; the unit stands in the title."""
    axis = {"values": [0, 0.25, 0.5, 0.75, 1], "grid": True} | axis
    ticks = alt.Axis(labelExpr="round(datum.value * 100)", **axis)
    return channel(f"{column}:Q", title=title, axis=ticks, scale=alt.Scale(domain=[0, 1]))


def bands(column: str, names: Iterable[str]) -> alt.Y:
    """Rows by name, in several lines where a name (of a published model) is long."""
    broken = {name: lines for name in names if len(lines := label_lines(name)) > 1}
    more: dict[str, Any] = {}
    if broken:
        more["labelExpr"] = f"{json.dumps(broken)}[datum.label] || datum.label"
        # Vega centres the first line on the row; move the block up so that its middle is.
        more["labelOffset"] = {
            "condition": [
                {"test": f"datum.value === {json.dumps(name)}", "value": -7 * (len(lines) - 1)}
                for name, lines in broken.items()
            ],
            "value": 0,
        }
    axis = alt.Axis(ticks=False, domain=False, labelPadding=6, grid=False, **more)
    scale = alt.Scale(paddingInner=0.25, paddingOuter=0.1)
    return alt.Y(f"{column}:N", sort=list(names), title=None, axis=axis, scale=scale)


def label_lines(name: str) -> list[str]:
    """Break a row's name after hyphens, underscores and spaces."""
    lines = [""]
    for piece in filter(None, re.split(r"(?<=[-_ ])", name)):
        if lines[-1] and len(lines[-1] + piece.rstrip()) > LABEL_WIDTH:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def row_height(names: Iterable[str]) -> int:
    """Return the pixels that a row needs for its name."""
    return 10 + 14 * max(len(label_lines(name)) for name in names)


def legend(
    names: Iterable[str], columns: tuple[int, int], beside: Iterable[str] = (), **more: Any
) -> alt.Legend:
    """Lay a legend out in at most ``columns`` columns, on a phone and on a desktop.

    The legend starts where the plot does, so the row names ``beside`` the plot take their width
    from it.
    """
    names = list(names)
    taken = max((7 * len(line) for name in beside for line in label_lines(name)), default=0)

    def fitting(most: int, pixels: int) -> int:
        def needed(n: int) -> float:
            longest = [max(map(len, names[i::n]), default=0) for i in range(n)]
            return sum(6.2 * length + 16 for length in longest) + 14 * (n - 1)

        fits = (n for n in range(2, min(most, len(names)) + 1) if needed(n) <= pixels - taken)
        return max(fits, default=1)

    narrow, medium = fitting(columns[0], 320), fitting(columns[1], NARROW - 10)
    wide = fitting(columns[1], MEDIUM - 10)
    return alt.Legend(title=None, columns=_by_width(narrow, medium, wide), **more)


def tips(*columns: str, fmt: str) -> list[alt.Tooltip]:
    """Numbers shown on hover, all in one format."""
    return [alt.Tooltip(f"{column}:Q", format=fmt) for column in columns]


# --- words ------------------------------------------------------------------------------------


def percentage(value: float) -> str:
    """``12 %``, not to be broken."""
    return f"{100 * value:.0f}\N{NO-BREAK SPACE}%"


def measured(value: float, low: float, high: float, unit: str = " %", digits: int = 0) -> str:
    """``12 % (10 to 14)``, or ``not measured``; numbers are as they are to be read."""
    words = f"{value:.{digits}f}{unit}" if value == value else "not measured"
    interval = f" ({low:.{digits}f} to {high:.{digits}f})"
    return words + interval if pd.notna([low, high]).all() else words


def caption_n(frame: pd.DataFrame, items: str = "facts") -> str:
    """Return the sample sizes of a figure as a phrase for its caption.

    ``frame`` has columns ``n_items``, optionally ``n_entities``, and ``model``. Sizes that vary
    within a model are given as a range.
    """

    def between(values: pd.Series) -> str:
        low, high = int(values.min()), int(values.max())
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"

    def size(group: pd.DataFrame) -> str:
        entities = f" of {between(group['n_entities'])} entities" if "n_entities" in group else ""
        return f"{between(group['n_items'])} {items}{entities}"

    sizes = {str(name): size(group) for name, group in frame.groupby("model", sort=False)}
    if len(set(sizes.values())) == 1:
        each = " for each model" if len(sizes) > 1 else ""
        return f"n = {next(iter(sizes.values()))}{each}"
    return "n = " + "; ".join(f"{words} ({name})" for name, words in sizes.items())

"""What a chapter shows: figures with number, caption and description, and numbers in its prose.

In a live notebook (Jupyter, Colab) a figure is an ordinary Altair chart with its caption below.
In the built book the same output becomes a numbered figure that needs no network
(:func:`bookify`, called when the book is staged). Nothing here imports Sphinx.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import altair as alt
from IPython.display import display
from PIL import Image

from twohop_lib.chapter.citations import cited
from twohop_lib.errors import TwohopError

CHART_MIME = "application/vnd.twohop.chart+json"
WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
GLUE_PREFIX = "application/papermill.record/"


def glue(name: str, value: object) -> None:
    """Give a number or sentence a name, for ``{glue:text}`name` `` in the chapter's prose."""
    text = str(value)
    # The metadata that myst_nb's own glue writes; a live notebook shows the text/plain.
    display(
        {GLUE_PREFIX + "text/plain": text, "text/plain": f"{name} = {text}"},
        metadata={"scrapbook": {"name": name, "mime_prefix": GLUE_PREFIX}},
        raw=True,
    )


def glue_all(values: Mapping[str, object]) -> None:
    """:func:`glue` each of several values by its name."""
    for name, value in values.items():
        glue(name, value)


def show(chart: alt.TopLevelMixin, name: str, caption: str) -> None:
    """Show a chart as figure ``name``; its ``description`` is what a screen reader says.

    A cell shows one figure, as the last thing it does. ``caption`` is Markdown.

    Raises:
        ValueError: the chart has no description.
    """
    spec = chart.to_dict()
    alt_text = spec.get("description", "")
    _check_described(alt_text, name)
    _display(
        {
            "text/html": chart.to_html(fullhtml=False, output_div=f"vega-{name}"),
            CHART_MIME: spec,
            "text/plain": f"[figure: {alt_text}]",
        },
        name,
        caption,
        alt_text,
    )


def show_picture(picture: Image.Image, name: str, caption: str, alt: str) -> None:
    """Show a picture as figure ``name``, described by ``alt``.

    Raises:
        ValueError: ``alt`` is empty.
    """
    _check_described(alt, name)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    tag = _png_tag(buffer.getvalue(), alt)
    _display({"text/html": tag, "text/plain": f"[figure: {alt}]"}, name, caption, alt)


def _png_tag(picture: bytes, alt: str, attributes: str = "") -> str:
    data = base64.b64encode(picture).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt)}"{attributes}>'


def _check_described(alt_text: str, name: str) -> None:
    if not alt_text.strip():
        raise ValueError(f"figure {name!r} has no description for readers who cannot see it")


def _display(data: dict[str, Any], name: str, caption: str, alt_text: str) -> None:
    figure = {"name": name, "caption": caption, "alt": alt_text}
    display(data, metadata={"twohop": {"figure": figure}}, raw=True)
    display(
        {"text/html": f"<p><em>{html.escape(caption)}</em></p>", "text/plain": caption},
        metadata={"twohop": {"caption": name}},
        raw=True,
    )


# ---- for the book ---------------------------------------------------------------------------


def _offline_chart(spec: dict[str, Any], figure: dict[str, str], still: str) -> str:
    name, label = figure["name"], html.escape(figure["alt"])
    data = json.dumps(spec, sort_keys=True).replace("</", "<\\/")
    fallback = (
        f'<noscript><img alt="{label}" src="{_data_url(still)}"></noscript>\n' if still else ""
    )
    return (
        f'<div class="vega-figure" id="vega-{name}" role="img" aria-label="{label}"></div>\n'
        f"{fallback}<script>document.addEventListener('DOMContentLoaded', () => "
        f"vegaEmbed('#vega-{name}', {data}, "
        "{actions: false, renderer: 'svg', mode: 'vega-lite'}));</script>"
    )


def _data_url(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _is_noise(output: dict[str, Any]) -> bool:
    """Progress bars, log lines, and captions (the book sets its own)."""
    ours = output.get("metadata", {}).get("twohop", {})
    return (
        "caption" in ours or output.get("name") == "stderr" or WIDGET_MIME in output.get("data", {})
    )


def bookify(
    notebook: dict[str, Any], still: Callable[[dict[str, Any]], str] = lambda spec: ""
) -> dict[str, Any]:
    """Turn shown figures into numbered ones that need no network; edits and returns ``notebook``.

    A cell that shows a figure gets MyST-NB's ``figure`` option, with the caption computed when
    the chapter ran. Standard error and progress bars are dropped. ``still`` draws a chart's
    specification as SVG, for readers without JavaScript.

    Raises:
        TwohopError: a cell shows a figure beside something else, which the option cannot word.
    """
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        cell["outputs"] = kept = [o for o in cell["outputs"] if not _is_noise(o)]
        figures = [o for o in kept if "figure" in o.get("metadata", {}).get("twohop", {})]
        for output in figures:
            figure = output["metadata"]["twohop"]["figure"]
            if sum("data" in o for o in kept) > 1:
                raise TwohopError(
                    f"Figure {figure['name']!r} shares its cell with another output; "
                    "give it a cell of its own."
                )
            spec = output["data"].pop(CHART_MIME, None)
            if spec is not None:
                output["data"]["text/html"] = _offline_chart(spec, figure, still(spec))
            option = {"caption": figure["caption"], "name": figure["name"]}
            cell["metadata"]["mystnb"] = {"figure": option}
        for output in kept:
            if "scrapbook" in output.get("metadata", {}):
                output["data"].pop("text/plain", None)
    return notebook


def glued(notebook: dict[str, Any]) -> dict[str, str]:
    """All named values that an executed notebook glued."""
    values = {}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            name = output.get("metadata", {}).get("scrapbook", {}).get("name")
            if name:
                values[name] = "".join(output["data"][GLUE_PREFIX + "text/plain"])
    return values


_ROLE = re.compile(r"\{(glue:text|cite:[tp]|ref|numref|doc|term)\}`([^`]*)`")
_FENCE = re.compile(r"^```\{(\w+)\}[ \t]*(.*?)\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


def plain_markdown(text: str) -> str:
    """MyST prose for a notebook outside the book: values to come as "…", boxes as quotes."""

    def box(match: re.Match[str]) -> str:
        kind, title, body = match.groups()
        if kind == "bibliography":
            return "See the rendered book."
        lines = [line for line in body.splitlines() if not line.startswith(":")]
        return "\n".join(f"> {line}".rstrip() for line in [f"**{title or kind}**", *lines])

    def role(match: re.Match[str]) -> str:
        kind, body = match.groups()
        if kind.startswith("cite"):
            return cited(body, in_text=kind == "cite:t")
        return "…" if kind == "glue:text" else body

    return _ROLE.sub(role, _FENCE.sub(box, text))


def readable(notebook: Any, values: Mapping[str, str]) -> Any:
    """Return an executed notebook as a page of its own: values in place, charts as pictures.

    Cells tagged ``remove-cell``, and prose tagged ``organisms`` (true of the book's own page
    alone), are left out, as are progress bars and log lines.
    """
    notebook["metadata"].pop("widgets", None)
    kept = []
    for cell in notebook["cells"]:
        if {"remove-cell", "organisms"} & set(cell["metadata"].get("tags", [])):
            continue
        if cell["cell_type"] == "markdown":
            cell["source"] = plain_markdown(
                _GLUED.sub(lambda m: values.get(m.group(1), "…"), cell["source"])
            )
        else:
            cell["outputs"] = [_still(o) for o in cell["outputs"] if not _is_progress(o)]
        kept.append(cell)
    notebook["cells"] = kept
    return notebook


#: Pixels across a chart that on the book's pages is as wide as the page.
STILL_WIDTH = 640
_GLUED = re.compile(r"\{glue:text\}`([^`]*)`")


def _is_progress(output: Mapping[str, Any]) -> bool:
    return output.get("name") == "stderr" or WIDGET_MIME in output.get("data", {})


def _still(output: Any) -> Any:
    """Replace a chart by its picture, which needs neither network nor JavaScript."""
    spec = output.get("data", {}).pop(CHART_MIME, None)
    if spec is None:
        return output
    import vl_convert

    from twohop_lib.figures.theme import fixed

    alt_text = output["metadata"]["twohop"]["figure"]["alt"]
    # Pixels, not SVG: a reader's fonts may be wider than those that the labels were placed with.
    picture = vl_convert.vegalite_to_png(fixed(spec, STILL_WIDTH), scale=2)
    style = f' style="width:{STILL_WIDTH}px;max-width:100%"'
    output["data"] = {"text/html": _png_tag(picture, alt_text, style)}
    return output

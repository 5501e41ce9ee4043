"""What a chapter shows: figures with number, caption and description, and numbers in its prose.

In a live notebook (Jupyter, Colab) a figure is an ordinary Altair chart with its caption below.
In the built book the same output becomes a numbered figure that needs no network
(:func:`bookify`, called when the book is staged).
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
from typing import Any

import altair as alt
from IPython.display import display
from PIL import Image

CHART_MIME = "application/vnd.twohop.chart+json"
GLUE_PREFIX = "application/papermill.record/"


def glue(name: str, value: object) -> None:
    """Give a number or sentence a name, for ``{glue:text}`name` `` in the chapter's prose."""
    text = str(value)
    display(
        {GLUE_PREFIX + "text/plain": text, "text/plain": f"{name} = {text}"},
        metadata={"scrapbook": {"name": name, "mime_prefix": GLUE_PREFIX}},
        raw=True,
    )


def show(chart: alt.TopLevelMixin, name: str, caption: str) -> None:
    """Show a chart as figure ``name``; its ``description`` is what a screen reader says.

    Raises:
        ValueError: the chart has no description.
    """
    spec = chart.to_dict()
    alt_text = spec.get("description")
    if not alt_text:
        raise ValueError(f"figure {name!r} has no description for readers who cannot see it")
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
    """Show a picture as figure ``name``, described by ``alt``."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    tag = f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt)}">'
    _display({"text/html": tag, "text/plain": f"[figure: {alt}]"}, name, caption, alt)


def _display(data: dict[str, Any], name: str, caption: str, alt_text: str) -> None:
    figure = {"name": name, "caption": caption, "alt": alt_text}
    display(data, metadata={"twohop": {"figure": figure}}, raw=True)
    display(
        {"text/html": f"<p><em>{html.escape(caption)}</em></p>", "text/plain": caption},
        metadata={"twohop": {"caption": name}},
        raw=True,
    )


# ---- for the book ---------------------------------------------------------------------------


def _offline_chart(spec: dict[str, Any], name: str, alt_text: str) -> str:
    data = json.dumps(spec, sort_keys=True).replace("</", "<\\/")
    label = html.escape(alt_text)
    return (
        f'<div class="vega-figure" id="vega-{name}" role="img" aria-label="{label}">'
        "</div>\n<script>document.addEventListener('DOMContentLoaded', () => "
        f"vegaEmbed('#vega-{name}', {data}, "
        "{actions: false, renderer: 'svg', mode: 'vega-lite'}));</script>"
    )


def bookify(notebook: dict[str, Any]) -> dict[str, Any]:
    """Turn shown figures into numbered ones that need no network; edits and returns ``notebook``.

    A cell that shows a figure gets MyST-NB's ``figure`` option, with the caption computed when
    the chapter ran. Standard error and progress bars are dropped.
    """
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        kept = []
        for output in cell["outputs"]:
            ours = output.get("metadata", {}).get("twohop", {})
            widget = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
            if "caption" in ours or widget or output.get("name") == "stderr":
                continue
            if figure := ours.get("figure"):
                spec = output["data"].pop(CHART_MIME, None)
                if spec is not None:
                    output["data"]["text/html"] = _offline_chart(
                        spec, figure["name"], figure["alt"]
                    )
                option = {"caption": figure["caption"], "name": figure["name"]}
                cell["metadata"]["mystnb"] = {"figure": option}
            if "data" in output and any(k.startswith(GLUE_PREFIX) for k in output["data"]):
                output["data"].pop("text/plain", None)
            kept.append(output)
        cell["outputs"] = kept
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
_FENCE = re.compile(r"^```\{(\w+)\}\s*(.*?)\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)


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
        return "…" if kind == "glue:text" else f"[{body}]" if kind.startswith("cite") else body

    return _ROLE.sub(role, _FENCE.sub(box, text))

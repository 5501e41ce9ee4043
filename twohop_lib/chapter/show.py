"""What a chapter shows: figures with number, caption and description, and numbers in its prose.

In a live notebook (Jupyter, Colab) a figure is an ordinary Altair chart with its caption below.
:mod:`twohop_lib.chapter.pages` makes pages of the same outputs. Nothing here imports Sphinx.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping
from typing import Any

import altair as alt
from IPython.display import display
from PIL import Image

from twohop_lib.errors import TwohopError

CHART_MIME = "application/vnd.twohop.chart+json"
GLUE_PREFIX = "application/papermill.record/"


class InlineJSON(json.JSONEncoder):
    """JSON that can stand in a page's ``<script>``, whatever texts it holds.

    A ``<`` could end the script, or open a comment (``<!--<script>``) that swallows the page.
    """

    def encode(self, o: Any) -> str:
        """Return ASCII without ``<``, ``>`` and ``&``, which JSON has in texts alone."""
        text = super().encode(o)
        return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


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

    A cell shows one figure, as the last thing it does. ``caption`` is plain text.

    Raises:
        TwohopError: the chart has no description.
    """
    spec = chart.to_dict()
    page = chart.to_html(fullhtml=False, output_div=f"vega-{name}", json_kwds={"cls": InlineJSON})
    _display({"text/html": page, CHART_MIME: spec}, name, caption, spec.get("description", ""))


def show_picture(picture: Image.Image, name: str, caption: str, alt: str) -> None:
    """Show a picture as figure ``name``, described by ``alt``.

    Raises:
        TwohopError: ``alt`` is empty.
    """
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    _display({"text/html": image_tag(buffer.getvalue(), alt)}, name, caption, alt)


def image_tag(picture: bytes, alt: str, attributes: str = "", kind: str = "png") -> str:
    """A picture within a page: PNG, or SVG (``kind="svg+xml"``)."""
    data = base64.b64encode(picture).decode()
    return f'<img src="data:image/{kind};base64,{data}" alt="{html.escape(alt)}"{attributes}>'


def _display(data: dict[str, Any], name: str, caption: str, alt_text: str) -> None:
    if not alt_text.strip():
        raise TwohopError(f"Figure {name!r} has no description for readers who cannot see it.")
    data["text/plain"] = f"[figure: {alt_text}]"
    figure = {"name": name, "caption": caption, "alt": alt_text}
    display(data, metadata={"twohop": {"figure": figure}}, raw=True)
    display(
        {"text/html": f"<p><em>{html.escape(caption)}</em></p>", "text/plain": caption},
        metadata={"twohop": {"caption": name}},
        raw=True,
    )

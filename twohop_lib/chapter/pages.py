"""What is done to executed notebooks so that they can be read: in the book, and in a run's pages.

Texts that models and readers' tables brought forth (answers, names) stand in captions,
descriptions, glued values and figures. On every page they are text, never markup.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import vl_convert

from twohop_lib.chapter.citations import cited
from twohop_lib.chapter.show import CHART_MIME, GLUE_PREFIX, InlineJSON, image_tag
from twohop_lib.errors import TwohopError
from twohop_lib.figures.theme import fixed

_WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
#: Pixels across a chart that on the book's pages is as wide as the page.
STILL_WIDTH = 640


def small_pictures(notebook: Mapping[str, Any], width: int = 160) -> dict[str, str]:
    """The pictures that an executed notebook shows as figures, small, by name (``fig_flags``)."""
    found = {}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            figure = _about(output).get("figure")
            page = "".join(output.get("data", {}).get("text/html", ""))
            if figure and page.startswith("<img "):
                name = figure["name"].replace("-", "_")
                found[name] = page.replace("<img ", f'<img width="{width}" ', 1)
    return found


def glued(notebook: Mapping[str, Any]) -> dict[str, str]:
    """All named values that an executed notebook glued."""
    values = {}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            name = output.get("metadata", {}).get("scrapbook", {}).get("name")
            if name:
                values[name] = "".join(output["data"][GLUE_PREFIX + "text/plain"])
    return values


def literal(text: str) -> str:
    """A text as Markdown shows it letter by letter, in one line."""
    line = re.sub(r"[\r\n\u2028\u2029]+", " ", text)
    return re.sub(r"""[!-/:-@\[-`{-~]""", lambda match: f"&#{ord(match[0])};", line)


def _about(output: Mapping[str, Any]) -> Mapping[str, Any]:
    """What :mod:`~twohop_lib.chapter.show` noted on an output."""
    return output.get("metadata", {}).get("twohop", {})


def _is_noise(output: Mapping[str, Any]) -> bool:
    """Whether an output is a progress bar or a log line."""
    return output.get("name") == "stderr" or _WIDGET_MIME in output.get("data", {})


# --- in the book ------------------------------------------------------------------------------


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
        # The book sets captions itself.
        kept = [o for o in cell["outputs"] if not _is_noise(o) and "caption" not in _about(o)]
        cell["outputs"] = kept
        for output in kept:
            if "figure" in _about(output):
                figure = _about(output)["figure"]
                if sum("data" in o for o in kept) > 1:
                    raise TwohopError(
                        f"Figure {figure['name']!r} shares its cell with another output; "
                        "give it a cell of its own."
                    )
                _offline(output["data"], figure, still)
                option = {"caption": literal(figure["caption"]), "name": figure["name"]}
                cell["metadata"]["mystnb"] = {"figure": option}
            if "scrapbook" in output.get("metadata", {}):
                output["data"].pop("text/plain", None)
    return notebook


def _offline(
    data: dict[str, Any], figure: Mapping[str, str], still: Callable[[dict[str, Any]], str]
) -> None:
    """Let a chart be drawn by the Vega that lies beside the page."""
    spec = data.pop(CHART_MIME, None)
    if spec is None:
        return
    name, svg = figure["name"], still(spec)
    inline = json.dumps(spec, sort_keys=True, cls=InlineJSON)
    tag = image_tag(svg.encode(), figure["alt"], kind="svg+xml") if svg else ""
    data["text/html"] = (
        f'<div class="vega-figure" id="vega-{name}" role="img" '
        f'aria-label="{html.escape(figure["alt"])}"></div>\n'
        + (f"<noscript>{tag}</noscript>\n" if tag else "")
        + f"<script>document.addEventListener('DOMContentLoaded', () => vegaEmbed('#vega-{name}', "
        f"{inline}, {{actions: false, renderer: 'svg', mode: 'vega-lite'}}));</script>"
    )


# --- outside the book -------------------------------------------------------------------------

_ROLE = re.compile(r"\{(glue:text|cite:[tp]|ref|numref|doc|term)\}`([^`]*)`")
_FENCE = re.compile(r"^```\{(\w+)\}[ \t]*(.*?)\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


def plain_markdown(text: str, known: Mapping[tuple[str, str], str] | None = None) -> str:
    """MyST prose for a notebook outside the book: boxes as quotes, and roles as words.

    ``known`` are words for roles, as ``("numref", "fig-gap"): "Figure 2"``; a glued value that
    is not known is "…".
    """

    def box(match: re.Match[str]) -> str:
        kind, title, body = match.groups()
        if kind == "bibliography":
            return "See the rendered book."
        lines = [line for line in body.splitlines() if not line.startswith(":")]
        return "\n".join(f"> {line}".rstrip() for line in [f"**{title or kind}**", *lines])

    def role(match: re.Match[str]) -> str:
        kind, body = match.groups()
        if (kind, body) in (known or {}):
            return (known or {})[kind, body]
        if kind.startswith("cite"):
            return cited(body, in_text=kind == "cite:t")
        return "…" if kind == "glue:text" else body

    return _ROLE.sub(role, _FENCE.sub(box, text))


def readable(notebook: Any) -> Any:
    """Turn an executed notebook into a page of its own: values in place, charts as pictures.

    Figures are numbered in their captions and where prose refers to them, as the book does.
    Cells tagged ``remove-cell``, and those tagged ``organisms`` or ``grafts`` (of the book's own
    page alone), are left out, as are progress bars and log lines. Edits and returns ``notebook``.
    """
    notebook["metadata"].pop("widgets", None)
    outputs = [o for cell in notebook["cells"] for o in cell.get("outputs", ())]
    figures = [_about(o)["figure"]["name"] for o in outputs if "figure" in _about(o)]
    numbers = {name: f"Figure {n}" for n, name in enumerate(figures, start=1)}
    known = {("numref", name): number for name, number in numbers.items()}
    known |= {("glue:text", name): literal(value) for name, value in glued(notebook).items()}
    for output in outputs:
        if "caption" in _about(output):
            text = f"{numbers[_about(output)['caption']]}. {output['data']['text/plain']}"
            output["data"] = {"text/html": f"<p><em>{html.escape(text)}</em></p>"}
    left_out = {"remove-cell", "organisms", "grafts"}
    notebook["cells"] = [
        cell for cell in notebook["cells"] if not left_out & set(cell["metadata"].get("tags", []))
    ]
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = plain_markdown(cell["source"], known)
        else:
            cell["outputs"] = [_still(o) for o in cell["outputs"] if not _is_noise(o)]
    return notebook


def _still(output: Any) -> Any:
    """Replace a chart by its picture, which needs neither network nor JavaScript."""
    spec = output.get("data", {}).pop(CHART_MIME, None)
    if spec is not None:
        # Pixels, not SVG: a reader's fonts may be wider than those that labels were placed with.
        picture = vl_convert.vegalite_to_png(fixed(spec, STILL_WIDTH), scale=2)
        style = f' style="width:{STILL_WIDTH}px;max-width:100%"'
        alt = _about(output)["figure"]["alt"]
        output["data"] = {"text/html": image_tag(picture, alt, style)}
    return output

"""Figures and numbers of a chapter, live and in the book."""

from __future__ import annotations

import base64
import json
import re

import altair as alt
import pandas as pd
import pytest
from PIL import Image

from twohop_lib.chapter import show as nb
from twohop_lib.chapter.show import CHART_MIME, GLUE_PREFIX, bookify, glued, plain_markdown
from twohop_lib.errors import TwohopError

REFUSED = (ValueError, TwohopError)


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, as the outputs of a cell."""
    outputs = []

    def display(data, metadata, raw):
        assert raw
        outputs.append({"output_type": "display_data", "data": data, "metadata": metadata})

    monkeypatch.setattr(nb, "display", display)
    return outputs


def a_chart(**options) -> alt.Chart:
    data = pd.DataFrame({"x": [1, 2], "y": ["</script>", "b"]})
    return alt.Chart(data, **options).mark_bar().encode(x="x:Q", y="y:N")


def notebook(outputs, *others) -> dict:
    """An executed notebook, as it is read from disk."""
    code = {"cell_type": "code", "metadata": {"tags": ["x"]}, "source": "", "outputs": outputs}
    cells = [{"cell_type": "markdown", "metadata": {}, "source": "text"}, code, *others]
    made = {"metadata": {"kernelspec": {}, "widgets": {"state": 1}}, "cells": cells}
    return json.loads(json.dumps(made))


# --- showing ---


@pytest.mark.parametrize("options", [{}, {"description": " "}])
def test_a_chart_without_description_is_refused(shown, options):
    with pytest.raises(REFUSED, match="igure 'bars' has no description"):
        nb.show(a_chart(**options), "bars", "Bars.")
    with pytest.raises(REFUSED, match="igure 'arms' has no description"):
        nb.show_picture(Image.new("RGB", (2, 2)), "arms", "Arms.", " ")
    assert shown == []


def test_a_chart_is_shown_with_description_and_caption(shown):
    nb.show(a_chart(description="Two bars"), "bars", "Bars & more.")
    chart, caption = shown
    assert chart["data"][CHART_MIME]["description"] == "Two bars"
    assert "vega-bars" in chart["data"]["text/html"]
    assert chart["data"]["text/plain"] == "[figure: Two bars]"
    figure = {"name": "bars", "caption": "Bars & more.", "alt": "Two bars"}
    assert chart["metadata"] == {"twohop": {"figure": figure}}
    assert caption["data"]["text/plain"] == "Bars & more."
    assert "Bars &amp; more." in caption["data"]["text/html"]


def test_a_picture_is_shown_with_its_description(shown):
    nb.show_picture(Image.new("RGB", (2, 2)), "arms", "Arms.", 'A "red" shield')
    page = shown[0]["data"]["text/html"]
    assert page.startswith('<img src="data:image/png;base64,')
    assert 'alt="A &quot;red&quot; shield"' in page
    assert shown[0]["metadata"]["twohop"]["figure"]["alt"] == 'A "red" shield'


# --- in the book ---


def test_a_chart_becomes_a_numbered_figure_that_needs_no_network(shown):
    nb.show(a_chart(description='Two "bars"'), "bars", "Bars.")
    book = bookify(notebook(shown))
    cell = book["cells"][1]
    assert cell["metadata"] == {
        "tags": ["x"],
        "mystnb": {"figure": {"caption": "Bars.", "name": "bars"}},
    }
    (output,) = cell["outputs"]  # the caption is the figure's own now
    page, schema = output["data"]["text/html"], shown[0]["data"][CHART_MIME]["$schema"]
    assert CHART_MIME not in output["data"]
    assert 'id="vega-bars" role="img" aria-label="Two &quot;bars&quot;"' in page
    assert "cdn" not in page and "http" not in page.replace(schema, "")
    assert page.count("</script>") == 1  # the data cannot end the script
    spec = page.split("vegaEmbed('#vega-bars', ")[1].split(", {actions")[0]
    assert json.loads(spec.replace("<\\/", "</"))["description"] == 'Two "bars"'


def test_a_still_picture_of_a_chart_is_there_without_javascript(shown):
    nb.show(a_chart(description="Two bars"), "bars", "Bars.")
    drawn = []
    book = bookify(notebook(shown), still=lambda spec: drawn.append(spec) or "<svg>ä</svg>")
    page = book["cells"][1]["outputs"][0]["data"]["text/html"]
    still = re.search(
        r'<noscript><img alt="Two bars" src="data:image/svg\+xml;base64,(.*?)">', page
    )
    assert base64.b64decode(still[1]).decode() == "<svg>ä</svg>"
    assert drawn == [shown[0]["data"][CHART_MIME]]


def test_a_figure_that_shares_its_cell_is_refused(shown):
    nb.show(a_chart(description="Two bars"), "bars", "Bars.")
    nb.show_picture(Image.new("RGB", (2, 2)), "arms", "Arms.", "A shield")
    with pytest.raises(TwohopError, match="Figure 'bars' shares its cell"):
        bookify(notebook(shown))
    stream = {"output_type": "stream", "name": "stdout", "text": "printed"}
    assert bookify(notebook([stream, *shown[:2]]))["cells"][1]["metadata"]["mystnb"]


def test_a_picture_becomes_a_numbered_figure(shown):
    nb.show_picture(Image.new("RGB", (2, 2)), "arms", "Arms.", "A shield")
    before = shown[0]["data"]["text/html"]
    cell = bookify(notebook(shown))["cells"][1]
    assert cell["metadata"]["mystnb"] == {"figure": {"caption": "Arms.", "name": "arms"}}
    assert [o["data"]["text/html"] for o in cell["outputs"]] == [before]


def test_standard_error_and_progress_bars_are_dropped():
    widget = "application/vnd.jupyter.widget-view+json"
    printed = {"output_type": "stream", "name": "stdout", "text": "kept"}
    plain = {"output_type": "execute_result", "metadata": {}, "data": {"text/plain": "2"}}
    outputs = [
        {"output_type": "stream", "name": "stderr", "text": "a warning"},
        printed,
        {"output_type": "display_data", "metadata": {}, "data": {widget: {}, "text/plain": "0%"}},
        plain,
    ]
    made = notebook(outputs)
    book = bookify(made)
    assert book is made and book["metadata"] == {"kernelspec": {}}
    assert book["cells"][1]["outputs"] == [printed, plain]
    assert book["cells"][1]["metadata"] == {"tags": ["x"]}
    assert book["cells"][0] == {"cell_type": "markdown", "metadata": {}, "source": "text"}


def test_glued_values_are_found_and_not_printed_in_the_book(shown):
    nb.glue("gap", 22.5)
    nb.glue("named", "all of them")
    made = notebook(shown)
    made["cells"][1]["outputs"][1]["data"][GLUE_PREFIX + "text/plain"] = ["all ", "of them"]
    assert glued(made) == {"gap": "22.5", "named": "all of them"}
    assert "gap = 22.5" in made["cells"][1]["outputs"][0]["data"]["text/plain"]
    book = bookify(made)
    assert glued(book) == {"gap": "22.5", "named": "all of them"}
    assert all(list(o["data"]) == [GLUE_PREFIX + "text/plain"] for o in book["cells"][1]["outputs"])
    assert glued({"cells": [{"cell_type": "markdown"}, {"outputs": [{"name": "stdout"}]}]}) == {}


# --- outside the book ---


@pytest.mark.parametrize(
    ("myst", "plain"),
    [
        ("loses {glue:text}`gap_late` points", "loses … points"),
        ("as {cite:t}`cohen` say {cite:p}`a,b`", "as cohen say (a; b)"),
        ("see {numref}`bars`, {ref}`here`, {doc}`x`, {term}`hop`", "see bars, here, x, hop"),
        ("`code` and $x$ stay", "`code` and $x$ stay"),
        (
            "```{admonition} Key takeaways\n:class: tip\n\nIt is so.\n\n- One\n```\nEnd",
            "> **Key takeaways**\n>\n> It is so.\n>\n> - One\nEnd",
        ),
        ("```{note}\n:class: x\nMind {numref}`bars`.\n```", "> **note**\n> Mind bars."),
        ("```{note}\nMind.\n\nMore.\n```", "> **note**\n> Mind.\n>\n> More."),
        ("```{bibliography}\n:filter: x\n```", "See the rendered book."),
        ("```python\nx = {1}\n```", "```python\nx = {1}\n```"),
        ("```{note}\n\nA\n```\nmid\n```{tip} T\nB\n```", "> **note**\n>\n> A\nmid\n> **T**\n> B"),
    ],
)
def test_markdown_is_made_plain(myst, plain):
    assert plain_markdown(myst) == plain

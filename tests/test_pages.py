"""What executed notebooks become: in the book, in a run's pages, and for Colab."""

from __future__ import annotations

import base64
import json
import re

import pytest
from PIL import Image

from tests.helpers_show import HOSTILE, a_chart, escaped, notebook, outputs, parsed
from twohop_lib.chapter.pages import bookify, glued, literal, plain_markdown, readable
from twohop_lib.chapter.show import CHART_MIME, GLUE_PREFIX, glue, show, show_picture
from twohop_lib.errors import TwohopError


@pytest.fixture
def bars():
    return outputs(lambda: show(a_chart(description='Two "bars"'), "bars", "Bars: 1 < 2."))


@pytest.fixture
def arms():
    return outputs(lambda: show_picture(Image.new("RGB", (2, 2)), "arms", "Arms.", "A shield"))


# --- in the book ---


def test_a_chart_becomes_a_numbered_figure_that_needs_no_network(bars):
    (cell,) = bookify(notebook(bars))["cells"]
    assert cell["metadata"]["mystnb"] == {
        "figure": {"caption": "Bars&#58; 1 &#60; 2&#46;", "name": "bars"}
    }
    (output,) = cell["outputs"]  # the caption is the figure's own now
    page, spec = output["data"]["text/html"], bars[0]["data"][CHART_MIME]
    assert CHART_MIME not in output["data"]
    assert parsed(page).find(id="vega-bars", role="img")["aria-label"] == 'Two "bars"'
    assert "cdn" not in page and "http" not in page.replace(spec["$schema"], "")
    drawn = page.split("vegaEmbed('#vega-bars', ")[1].split(", {actions")[0]
    assert json.loads(drawn) == spec


def test_a_still_picture_of_a_chart_is_there_without_javascript(bars):
    drawn = []
    book = bookify(notebook(bars), still=lambda spec: drawn.append(spec) or "<svg>ä</svg>")
    page = book["cells"][0]["outputs"][0]["data"]["text/html"]
    still = parsed(page.split("<noscript>")[1].split("</noscript>")[0]).img
    assert still["alt"] == 'Two "bars"'
    data = still["src"].removeprefix("data:image/svg+xml;base64,")
    assert base64.b64decode(data).decode() == "<svg>ä</svg>"
    assert drawn == [bars[0]["data"][CHART_MIME]]


def test_a_figure_that_shares_its_cell_is_refused(bars, arms):
    with pytest.raises(TwohopError, match="Figure 'bars' shares its cell"):
        bookify(notebook([*bars, *arms]))
    stream = {"output_type": "stream", "name": "stdout", "text": "printed"}
    assert bookify(notebook([stream, *bars]))["cells"][0]["metadata"]["mystnb"]


def test_a_picture_becomes_a_numbered_figure(arms):
    (cell,) = bookify(notebook(arms))["cells"]
    assert cell["metadata"]["mystnb"] == {"figure": {"caption": "Arms&#46;", "name": "arms"}}
    assert [o["data"]["text/html"] for o in cell["outputs"]] == [arms[0]["data"]["text/html"]]


def noisy(*kept):
    widget = "application/vnd.jupyter.widget-view+json"
    return [
        {"output_type": "stream", "name": "stderr", "text": "a warning"},
        {"output_type": "display_data", "metadata": {}, "data": {widget: {}, "text/plain": "0%"}},
        *kept,
    ]


def test_standard_error_and_progress_bars_are_dropped():
    printed = {"output_type": "stream", "name": "stdout", "text": "kept"}
    plain = {"output_type": "execute_result", "metadata": {}, "data": {"text/plain": "2"}}
    for page in (bookify, readable):
        made = notebook("text", noisy(printed, plain))
        assert page(made) is made and "widgets" not in made["metadata"]
        prose, code = made["cells"]
        assert code["outputs"] == [printed, plain] and "mystnb" not in code["metadata"]
        assert prose["source"] == "text"


def test_glued_values_are_found_and_not_printed_in_the_book():
    made = notebook(outputs(lambda: glue("gap", 22.5)) + outputs(lambda: glue("named", "all")))
    made["cells"][0]["outputs"][1]["data"][GLUE_PREFIX + "text/plain"] = ["all ", "of them"]
    assert glued(made) == {"gap": "22.5", "named": "all of them"}
    book = bookify(made)
    assert glued(book) == {"gap": "22.5", "named": "all of them"}
    assert all(list(o["data"]) == [GLUE_PREFIX + "text/plain"] for o in book["cells"][0]["outputs"])
    assert glued({"cells": [{"cell_type": "markdown"}, {"outputs": [{"name": "stdout"}]}]}) == {}


def test_no_text_gets_out_of_a_figure_of_the_book():
    shown = outputs(lambda: show(a_chart(description=HOSTILE), "bars", HOSTILE))
    (cell,) = bookify(notebook(shown), still=lambda spec: "<svg/>")["cells"]
    page = parsed(cell["outputs"][0]["data"]["text/html"] + "<p id='after'>After.</p>")
    assert page.find(id="after") and not escaped(page)
    assert page.find(id="vega-bars")["aria-label"] == HOSTILE
    assert len(page("script")) == 1


# --- outside the book ---


def test_a_page_of_its_own_has_pictures_numbers_and_values(bars, arms):
    value = outputs(lambda: glue("gap", "22 *or* so"))
    made = notebook(
        "See {numref}`arms`: {glue:text}`gap`, not {glue:text}`other` nor {numref}`none`.",
        bars,
        arms,
        value,
        "Of organisms.",
    )
    made["cells"][3]["metadata"]["tags"] = ["remove-cell"]
    made["cells"][4]["metadata"]["tags"] = ["organisms"]
    prose, first, second = readable(made)["cells"]
    assert prose["source"] == "See Figure 2: 22 &#42;or&#42; so, not … nor none."
    picture, caption = (parsed(o["data"]["text/html"]) for o in first["outputs"])
    assert picture.img["alt"] == 'Two "bars"' and picture.img["src"].startswith("data:image/png")
    assert caption.em.text == "Figure 1. Bars: 1 < 2."
    assert parsed(second["outputs"][1]["data"]["text/html"]).em.text == "Figure 2. Arms."


def test_a_literal_is_one_line_without_markup():
    assert re.fullmatch(r"(?:[\w\s…–]|&#\d+;)*", literal(HOSTILE))
    assert parsed(literal(HOSTILE)).body.text == HOSTILE.replace("\u2028", " ")
    assert literal("40 – 50 %") == "40 – 50 &#37;"


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

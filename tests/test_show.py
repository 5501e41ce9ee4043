"""What a chapter's cell shows, in a live notebook."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.helpers_show import HOSTILE, a_chart, escaped, outputs, parsed
from twohop_lib.chapter.show import CHART_MIME, GLUE_PREFIX, InlineJSON, glue, show, show_picture
from twohop_lib.errors import TwohopError


@pytest.mark.parametrize("options", [{}, {"description": " "}])
def test_a_figure_without_description_is_refused(options):
    with pytest.raises(TwohopError, match="Figure 'bars' has no description"):
        show(a_chart(**options), "bars", "Bars.")
    with pytest.raises(TwohopError, match="Figure 'arms' has no description"):
        show_picture(Image.new("RGB", (2, 2)), "arms", "Arms.", " ")


def test_a_chart_is_shown_with_description_and_caption():
    chart, caption = outputs(lambda: show(a_chart(description="Two bars"), "bars", "Bars & more."))
    assert chart["data"][CHART_MIME]["description"] == "Two bars"
    assert "vega-bars" in chart["data"]["text/html"]
    assert chart["data"]["text/plain"] == "[figure: Two bars]"
    figure = {"name": "bars", "caption": "Bars & more.", "alt": "Two bars"}
    assert chart["metadata"] == {"twohop": {"figure": figure}}
    assert caption["data"]["text/plain"] == "Bars & more."
    assert "Bars &amp; more." in caption["data"]["text/html"]


def test_a_picture_is_shown_with_its_description():
    picture, _ = outputs(
        lambda: show_picture(Image.new("RGB", (2, 2)), "arms", "Arms.", 'A "red" shield')
    )
    page = picture["data"]["text/html"]
    assert page.startswith('<img src="data:image/png;base64,')
    assert parsed(page).img["alt"] == 'A "red" shield'
    assert picture["metadata"]["twohop"]["figure"]["alt"] == 'A "red" shield'


def test_a_glued_value_is_named_and_printed():
    (output,) = outputs(lambda: glue("gap", 22.5))
    assert output["data"] == {GLUE_PREFIX + "text/plain": "22.5", "text/plain": "gap = 22.5"}
    assert output["metadata"]["scrapbook"] == {"name": "gap", "mime_prefix": GLUE_PREFIX}


def test_no_text_gets_out_of_a_live_figure():
    chart, caption = outputs(lambda: show(a_chart(description=HOSTILE), "bars", HOSTILE))
    (picture, _) = outputs(lambda: show_picture(Image.new("RGB", (2, 2)), "p", "P.", HOSTILE))
    page = parsed(
        chart["data"]["text/html"]
        + picture["data"]["text/html"]
        + caption["data"]["text/html"]
        + "<p id='after'>What stands after it.</p>"
    )
    assert page.find(id="after") and not escaped(page)
    assert page.em.text == HOSTILE and page.img["alt"] == HOSTILE
    harmless = a_chart(description="Bars").to_html(fullhtml=False, json_kwds={"cls": InlineJSON})
    assert len(page("script")) == len(parsed(harmless)("script"))

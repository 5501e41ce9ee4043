"""What a cell shows, as the outputs of an executed notebook; and texts that try to get out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import altair as alt
import pandas as pd
from bs4 import BeautifulSoup

from twohop_lib.chapter import show as showing

#: An answer or a name that would end a script, swallow the page in a comment, or be markup.
HOSTILE = (
    "--></script>\u2028<img src=x onerror=alert(1)> \"'> & &lt; *b* `c` {ref}`x` "
    "[l](javascript:alert(1)) | $x$ \\ </title></style><!--<script >"
)


def outputs(show: Callable[[], Any]) -> list[dict[str, Any]]:
    """Call what shows something, and return the cell's outputs."""
    found: list[dict[str, Any]] = []

    def display(data: dict[str, Any], metadata: dict[str, Any], raw: bool) -> None:
        assert raw
        output = {"output_type": "display_data", "data": data, "metadata": metadata}
        found.append(json.loads(json.dumps(output)))

    before, showing.display = showing.display, display
    try:
        show()
    finally:
        showing.display = before
    return found


def a_chart(**options: Any) -> alt.Chart:
    """Two bars, one of which has a hostile name."""
    data = pd.DataFrame({"x": [1, 2], "y": [HOSTILE, "b"]})
    return alt.Chart(data, **options).mark_bar().encode(x="x:Q", y="y:N")


def notebook(*cells: list[dict[str, Any]] | str) -> dict[str, Any]:
    """An executed notebook, as it is read from disk: prose, or a code cell's outputs."""
    made = [
        {"cell_type": "markdown", "id": f"c{n}", "metadata": {}, "source": cell}
        if isinstance(cell, str)
        else {
            "cell_type": "code",
            "id": f"c{n}",
            "metadata": {"tags": ["x"]},
            "source": "",
            "execution_count": None,
            "outputs": cell,
        }
        for n, cell in enumerate(cells)
    ]
    metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python"},
        "widgets": {"state": 1},
    }
    content = {"metadata": metadata, "cells": made, "nbformat": 4, "nbformat_minor": 5}
    return json.loads(json.dumps(content))


def parsed(page: str) -> BeautifulSoup:
    """A page as a browser reads it."""
    return BeautifulSoup(page, "html5lib")


def escaped(page: BeautifulSoup) -> list[str]:
    """What of :data:`HOSTILE` became markup on a page."""
    found = list(page(onerror=True) + page(src="x"))
    return [str(t) for t in found + page("a", href=lambda to: (to or "").startswith("javascript"))]

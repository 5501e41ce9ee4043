"""What a run leaves to be read: a page for each chapter, and a first page on the whole.

The pages need no network and no scripts. Each says at its top if the run is no result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jinja2
import nbformat
import pandas as pd
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter
from traitlets.config import Config

from twohop_lib import records
from twohop_lib.chapter.pages import readable

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("twohop_lib.rerun"), autoescape=True, trim_blocks=True
)
NOT_A_RESULT = "{why} The page shows that the experiments run on it, and nothing else."
_MARK = "not-a-result"


class Asked(Protocol):
    """What the first page tells of a request (:class:`twohop_lib.rerun.run.Request`)."""

    vlm: str
    llm: str | None
    benchmark: str
    profile: Any


# --- is it a result? --------------------------------------------------------------------------


def clean_answers(frame: pd.DataFrame) -> pd.DataFrame:
    """Answers of the models left alone, each once however many chapters keep it.

    Records without a column ``intervention`` are of models left alone.
    """
    clean = records.untouched(frame) if "intervention" in frame else frame
    key = [name for name in records.ANSWER_KEY if name != "intervention"]
    return clean.drop_duplicates(key) if set(key) <= set(clean.columns) else clean


def why_no_result(report: Mapping[str, Any], frame: pd.DataFrame) -> str | None:
    """Return why a run is no result, or None if it is one.

    ``report`` is the check's (:mod:`twohop_lib.interventions.check`), ``frame`` the records.
    """
    if report.get("untrained"):
        return (
            "The weights of this model look random (text surprises it "
            f"{report['surprise']:.2f} times as much as it would a uniform guess)."
        )
    clean = clean_answers(frame)
    named = clean[clean["condition"] == "identify"] if len(clean) else clean
    if len(named) and not named["correct"].any():
        count = named["entity_id"].nunique()
        return f"This model named none of the {count} entities that it was shown."
    return None


def mark(notebook: Path, why: str | None) -> None:
    """Let a notebook begin with why it is no result, and with nothing of the kind if it is one."""
    content = nbformat.read(notebook, as_version=4)
    source = f"**Not a result.** {NOT_A_RESULT.format(why=why)}"
    wanted = [source] if why else []
    if [cell["source"] for cell in content.cells if cell["id"] == _MARK] == wanted:
        return
    content.cells = [cell for cell in content.cells if cell["id"] != _MARK]
    for text in wanted:
        content.cells.insert(0, nbformat.v4.new_markdown_cell(text, id=_MARK))
    with records.atomic_path(notebook) as partial:
        nbformat.write(content, partial)


# --- pages ------------------------------------------------------------------------------------


def write_chapter(notebook: Path, page: Path, why: str | None) -> None:
    """Write an executed chapter as a page."""
    content = nbformat.read(notebook, as_version=4)
    content.cells = [cell for cell in content.cells if cell["id"] != _MARK]
    config = Config(TagRemovePreprocessor={"enabled": True, "remove_input_tags": {"hide-input"}})
    exporter = HTMLExporter(template_name="basic", config=config)
    body, _ = exporter.from_notebook_node(readable(content))
    code = HtmlFormatter().get_style_defs(".highlight")
    title = page.stem.replace("_", " ")
    _write(page, "page.html.j2", why, title=title, body=body, code_style=code)


def write_index(
    page: Path,
    request: Asked,
    report: Mapping[str, Any],
    frame: pd.DataFrame,
    done: Sequence[str],
    failed: Mapping[str, str],
    why: str | None,
) -> None:
    """Write a run's first page: what was run, how accurate the model is, links to the chapters.

    ``report`` is the check's, ``frame`` holds the records of the chapters that are ``done``;
    ``failed`` are the others, each with its error.
    """
    _write(
        page,
        "index.html.j2",
        why,
        title=Path(request.vlm).name,
        request=request,
        report=report,
        done=done,
        failed=failed,
        answers=_accuracies(clean_answers(frame)),
    )


def _accuracies(clean: pd.DataFrame) -> list[dict[str, Any]]:
    if clean.empty:
        return []
    return [
        {
            "condition": condition,
            "given": records.CONDITIONS.get(str(condition), ""),
            # Of fewer than ten, a share says more than is known.
            "right": f"{right.mean():.1%}"
            if len(right) >= 10
            else f"{right.sum()} of {len(right)}",
            "n": len(right),
        }
        for condition, right in clean.groupby("condition", sort=False)["correct"]
    ]


def _write(page: Path, template: str, why: str | None, **content: Any) -> None:
    content["not_a_result"] = f"Not a result. {NOT_A_RESULT.format(why=why)}"
    text = _TEMPLATES.get_template(template).render(why=why, **content)
    with records.atomic_path(page) as partial:
        partial.write_text(text, encoding="utf-8")

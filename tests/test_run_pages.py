"""What a run leaves to be read: its chapters' pages and its first page."""

from __future__ import annotations

import nbformat
import pandas as pd
import pytest
from PIL import Image

from tests.helpers_show import HOSTILE, a_chart, escaped, notebook, outputs, parsed
from twohop_lib import records
from twohop_lib.chapter.show import glue, show, show_picture
from twohop_lib.rerun import pages
from twohop_lib.rerun.run import Request

REPORT = {"architecture_class": "adapter", "n_blocks": 8, "image_tokens": 9, "untrained": False}


def answers(condition: str, right: list[bool], intervention: str | None = None) -> pd.DataFrame:
    ids = [f"e{n}" for n in range(len(right))]
    frame = pd.DataFrame({"entity_id": ids, "question_id": ids, "correct": right})
    frame = frame.assign(model="late", seed=0, wording="standard", condition=condition)
    return frame.assign(intervention=intervention, chapter="the_gap")


CLEAN = pd.concat(
    [answers("identify", [True] * 12), answers("by_picture", [True] * 3 + [False] * 9)]
)
PATCHED = answers("identify", [False] * 12, "cross-patch")


def index(folder, frame=CLEAN, done=("the_gap",), failed=(), why=None, **asked):
    request = Request(**{"vlm": "/models/late", "benchmark": "heraldry", **asked})
    pages.write_index(
        folder / "html" / "index.html", request, REPORT, frame, list(done), dict(failed), why
    )
    return parsed((folder / "html" / "index.html").read_text(encoding="utf-8"))


def rows(page) -> dict[str, list[str]]:
    """The table of answers: condition -> right and n."""
    found = [[cell.get_text() for cell in row(["th", "td"])] for row in page.table("tr")]
    assert found[0] == ["condition", "what was given", "right", "n"]
    return {condition: rest for condition, given, *rest in found[1:] if given}


# --- the first page ---


def test_the_first_page_says_what_was_run_and_what_came_of_it(tmp_path):
    page = index(tmp_path, llm="/models/backbone", failed={"broken": "it broke"})
    assert page.h1.text == page.title.text == "late"
    said = " ".join(page.p.text.split())
    assert said == (
        "/models/late with /models/backbone: adapter, 8 blocks, 9 image tokens. "
        "Benchmark heraldry, profile standard."
    )
    assert [a["href"] for a in page("a")] == ["the_gap.html"]
    assert [li.text for li in page("li")] == ["the gap", "broken: failed. it broke"]
    assert rows(page) == {"identify": ["100.0%", "12"], "by_picture": ["25.0%", "12"]}
    assert page.table.caption and all(th.get("scope") for th in page.table("th"))
    assert not page("script") and "Not a result" not in page.text


def test_the_first_page_counts_clean_answers_alone(tmp_path):
    # Not 50 % of 24: what a patched model answers says nothing of the model's accuracy.
    assert rows(index(tmp_path, pd.concat([CLEAN, PATCHED])))["identify"] == ["100.0%", "12"]
    assert rows(index(tmp_path, pd.concat([PATCHED, CLEAN])))["identify"] == ["100.0%", "12"]
    # Records without the column are clean.
    assert rows(index(tmp_path, CLEAN.drop(columns="intervention"))) == rows(index(tmp_path))
    page = index(tmp_path, PATCHED)
    assert not page.table and "No chapter kept answers" in page.text


def test_an_answer_in_two_chapters_counts_once(tmp_path):
    twice = pd.concat([CLEAN, CLEAN.assign(chapter="cross_patching")])
    assert rows(index(tmp_path, twice)) == rows(index(tmp_path))
    other = pd.concat([CLEAN, answers("identify", [False] * 12).assign(seed=1)])
    assert rows(index(tmp_path, other))["identify"] == ["50.0%", "24"]


def test_a_share_of_few_is_a_count(tmp_path):
    assert rows(index(tmp_path, answers("identify", [True, False])))["identify"] == ["1 of 2", "2"]


def test_a_run_without_records_has_a_first_page(tmp_path):
    page = index(tmp_path, pd.DataFrame(), done=[], failed={"the_gap": "no memory"})
    assert not page.table and [li.text for li in page("li")] == ["the gap: failed. no memory"]


# --- is it a result? ---


@pytest.mark.parametrize(
    ("frame", "told"),
    [
        (CLEAN, None),
        (pd.DataFrame(), None),
        (answers("by_picture", [False]), None),
        (answers("identify", [False, False]), "named none of the 2 entities"),
        # What a patch made of its answers neither saves a model nor damns it.
        (
            pd.concat([answers("identify", [False]), answers("identify", [True], "freeze")]),
            "named none of the 1 entities",
        ),
        (pd.concat([CLEAN, PATCHED]), None),
        (PATCHED, None),
    ],
)
def test_a_model_that_names_nothing_is_no_result(frame, told):
    why = pages.why_no_result(REPORT, frame)
    assert why is None if told is None else told in why
    random = pages.why_no_result({**REPORT, "untrained": True, "surprise": 1.07}, frame)
    assert "look random" in random and "1.07 times" in random


def test_every_page_is_marked_if_it_is_no_result(tmp_path):
    file = tmp_path / "the_gap.ipynb"
    nbformat.write(nbformat.from_dict(notebook("Prose.")), file)
    before = file.read_bytes()
    pages.mark(file, None)
    assert file.read_bytes() == before
    for _ in range(2):
        pages.mark(file, "It is random.")
        marked = nbformat.read(file, as_version=4).cells
        assert len(marked) == 2 and marked[0].source.startswith("**Not a result.** It is random.")
    pages.write_chapter(file, tmp_path / "html" / "the_gap.html", "It is random.")
    chapter = parsed((tmp_path / "html" / "the_gap.html").read_text(encoding="utf-8"))
    for page in (chapter, index(tmp_path, why="It is random.")):
        assert page.find(role="alert").text.startswith("Not a result. It is random. ")
        assert page.title.text.startswith("Not a result: ")
    assert chapter.text.count("It is random") == 1
    pages.mark(file, None)
    assert file.read_bytes() == before


# --- texts from models and readers ---


def test_no_text_gets_out_of_a_chapters_page(tmp_path):
    made = notebook(
        "Before: {glue:text}`said`, in {numref}`bars`.",
        outputs(lambda: show(a_chart(description=HOSTILE), "bars", HOSTILE)),
        outputs(lambda: show_picture(Image.new("RGB", (2, 2)), "arms", HOSTILE, HOSTILE)),
        outputs(lambda: glue("said", HOSTILE)),
        [{"output_type": "stream", "name": "stdout", "text": HOSTILE}],
        [{"output_type": "display_data", "metadata": {}, "data": {"text/plain": HOSTILE}}],
        "The last words.",
    )
    made["cells"][3]["metadata"]["tags"] = ["remove-cell"]
    nbformat.write(nbformat.from_dict(made), tmp_path / "x.ipynb")
    pages.write_chapter(tmp_path / "x.ipynb", tmp_path / "x.html", None)
    page = parsed((tmp_path / "x.html").read_text(encoding="utf-8"))
    assert not page("script") and not escaped(page) and not page.body("style")
    line = HOSTILE.replace("\u2028", " ")
    first, *_, last = page("p")
    assert first.text == f"Before: {line}, in Figure 1." and last.text == "The last words."
    assert [em.text for em in page("em")] == [f"Figure {n}. {HOSTILE}" for n in (1, 2)]
    assert [img["alt"] for img in page("img")] == [HOSTILE] * 2
    assert [pre.text.strip("\n") for pre in page("pre")].count(HOSTILE) == 2


def test_no_text_gets_out_of_the_first_page(tmp_path):
    bad = {"failed": {HOSTILE: HOSTILE}, "done": [HOSTILE], "benchmark": HOSTILE, "llm": HOSTILE}
    page = index(tmp_path, answers(HOSTILE, [True] * 10), vlm=HOSTILE, why=HOSTILE, **bad)
    assert not page("script") and not escaped(page)
    assert page.table.find("th", scope="row").text == HOSTILE
    assert page("li")[1].text == f"{HOSTILE}: failed. {HOSTILE}"


def test_conditions_are_explained(tmp_path):
    (given,) = [td.text for td in index(tmp_path, answers("identify", [True] * 10)).table("td")][:1]
    assert given == records.CONDITIONS["identify"]

"""The book's build, on a small book of its own, and what every rendered page must satisfy."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup

from tests.helpers_show import HOSTILE, escaped
from tests.helpers_show import parsed as browsed
from twohop_lib.errors import TwohopError

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("book_build", ROOT / "book" / "build.py")
build = sys.modules["book_build"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build)

INTRO = (
    "# A small book\n\nIt is {{ demo.answer }}, see {numref}`fig-line`.\n\n{{ demo.fig_red }}\n\n"
    "| said | by |\n|---|---|\n| {{ demo.hostile }} | it |\n"
)
STATUS = "# Status\n\n{{ status.chapters }}\n\n{{ status.versions }}\n"
CHAPTER = """# %% [markdown]
# # A demonstration
#
# ```{admonition} Key takeaways
# :class: tip
#
# - It is {glue:text}`answer`, says {cite:t}`venhoff2025toolate`; {numref}`fig-red` shows nothing.
# ```
#
# A formula, $a/b$. It said: {glue:text}`hostile`.

# %% tags=["parameters"]
number = 41  # what one is added to

# %%
import sys

import altair as alt
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm
from twohop_lib.chapter.show import glue, show, show_picture

print("on standard error", file=sys.stderr)
list(tqdm([1]))
assert not any(name.startswith("sphinx") for name in sys.modules)

# %%
data = pd.DataFrame({"x": [1, 2], "y": [3, number]})
line = alt.Chart(data, description="A line", width="container").mark_line()
show(line.encode(x="x:Q", y="y:Q"), "fig-line", f"A line, n = {len(data)}.")

# %%
show_picture(Image.new("RGB", (9, 9), "red"), "fig-red", "A square.", "A red square")

# %%
bad = HOSTILE
odd = alt.Chart(pd.DataFrame({"x": [1], "y": [bad]}), description=bad, width="container")
show(odd.mark_bar().encode(x="x:Q", y="y:N"), "fig-hostile", bad)

# %%
pd.DataFrame({"answer": [bad]})

# %% tags=["remove-cell"]
glue("answer", number + 1)
glue("hostile", bad)

# %% [markdown]
# ```{bibliography}
# :filter: docname in docnames
# ```
"""


def fetched(page: BeautifulSoup) -> list[str]:
    """Addresses that a browser would fetch by itself to show the page."""
    loaded = [tag.get("src") for tag in page.find_all(src=True)]
    loaded += [tag["href"] for tag in page.find_all("link", href=True)]
    loaded += [tag["data"] for tag in page.find_all("object", data=True)]
    loaded += re.findall(r"(?:import|url)\(\s*['\"]?([^'\")]+)", str(page))
    return [url for url in loaded if re.match(r"(?:https?:)?//", url)]


def faults(page: BeautifulSoup) -> list[str]:
    """What is wrong with a rendered page, in words."""
    found = [f"fetches {url}" for url in fetched(page)]
    found += [f"no text for {tag.get('src', '')[:60]}" for tag in page("img") if not tag.get("alt")]
    for figure in page("figure"):
        caption = figure.find("figcaption")
        text = caption.get_text(" ", strip=True) if caption else ""
        if not re.match(r"Figure \d+ \S", text):
            found.append(f"figure {figure.get('id')} has no number and caption: {text!r}")
        described = figure.find("img", alt=True) or figure.find(
            role="img", attrs={"aria-label": True}
        )
        if not described or not (described.get("alt") or described.get("aria-label")):
            found.append(f"figure {figure.get('id')} has no description")
    ids = [tag["id"] for tag in page.find_all(id=re.compile("^vega-"))]
    found += [f"chart {name} is there twice" for name in set(ids) if ids.count(name) > 1]
    if "THEBE_JS_URL" in str(page):
        found.append("declares Thebe's address, twice: an error in the console")
    if page(id=re.compile("^vega-")) and not page("script", src=re.compile(r"_static/vega\.js")):
        found.append("charts without vega.js")
    return found


def markup_shown(page: BeautifulSoup) -> list[str]:
    """Prose in which a reader sees marks that were meant for Markdown: glued values are texts."""
    prose = BeautifulSoup(str(page), "html.parser")
    for tag in prose(["code", "pre", "script", "style", "table"]):
        tag.decompose()
    for tag in prose(class_="math"):
        tag.decompose()
    marks = re.compile(r"\*\*|`|(?<!\w)\*\w[^*]*\*(?!\w)")
    return [tag.get_text() for tag in prose(["p", "li"]) if marks.search(tag.get_text())]


def test_columns_of_texts_are_marked_and_numbers_are_not():
    page = (
        "<table><thead><tr><th></th><th colspan='2'>both</th></tr>"
        "<tr><th>i</th><th>share</th><th>said</th></tr></thead>"
        "<tbody><tr><th>0</th><td> 3.1 %</td><td>“a &lt; b”, he said</td></tr>"
        "<tr><th>1</th><td>−1e-05</td><td>7</td></tr></tbody></table>"
    )
    cell = {"outputs": [{"data": {"text/html": page}}, {"name": "stdout", "text": "<table"}]}
    build.mark_texts({"cells": [cell, {"cell_type": "markdown"}]})
    marked = BeautifulSoup(cell["outputs"][0]["data"]["text/html"], "html.parser")
    texts = [tag.get_text() for tag in marked(class_="text")]
    assert texts == ["said", "“a < b”, he said", "7"] and not marked(class_="long")
    cell["outputs"][0]["data"]["text/html"] = page.replace("he said", "he said to them all")
    build.mark_texts({"cells": [cell]})
    assert cell["outputs"][0]["data"]["text/html"].count('class="long text"') == 3
    assert marked.get_text() == BeautifulSoup(page, "html.parser").get_text()


def parsed(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """The root of a small book with the real settings, built."""
    root = tmp_path_factory.mktemp("book")
    (root / "chapters").mkdir()
    for name in ("_config.yml", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "book" / "_static", root / "book" / "_static")
    shutil.copy(ROOT / "book" / "references.bib", root / "book")
    shutil.copytree(ROOT / "benchmarks" / "results", root / "benchmarks" / "results")
    (root / "book" / "intro.md").write_text(INTRO)
    (root / "book" / "status.md").write_text(STATUS)
    (root / "chapters" / "demo.py").write_text(CHAPTER.replace("= HOSTILE", f"= {HOSTILE!r}"))
    (root / "chapters" / "demo.ipynb").write_text("the twin, which is for Colab only")
    parts = [{"chapters": [{"file": "chapters/demo"}, {"file": "book/status"}]}]
    toc = {"format": "jb-book", "root": "book/intro", "parts": parts}
    (root / "_toc.yml").write_text(yaml.safe_dump(toc))
    assert build.build(root) == root / "_build" / "html" / "index.html"
    return root


@pytest.fixture
def html(small) -> Path:
    return small / "_build" / "html"


def test_the_checkout_stays_clean(small):
    assert {p.name for p in small.iterdir()} == {
        *("_build", "_config.yml", "_toc.yml", "benchmarks", "book", "chapters"),
        *("pyproject.toml", "requirements.lock"),
    }
    assert {p.name for p in (small / "chapters").iterdir()} == {"demo.py", "demo.ipynb"}
    assert not (small / "book" / "_static" / "vega.js").exists()
    assert yaml.safe_load((small / "_config.yml").read_text())["repository"]["url"] == ""


def test_families_and_colab_are_told_from_what_was_recorded():
    told = build.rehearsed(ROOT / "benchmarks" / "results")
    row = next(ln for ln in told["families"].splitlines() if ln.startswith("| qwen3_5 |"))
    assert "6 of 8 chapters" in row and "Attention edges cannot be cut" in row
    assert "torch 2.11.*: 2.11." in told["colab"]


def test_no_page_of_the_small_book_has_a_fault(html):
    pages = sorted(html.rglob("*.html"))
    assert {"intro.html", "demo.html", "search.html"} <= {p.name for p in pages}
    assert {p.name: faults(parsed(p)) for p in pages if faults(parsed(p))} == {}


def test_styles_and_scripts_fetch_nothing(html):
    for style in (html / "_static").rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(?:https?:)?//", style.read_text(encoding="utf-8"))
    assert (html / "_static" / "mathjax.js").stat().st_size > 1e6
    assert "vegaEmbed" in (html / "_static" / "vega.js").read_text(encoding="utf-8")


def test_figures_are_numbered_captioned_and_described(html):
    page = parsed(html / "chapters" / "demo.html")
    line, red, _ = page("figure")
    assert line.find(id="vega-fig-line")["aria-label"] == "A line"
    assert line.find("noscript").find("img")["src"].startswith("data:image/svg+xml;base64,")
    assert line.figcaption.get_text(" ", strip=True).startswith("Figure 1 A line, n = 2.")
    assert red.img["alt"] == "A red square"
    assert red.figcaption.get_text(" ", strip=True).startswith("Figure 2 A square.")


def test_computed_values_stand_in_prose_above_and_on_other_pages(html):
    page = parsed(html / "chapters" / "demo.html")
    takeaways = page.find(class_="admonition").get_text(" ", strip=True)
    assert "It is 42, says Venhoff" in re.sub(r"\s+([,;])", r"\1", takeaways)
    assert "Figure 2 shows nothing" in takeaways
    intro = parsed(html / "book" / "intro.html").article.get_text(" ", strip=True)
    assert "It is 42, see Figure 1 ." in intro
    assert parsed(html / "book" / "intro.html").article.find("img")["alt"] == "A red square"
    status = parsed(html / "book" / "status.html")
    assert status.find("a", string="A demonstration")["href"] == "../chapters/demo.html"
    assert "transformers" in status.article.get_text()


def test_no_text_gets_out_of_figures_tables_or_prose(html):
    page, intro = (
        browsed((html / where).read_text(encoding="utf-8"))
        for where in ("chapters/demo.html", "book/intro.html")
    )
    assert page.find("footer") and not escaped(page) and not escaped(intro)
    assert page.find(id="vega-fig-hostile")["aria-label"] == HOSTILE
    prose = next(p for p in page("p") if "It said: " in p.text)
    # Dashes and quotes are the typesetter's.
    plain = HOSTILE[HOSTILE.index("<img") : HOSTILE.index(' "')]
    rest = HOSTILE[HOSTILE.index(" & &lt;") : HOSTILE.index("<!--")]
    for place in (page("figcaption")[-1], prose, intro.td):
        assert plain in place.text and rest in place.text
    assert any(td.text.startswith("-->") and plain in td.text for td in page("td"))


def test_noise_is_not_shown(html):
    text = parsed(html / "chapters" / "demo.html").article.get_text()
    assert "on standard error" not in text.replace('print("on standard error"', "")
    assert "answer = 42" not in text and "0/1" not in text and "1/1" not in text


def test_the_rocket_opens_the_twin_in_the_repository(html):
    address = build.repository(ROOT).removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{address}/blob/main/chapters/demo.ipynb"
    links = [a["href"] for a in parsed(html / "chapters" / "demo.html").find_all("a", href=True)]
    assert colab in links


def test_nothing_is_done_again_while_nothing_changed(small, monkeypatch, capsys):
    def never(*args):
        raise AssertionError("rendered again")

    monkeypatch.setattr(build, "render", never)
    build.build(small)
    assert capsys.readouterr().out == "chapter demo: unchanged\n"
    style = small / "book" / "_static" / "book.css"
    before = style.read_text()
    style.write_text(before + "/* changed */\n")
    with pytest.raises(AssertionError, match="rendered again"):
        build.build(small)
    style.write_text(before)


def test_a_changed_library_or_lock_executes_again(small, monkeypatch, tmp_path):
    environments = []

    def execute(source, out, *, environment, say):
        environments.append(environment)
        return False

    monkeypatch.setattr(build, "execute", execute)
    library = tmp_path / "twohop_lib"
    library.mkdir()
    monkeypatch.setattr(build, "LIBRARY", library)
    build.run_chapters(small)
    (library / "weights.safetensors").write_bytes(b"1")
    build.run_chapters(small)
    lock = small / "requirements.lock"
    before = lock.read_text()
    lock.write_text(before + "# changed\n")
    build.run_chapters(small)
    lock.write_text(before)
    build.run_chapters(small)
    assert len(set(environments)) == 3 and environments[1] == environments[3]


def test_the_longest_chapters_start_first_and_the_order_stays(small, monkeypatch):
    names = ["the_gap", "forward_freezing", *build.LONGEST]
    started = []
    monkeypatch.setattr(build, "execute", lambda source, out, **_: started.append(source.stem))
    monkeypatch.setattr(build, "chapters", lambda root: [Path(f"{name}.py") for name in names])
    assert list(build.run_chapters(small)) == names
    assert set(started[:2]) == set(build.LONGEST)
    assert set(build.LONGEST) < {path.stem for path in (ROOT / "chapters").glob("*.py")}


def test_every_failing_chapter_is_told(small, monkeypatch):
    def execute(source, out, *, environment, say):
        raise TwohopError(f"Chapter {source.stem} failed in cell 4 ('x'): why.")

    monkeypatch.setattr(build, "execute", execute)
    monkeypatch.setattr(build, "chapters", lambda root: [Path("one.py"), Path("two.py")])
    with pytest.raises(TwohopError, match=r"Chapter one failed(.|\n)*Chapter two failed in cell 4"):
        build.build(small)


def test_a_figure_that_cannot_be_drawn_is_told_by_what_it_shows():
    spec = {"description": "Dots of nothing.", "layer": 3}
    with pytest.raises(TwohopError, match="A figure cannot be drawn: Dots of nothing"):
        build.still(spec)


def test_a_page_that_asks_for_an_unknown_value_is_told():
    with pytest.raises(TwohopError, match=r"book/intro\.md asks for demo\.anser"):
        build.fill("It is {{ demo.anser }}.", {"demo": {"answer": "42"}}, "book/intro.md")


def test_a_warning_fails_the_build_and_the_next_build_repairs_it(small, html):
    page = small / "book" / "intro.md"
    page.write_text(INTRO + "\n{numref}`no-such-figure`\n")
    line = INTRO.count("\n") + 2
    with pytest.raises(TwohopError, match=rf"intro\.md:{line}: WARNING: .*no-such-figure"):
        build.build(small)
    page.write_text(INTRO)
    build.build(small)
    assert "no-such-figure" not in (html / "book" / "intro.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("<script src='https://cdn.jsdelivr.net/x.js'></script>", "fetches https://cdn"),
        ("<link href='//fonts.example/x.css' rel='stylesheet'>", "fetches //fonts"),
        ("<style>@import url(https://x.example/y.css)</style>", "fetches https://x"),
        ("<script>import('https://esm.sh/vega')</script>", "fetches https://esm"),
        ("<img src='a.png'>", "no text for a.png"),
        ("<figure id='f'><img src='a.png' alt='A'></figure>", "figure f has no number"),
        ("<figure><figcaption>Figure 1 A.</figcaption><p></p></figure>", "has no description"),
        ("<div id='vega-a'></div>", "charts without vega.js"),
        ("<div id='vega-a'></div><div id='vega-a'></div>", "chart vega-a is there twice"),
    ],
)
def test_faults_are_found(broken, told):
    assert any(told in fault for fault in faults(BeautifulSoup(broken, "html.parser")))


def test_markup_that_a_reader_would_see_is_found():
    page = "<p>a **b**</p><p>an *it* is</p><ul><li>`c`</li></ul><p>2 * 3 <code>**x**</code></p>"
    assert markup_shown(BeautifulSoup(page, "html.parser")) == ["a **b**", "an *it* is", "`c`"]


def test_a_figure_s_name_is_of_one_chapter_alone_and_quoted_values_are_glued():
    names: dict[str, str] = {}
    for chapter in sorted((build.ROOT / "chapters").glob("*.py")):
        text = chapter.read_text(encoding="utf-8")
        for name in set(re.findall(r'^ *"(fig-[a-z0-9-]+)",$', text, re.M)):
            assert names.setdefault(name, chapter.name) == chapter.name
        if "{glue:text}`answers_cut`" in text:
            assert 'glue("answers_cut"' in text, chapter.name
    assert len(names) > 20


def test_no_page_of_the_book_itself_has_a_fault():
    html = ROOT / "_build" / "html"
    if not (html / "index.html").exists():
        pytest.skip("the book is not built: make book")
    pages = sorted(html.rglob("*.html"))
    assert {str(p): faults(parsed(p)) for p in pages if faults(parsed(p))} == {}
    assert {str(p): markup_shown(parsed(p)) for p in pages if markup_shown(parsed(p))} == {}
    for chapter in build.chapters(ROOT):
        executed = nbformat.read(ROOT / "_build" / "executed" / f"{chapter.stem}.ipynb", 4)
        outputs = [o for cell in executed.cells for o in cell.get("outputs", ())]
        shown = [o.metadata.twohop.figure for o in outputs if "figure" in about(o)]
        figures = parsed(html / "chapters" / f"{chapter.stem}.html")("figure")
        assert [figure["id"] for figure in figures] == [figure["name"] for figure in shown]
        assert shown, f"{chapter.stem} shows no figure"


def about(output: dict) -> dict:
    """What twohop_lib.chapter.show noted on an output."""
    return output.get("metadata", {}).get("twohop", {})

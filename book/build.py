"""Build the book: execute the chapters, stage, render with Sphinx.

Run from the repository's root by ``make book``. The checkout stays clean: everything happens
under ``_build/``. Nothing is done again while its inputs are unchanged.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import altair
import nbformat
import vl_convert
import yaml
from bs4 import BeautifulSoup

from twohop_lib import records
from twohop_lib.chapter.pages import bookify, glued, literal, small_pictures
from twohop_lib.errors import TwohopError
from twohop_lib.figures import theme
from twohop_lib.grafts import shipped
from twohop_lib.rerun.execute import execute, inputs_hash

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "twohop_lib"
VALUE = re.compile(r"\{\{\s*(\w+)\.(\w+)\s*\}\}")
#: Chapters that take longest.
LONGEST = ("attention_knockout", "cross_patching")
#: Width in pixels of charts drawn for readers without JavaScript.
STILL_WIDTH = 620
#: Scripts of Thebe (live code, from a network), which the theme adds twice, asked or not.
THEBE = re.compile(r"<script[^>]*>[^<]*THEBE_JS_URL[^<]*</script>|<script[^>]*thebe[^>]*></script>")
#: Characters in a text that may be wrapped.
LONG = 24
#: What stands in a column of numbers.
NUMBER = re.compile(r"\s*(?:[-−+]?[\d.,]+(?:e[-+]?\d+)?\s?%?|[-–—]|nan|NaN|None|True|False)?\s*")


def repository(root: Path) -> str:
    """The project's public address: the one place is pyproject.toml."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["project"]["urls"]["Repository"]


def chapters(root: Path) -> list[Path]:
    """The chapters of the table of contents, in order."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    files = [c["file"] for part in toc["parts"] for c in part["chapters"]]
    return [root / f"{f}.py" for f in files if f.startswith("chapters/")]


def run_chapters(root: Path) -> dict[str, Path]:
    """Execute all chapters that are not current, two at a time; returns name → notebook.

    The longest start first, so that no processor waits for the other in the end.
    """
    # Grafts that are here are run, others are shown as they were recorded.
    environment = inputs_hash([LIBRARY, root / "requirements.lock"]) + str(shipped.here())

    def run(source: Path) -> Path:
        out = root / "_build" / "executed" / f"{source.stem}.ipynb"
        started = time.perf_counter()
        ran = execute(source, out, environment=environment, say=say)
        took = f"executed in {time.perf_counter() - started:.0f} s" if ran else "unchanged"
        say(f"chapter {source.stem}: {took}")
        return out

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sources = chapters(root)
    with ThreadPoolExecutor(2) as pool:
        futures = {
            source.stem: pool.submit(run, source)
            for source in sorted(sources, key=lambda source: source.stem not in LONGEST)
        }
    failures = [error for future in futures.values() if (error := future.exception())]
    for error in failures:
        if not isinstance(error, TwohopError):
            raise error
    if failures:
        raise TwohopError("\n       ".join(map(str, failures)))
    return {source.stem: futures[source.stem].result() for source in sources}


def say(line: str) -> None:
    """Print a line of progress at once, and whole: two chapters run side by side."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(
        "| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]
    )


def rehearsed(results: Path) -> dict[str, str]:
    """What pages say of the families that were rehearsed, and of Colab, from recorded results."""
    families = json.loads((results / "families.json").read_text(encoding="utf-8"))
    colab = json.loads((results / "colab.json").read_text(encoding="utf-8"))
    rows = []
    for name, of in families.items():
        wrong = [*of["failed"], *of["unlike_a_session"]]
        refused = [f"{chapter} ({why})" for chapter, why in of["refused"].items()]
        verdict = f"{len(of['ran'])} of {len(of['ran']) + len(of['refused'])} chapters"
        told = "; ".join([*wrong, *refused]) or "–"
        rows.append([name, f"`{of['class']}`", verdict, told, str(of["seconds"])])
    held = [f"{name} {of['image']}: {of['left']}" for name, of in colab["held"].items()]
    return {
        "families": table(["family", "class", "runs", "refused, and why", "seconds"], rows),
        "colab": f"{', '.join(held)} on {colab['date']}",
    }


def title(notebook: nbformat.NotebookNode) -> str:
    """The first heading of a chapter."""
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    return next(line[2:].strip() for line in text.splitlines() if line.startswith("# "))


def fill(page: str, values: dict[str, dict[str, str]], where: str) -> str:
    """Put glued values into a prose page: ``{{ chapter.name }}``.

    Raises:
        TwohopError: the page asks for a value that no chapter glued.
    """

    def value(match: re.Match[str]) -> str:
        chapter, name = match.groups()
        try:
            return values[chapter][name]
        except KeyError:
            raise TwohopError(f"{where} asks for {chapter}.{name}, which was not glued.") from None

    return VALUE.sub(value, page)


def still(spec: dict[str, Any]) -> str:
    """A chart's specification drawn as SVG, for readers without JavaScript."""
    fixed = theme.fixed(spec, STILL_WIDTH)
    try:
        return vl_convert.vegalite_to_svg(fixed, vl_version=vega_lite())
    except ValueError as error:
        what = spec.get("description", "without a description")
        raise TwohopError(f"A figure cannot be drawn: {what} ({error})") from error


def vega_lite() -> str:
    """The version of Vega-Lite that Altair's charts are written for, such as ``6.4``."""
    return ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def stage_scripts(static: Path) -> None:
    """Lay the two scripts that pages need beside the styles: Vega for charts, MathJax for maths."""
    bundle = vl_convert.javascript_bundle(vl_version=vega_lite())
    # A function of its own keeps the bundle's names out of the way of the theme's.
    (static / "vega.js").write_text(f"(function(){{{bundle}}})();", encoding="utf-8")
    files = importlib.metadata.files("sphinx-mathjax-offline") or []
    mathjax = next(f for f in files if f.name == "tex-svg.js")
    shutil.copy(mathjax.locate(), static / "mathjax.js")


def mark_texts(notebook: Any) -> None:
    """Give columns of texts in a notebook's tables a class: they stand left, long ones wrap."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            page = output.get("data", {}).get("text/html", "")
            if "<table" in page:
                output["data"]["text/html"] = _texts_marked(page)


def _texts_marked(page: str) -> str:
    soup = BeautifulSoup(page, "html.parser")
    for table in soup("table"):
        rows = [row(["th", "td"]) for row in table("tr")]
        width = max(map(len, rows), default=0)
        # A cell over several columns or rows shifts the others: such a row is left alone.
        even = [
            row
            for row in rows
            if len(row) == width and not any(c.get("colspan") or c.get("rowspan") for c in row)
        ]
        for column in zip(*even, strict=True):
            cells = [c.get_text() for c in column if c.name == "td"]
            if not all(map(NUMBER.fullmatch, cells)):
                kind = "long text" if max(map(len, cells)) > LONG else "text"
                for c in column:
                    c["class"] = [*c.get("class", []), kind]
    return str(soup)


def stage(root: Path, executed: dict[str, Path]) -> Path:
    """Lay out what Sphinx reads: config, prose with values filled in, executed chapters."""
    out = root / "_build" / "stage"
    shutil.rmtree(out, ignore_errors=True)
    (out / "chapters").mkdir(parents=True)
    shutil.copytree(root / "book", out / "book", ignore=shutil.ignore_patterns("*.py"))
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    config["repository"]["url"] = repository(root)
    (out / "_config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    shutil.copy(root / "_toc.yml", out)
    stage_scripts(out / "book" / "_static")
    values: dict[str, dict[str, str]] = {"project": {"repository": repository(root)}}
    times = []
    for name, path in executed.items():
        notebook = nbformat.read(path, as_version=4)
        values[name] = {key: literal(value) for key, value in glued(notebook).items()}
        values[name] |= small_pictures(notebook)
        seconds = notebook.metadata["twohop"]["seconds"]
        times.append([f"[{title(notebook)}](../chapters/{name})", f"{seconds:.0f}"])
        mark_texts(bookify(notebook, still))
        nbformat.write(notebook, out / "chapters" / f"{name}.ipynb")
    values["status"] = {
        "chapters": table(["chapter", "seconds on this machine"], times),
        "versions": table(["package", "version"], [list(kv) for kv in records.versions().items()]),
    }
    values["rehearsed"] = rehearsed(root / "benchmarks" / "results")
    for page in (out / "book").glob("*.md"):
        text = fill(page.read_text(encoding="utf-8"), values, f"book/{page.name}")
        page.write_text(text, encoding="utf-8")
    return out


def render(staged: Path, root: Path) -> None:
    """Render the staged book into ``_build/html``; warnings are errors."""
    # A venv need not be activated for its own jupyter-book to be found.
    command = [str(Path(sys.executable).parent / "jupyter-book"), "build", str(staged)]
    command += ["--path-output", str(root), "-n", "-W", "--keep-going", "-q"]
    log = root / "_build" / "sphinx.log"
    with log.open("w", encoding="utf-8") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT)
    if done.returncode:
        lines = log.read_text(encoding="utf-8").splitlines()
        shown = [ln for ln in lines if "WARNING" in ln or "ERROR" in ln] or lines
        raise TwohopError(
            "\n".join([f"rendering the book failed (whole log: {log}):", *shown[-20:]])
        )
    for page in (root / "_build" / "html").rglob("*.html"):
        page.write_text(THEBE.sub("", page.read_text(encoding="utf-8")), encoding="utf-8")


def build(root: Path) -> Path:
    """Execute, stage and render what has changed; returns the book's first page.

    Raises:
        TwohopError: a chapter failed, a page asks for an unknown value, or Sphinx warned.
    """
    executed = run_chapters(root)  # their keys hold the library, too
    inputs = [
        "book",
        "benchmarks/results",
        "_config.yml",
        "_toc.yml",
        "pyproject.toml",
        "requirements.lock",
    ]
    key = inputs_hash([*(root / name for name in inputs), *executed.values()])
    made = root / "_build"
    stamp, index = made / "html.key", made / "html" / "index.html"
    if stamp.exists() and stamp.read_text() == key and index.exists():
        return index
    stamp.unlink(missing_ok=True)
    for old in ("html", ".doctrees"):
        shutil.rmtree(made / old, ignore_errors=True)
    staged = stage(root, executed)
    say("rendering")
    render(staged, root)
    stamp.write_text(key)
    return index


if __name__ == "__main__":
    try:
        say(f"the book: {build(ROOT)}")
    except TwohopError as error:
        sys.exit(f"error: {error}")

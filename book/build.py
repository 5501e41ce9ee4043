"""Build the book: execute the chapters, stage, render with Sphinx.

Run from the repository's root by ``make book``. The checkout stays clean: everything happens
under ``_build/``. Nothing is done again while its inputs are unchanged.
"""

from __future__ import annotations

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

import nbformat
import vl_convert
import yaml

from twohop_lib.errors import TwohopError
from twohop_lib.nb import bookify, glued
from twohop_lib.rerun import execute, inputs_hash

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "_build"
STAGE, EXECUTED, HTML = BUILD / "stage", BUILD / "executed", BUILD / "html"
LOCK = ROOT / "requirements.lock"
THEBE = re.compile(r"<script[^>]*>[^<]*THEBE_JS_URL[^<]*</script>|<script[^>]*thebe[^>]*></script>")
HEADLINE = re.compile(r"\{\{\s*(\w+)\.(\w+)\s*\}\}")


def repository() -> str:
    """The project's public address: the one place is pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def chapters() -> list[Path]:
    """The chapters of the table of contents, in order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = [c["file"] for part in toc["parts"] for c in part["chapters"]]
    return [ROOT / f"{f}.py" for f in files if f.startswith("chapters/")]


def run_chapters() -> dict[str, Path]:
    """Execute all chapters that are not current, two at a time; returns name → notebook."""
    library = inputs_hash([ROOT / "twohop_lib", LOCK])

    def run(source: Path) -> tuple[str, Path]:
        out = EXECUTED / f"{source.stem}.ipynb"
        started = time.perf_counter()
        ran = execute(source, out, key=inputs_hash([source]) + library)
        took = f"executed in {time.perf_counter() - started:.0f} s" if ran else "unchanged"
        print(f"chapter {source.stem}: {took}", flush=True)
        return source.stem, out

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(run, source) for source in chapters()]
    failures = [f.exception() for f in futures if f.exception()]
    if failures:
        raise TwohopError("\n       ".join(str(f) for f in failures))
    return dict(f.result() for f in futures)


def status_table(executed: dict[str, Path]) -> str:
    """The chapters and how long each took, as a Markdown table."""
    rows = ["| chapter | seconds on this machine |", "|---|---|"]
    for name, notebook in executed.items():
        seconds = json.loads(notebook.read_text())["metadata"]["twohop"]["seconds"]
        title = name.replace("_", " ").capitalize()
        rows.append(f"| [{title}](../chapters/{name}) | {seconds:.0f} |")
    return "\n".join(rows)


def versions_table() -> str:
    """What the chapters ran with, as a Markdown table."""
    from twohop_lib.records import versions

    rows = [f"| {name} | {version} |" for name, version in versions().items()]
    return "\n".join(["| package | version |", "|---|---|", *rows])


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

    return HEADLINE.sub(value, page)


def stage(executed: dict[str, Path]) -> None:
    """Lay out what Sphinx reads: config, prose with values filled in, executed chapters."""
    shutil.rmtree(STAGE, ignore_errors=True)
    (STAGE / "chapters").mkdir(parents=True)
    shutil.copytree(ROOT / "book", STAGE / "book", ignore=shutil.ignore_patterns("*.py"))
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    config["repository"]["url"] = repository()
    (STAGE / "_config.yml").write_text(yaml.safe_dump(config))
    shutil.copy(ROOT / "_toc.yml", STAGE)
    # A function of its own keeps the bundle's names out of the way of the theme's.
    bundle = f"(function(){{{vl_convert.javascript_bundle()}}})();"
    (STAGE / "book" / "_static" / "vega.js").write_text(bundle, encoding="utf-8")
    values: dict[str, dict[str, str]] = {}
    for name, notebook in executed.items():
        loaded = nbformat.read(notebook, as_version=4)
        values[name] = glued(loaded)
        nbformat.write(bookify(loaded), STAGE / "chapters" / f"{name}.ipynb")
    values["status"] = {"chapters": status_table(executed), "versions": versions_table()}
    values["project"] = {"repository": repository()}
    for page in (STAGE / "book").glob("*.md"):
        page.write_text(fill(page.read_text(), values, f"book/{page.name}"))


def render() -> None:
    """Render the staged book; warnings are errors."""
    command = ["jupyter-book", "build", str(STAGE), "--path-output", str(ROOT)]
    command += ["-n", "-W", "--keep-going", "-q"]
    # A venv need not be activated for its own jupyter-book to be found.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    log = BUILD / "sphinx.log"
    with log.open("w") as out:
        done = subprocess.run(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "PATH": path}
        )
    if done.returncode:
        lines = [ln for ln in log.read_text().splitlines() if "WARNING" in ln or "ERROR" in ln]
        shown = "\n".join(lines[-20:] or log.read_text().splitlines()[-20:])
        raise TwohopError(f"rendering the book failed (whole log: {log}):\n{shown}")


def drop_thebe() -> None:
    """Take out the scripts of Thebe (live code from a network), which the theme adds twice."""
    for page in HTML.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        page.write_text(THEBE.sub("", text), encoding="utf-8")


def main() -> None:
    """Execute, stage and render; a second run with nothing changed does none of it."""
    executed = run_chapters()
    inputs = [ROOT / "book", ROOT / "_config.yml", ROOT / "_toc.yml", ROOT / "pyproject.toml"]
    key = inputs_hash([*inputs, EXECUTED, ROOT / "twohop_lib" / "nb.py"])
    stamp = BUILD / "html.key"
    if not (stamp.exists() and stamp.read_text() == key and (HTML / "index.html").exists()):
        stamp.unlink(missing_ok=True)
        shutil.rmtree(HTML, ignore_errors=True)
        shutil.rmtree(BUILD / ".doctrees", ignore_errors=True)
        stage(executed)
        print("rendering", flush=True)
        render()
        drop_thebe()
        stamp.write_text(key)
    print(f"the book: {HTML / 'index.html'}")


if __name__ == "__main__":
    try:
        main()
    except TwohopError as error:
        sys.exit(f"error: {error}")

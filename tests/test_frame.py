"""The frame around the book: addresses, versions and file lists that must agree."""

import json
import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import jupytext
import pytest
import yaml
from cffconvert import Citation

import twohop_lib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
CHAPTERS = sorted(p for p in (ROOT / "chapters").iterdir() if p.suffix in (".py", ".ipynb"))


@cache
def tracked_texts() -> dict[str, str]:
    """Path → contents of every tracked text file."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing is tracked")
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    texts = {}
    for name in filter(None, listed.split("\0")):
        if not (ROOT / name).is_file():
            continue
        data = (ROOT / name).read_bytes()
        if b"\0" not in data:
            texts[name] = data.decode("utf-8", errors="replace")
    return texts


def cells(chapter: Path) -> list[tuple[str, list[str]]]:
    """Source and tags of every cell of a chapter's script or of its twin."""
    if chapter.suffix == ".py":
        found = jupytext.read(chapter).cells
    else:
        found = json.loads(chapter.read_text(encoding="utf-8"))["cells"]
    return [("".join(c["source"]), c["metadata"].get("tags", [])) for c in found]


def test_citation_is_valid_and_agrees_with_the_package():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    Citation(text).validate()
    citation = yaml.safe_load(text)
    assert citation["repository-code"] == REPOSITORY
    assert str(citation["version"]) == twohop_lib.__version__
    assert citation["license"] == PROJECT["license"]


def test_a_wrong_citation_does_not_validate():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    with pytest.raises(Exception, match="title"):
        Citation(text.replace("title:", "titel:")).validate()


def test_there_are_chapters():
    assert {p.suffix for p in CHAPTERS} == {".py", ".ipynb"}


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda p: p.name)
def test_a_chapter_installs_from_the_repository_in_one_removed_cell_only(chapter):
    address = REPOSITORY.split("://")[1]
    naming = [(s, tags) for s, tags in cells(chapter) if "%pip" in s or "git+" in s or address in s]
    assert len(naming) == 1
    source, tags = naming[0]
    assert "remove-cell" in tags
    assert re.findall(r'%pip install -q "twohop @ git\+([^\s"]+)"', source) == [REPOSITORY]
    assert source.count(address) == 1


def test_the_address_stands_nowhere_else():
    allowed = {"pyproject.toml", "CITATION.cff"}
    allowed |= {p.relative_to(ROOT).as_posix() for p in CHAPTERS}
    address = REPOSITORY.split("://")[1]
    naming = {name for name, text in tracked_texts().items() if address in text}
    assert naming <= allowed


def test_nothing_tracked_mentions_what_lies_outside():
    # A path, not an attribute such as ``records.library_hash``; written so as not to find itself.
    outside = re.compile(r"[.]{2}/shared|(?<!\w)[.]library")
    naming = [name for name, text in tracked_texts().items() if outside.search(text)]
    assert naming == []


def test_ci_builds_the_book_and_then_tests():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    made = [line.strip() for line in lines if line.strip().startswith("make")]
    assert made == ["make book", "make test"]
    assert "set -euo pipefail" in lines


def test_the_table_of_contents_lists_files_that_exist():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = [toc["root"]] + [c["file"] for part in toc["parts"] for c in part["chapters"]]
    suffix = {"chapters": ".py", "book": ".md"}
    files = [f"{name}{suffix[name.split('/')[0]]}" for name in listed]
    assert [name for name in files if not (ROOT / name).is_file()] == []
    scripts = {p.relative_to(ROOT).as_posix() for p in CHAPTERS if p.suffix == ".py"}
    assert scripts == {name for name in files if name.startswith("chapters/")}


def test_python_range_is_the_same_everywhere():
    needed = PROJECT["requires-python"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    pins = [d for d in environment["dependencies"] if isinstance(d, str) and d.startswith("python")]
    assert pins == [f"python{needed}"]
    low, high = (tuple(map(int, v.split("."))) for v in re.findall(r"\d+\.\d+", needed))
    assert f"{low} <= v < {high}" in (ROOT / "Makefile").read_text(encoding="utf-8")

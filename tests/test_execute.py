"""Executing chapters: parameters checked, failures told, nothing done twice, twins in step."""

from __future__ import annotations

import json
from pathlib import Path

import jupytext
import nbformat
import pytest

from twohop_lib.errors import TwohopError
from twohop_lib.rerun import execute as executing
from twohop_lib.rerun.execute import execute, inputs_hash, is_current, run_key, to_notebook, twin

CHAPTERS = Path(__file__).resolve().parents[1] / "chapters"
HEADER = """# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # A chapter
# One and one is {glue:text}`two`.

# %% tags=["parameters"]
wording = "standard"
limit = 1

"""


@pytest.fixture
def chapter(tmp_path):
    def write(body: str) -> Path:
        source = tmp_path / "a_chapter.py"
        source.write_text(HEADER + body)
        return source

    return write


@pytest.fixture
def no_kernel(monkeypatch):
    def started(*args, **kwargs):
        raise AssertionError("a kernel was started")

    monkeypatch.setattr(executing.papermill, "execute_notebook", started)


def test_an_unknown_parameter_is_told_before_anything_runs(chapter, tmp_path, no_kernel):
    with pytest.raises(
        TwohopError,
        match=r"Chapter a_chapter has no parameter 'wordin'; did you mean 'wording'\? "
        r"\(known: wording, limit\)",
    ):
        execute(chapter(""), tmp_path / "out" / "x.ipynb", {"wordin": "x"}, environment="e")
    assert not (tmp_path / "out").exists()


def test_a_chapter_that_is_not_there_is_told(tmp_path, no_kernel):
    with pytest.raises(TwohopError, match=r"no chapter at .*none\.py"):
        execute(tmp_path / "none.py", tmp_path / "x.ipynb", environment="e")


def test_a_chapter_runs_with_its_parameters_and_only_once(chapter, tmp_path, monkeypatch):
    body = "# %%\nopen('runs.txt', 'a').write('x')\nprint(wording, limit + 1)\n"
    source = chapter(body)
    out = tmp_path / "out" / "x.ipynb"
    failed = out.parent / "x.failed.ipynb"
    out.parent.mkdir()
    failed.write_text("of an earlier run")
    here = Path.cwd()
    assert execute(source, out, {"wording": "other"}, environment="e1")
    assert Path.cwd() == here
    assert (out.parent / "runs.txt").read_text() == "x"  # it runs beside its notebook
    done = nbformat.read(out, as_version=4)
    nbformat.validate(done)
    assert [o.text for c in done.cells for o in c.get("outputs", ())] == ["other 2\n"]
    about = done.metadata["twohop"]
    assert about["parameters"] == {"wording": "other"} and about["seconds"] > 0
    assert about["key"] == run_key(source, "e1", {"wording": "other"})
    assert sorted(p.name for p in out.parent.iterdir()) == ["runs.txt", "x.ipynb"]

    ran = []
    monkeypatch.setattr(
        executing.papermill,
        "execute_notebook",
        lambda *a, **k: ran.append(a[2]) or to_notebook(source),
    )
    before = out.read_bytes()
    assert not execute(source, out, {"wording": "other"}, environment="e1")
    assert (ran, out.read_bytes()) == ([], before)
    assert execute(source, out, {"wording": "other"}, environment="e2")
    assert execute(source, out, {"wording": "more"}, environment="e2")
    assert not execute(source, out, {"wording": "more"}, environment="e2")
    chapter(body + "1\n")
    assert execute(source, out, {"wording": "more"}, environment="e2")
    assert ran == [{"wording": w} for w in ("other", "more", "more")]


def test_the_key_holds_all_that_determines_the_outputs(chapter, monkeypatch):
    source = chapter("")
    keys = [run_key(source, "e", {}), run_key(source, "f", {}), run_key(source, "e", {"limit": 1})]
    keys.append(run_key(source, "e", {"limit": "1"}))
    monkeypatch.setattr(executing.platform, "python_version", lambda: "2.7")
    keys.append(run_key(source, "e", {}))
    chapter("1")
    keys.append(run_key(source, "e", {}))
    assert len(set(keys)) == len(keys)
    both = {"wording": "x", "limit": 2}
    assert run_key(source, "e", both) == run_key(source, "e", dict(reversed(both.items())))


@pytest.mark.parametrize(
    ("line", "told", "parameters", "timeout"),
    [
        ("broken = {}['nothing']", "KeyError: 'nothing'", {}, None),
        ("broken = [][limit]", "IndexError: list index out of range", {"limit": 3}, None),
        ("import os; os._exit(1)", "the kernel died; perhaps there was not enough memory", {}, 60),
        ("import time; time.sleep(30)", "it took longer than 2 s", {}, 2),
    ],
)
def test_a_cell_that_fails_is_told_and_the_notebook_kept(
    chapter, tmp_path, line, told, parameters, timeout
):
    source = chapter(f"# %%\nprint('so far')\n\n# %%\n\n{line}\nafter = 1\n")
    out = tmp_path / "out" / "x.ipynb"
    with pytest.raises(TwohopError) as caught:
        execute(source, out, parameters, environment="e", cell_timeout=timeout)
    failed = out.parent / "x.failed.ipynb"
    assert str(caught.value) == (
        f"Chapter a_chapter failed in cell 4 ({line!r}): {told}; the notebook so far is {failed}."
    )
    assert list(out.parent.iterdir()) == [failed]
    cells = [c for c in json.loads(failed.read_text())["cells"] if c["cell_type"] == "code"]
    assert "so far\n" in "".join("".join(o.get("text", "")) for c in cells for o in c["outputs"])


def test_progress_is_told_ten_times_at_most(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(executing.time, "monotonic", lambda: now[0])
    said = []
    progress = executing._Progress("gap", 300, said.append)
    for index in range(300):
        now[0] += 7
        progress.ends(index)
    assert len(said) == 9 and said[0] == "chapter gap: cell 30 of 300, 210 s"
    quick, said[:] = executing._Progress("gap", 300, said.append), []
    for index in range(300):
        quick.ends(index)
    assert said == []


def test_what_is_damaged_is_not_current(tmp_path):
    file = tmp_path / "x.ipynb"
    assert not is_current(file, "k")
    for text in ("", "{", "{}", '{"metadata": {}}', '{"metadata": {"twohop": {"key": "other"}}}'):
        file.write_text(text)
        assert not is_current(file, "k")
    file.write_text('{"metadata": {"twohop": {"key": "k"}}}')
    assert is_current(file, "k")


def test_the_inputs_hash_covers_names_and_bytes(tmp_path):
    folder = tmp_path / "lib"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.py").write_text("1")
    (folder / "sub" / "b.py").write_text("2")
    first = inputs_hash([folder])
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.pyc").write_text("x")
    assert inputs_hash([folder]) == first
    (folder / "sub" / "b.py").write_text("3")
    changed = inputs_hash([folder])
    (folder / "sub" / "b.py").rename(folder / "sub" / "c.py")
    renamed = inputs_hash([folder])
    assert len({first, changed, renamed, inputs_hash([folder, folder / "a.py"])}) == 4
    with pytest.raises(TwohopError, match="nb.py is not there"):
        inputs_hash([folder, folder / "nb.py"])


# --- twins ---


def test_a_twin_holds_no_outputs_and_plain_markdown(chapter):
    source = chapter("# %%\n1 + 1\n")
    made = nbformat.reads(twin(source), as_version=4)
    nbformat.validate(made)
    assert twin(source) == twin(source)
    assert [c.cell_type for c in made.cells] == ["markdown", "code", "code"]
    assert made.cells[0].source == f"# A chapter\nOne and one is ….\n\n{executing.PENDING}"
    for cell in made.cells[1:]:
        assert (cell.outputs, cell.execution_count) == ([], None)
    assert set(made.metadata) == {"kernelspec", "language_info"}


SOURCES = sorted(CHAPTERS.glob("*.py"))


def test_there_are_chapters_and_no_twin_without_one():
    assert len(SOURCES) >= 3
    assert {p.stem for p in CHAPTERS.glob("*.ipynb")} == {p.stem for p in SOURCES}


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_the_twin_beside_a_chapter_is_the_one_it_would_get(source):
    beside = source.with_suffix(".ipynb")
    assert beside.exists(), "run: make notebooks"
    assert beside.read_text(encoding="utf-8") == twin(source), "run: make notebooks"
    code = [c.source for c in jupytext.read(source).cells if c.cell_type == "code"]
    notebook = json.loads(beside.read_text())
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert ["".join(c["source"]) for c in cells] == code
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in cells)

"""The grafts in a chapter: live, as recorded, or not at all; and fetching their language model."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from helpers_graft import TINY, tiny_llm
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from twohop_lib import records
from twohop_lib.benchmark import sources
from twohop_lib.chapter import published
from twohop_lib.chapter.published import open_grafts
from twohop_lib.commands.graft import graft_app
from twohop_lib.errors import TwohopError
from twohop_lib.grafts import language, shipped, train
from twohop_lib.grafts.documents import half
from twohop_lib.rerun import execute, record

ROOT = Path(__file__).resolve().parents[1]
CHAPTER = """# %% [markdown]
# # Demo

# %% tags=["parameters"]
vlm = ""
grafts = ["caption", "names"]

# %% tags=["grafts"]
from twohop_lib.chapter.published import open_grafts
published = open_grafts("demo", grafts, bool(vlm), 4)
named = published.frame("named", lambda study: study.ask("identify"))

# %% [markdown] tags=["grafts"]
# ## On a published language model

# %%
print("done")
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A cache with two tiny grafts of seed 0 in it."""
    root = tmp_path_factory.mktemp("world")
    flags = sources.build("flags", root / "flags", distinct=True).some(12)
    llm = tiny_llm(root / "llm" / "tiny")
    # As a conversion lies on disk, so that a graft's text stack is the very same.
    kept = {k: v.bfloat16() for k, v in load_file(llm / "model.safetensors").items()}
    save_file(kept, llm / "model.safetensors", metadata={"format": "pt"})
    for name in ("caption", "names"):
        out = root / "cache" / "grafts" / "seed0" / name
        train.train(name, TINY[name], flags, llm, 0, out, root / "work", False)
    return root


#: The flags are drawn once.
asked_once = functools.cache(published.graft_questions)


@pytest.fixture
def cache(world, monkeypatch, tmp_path):
    """That cache in use, recordings in an empty folder, and no language model to be fetched."""
    monkeypatch.setenv("TWOHOP_CACHE", str(world / "cache"))
    monkeypatch.setenv(language.NO_FETCH, "1")
    monkeypatch.setattr(published, "RECORDED", tmp_path / "pages")
    monkeypatch.setattr(shipped, "ADAPTERS", tmp_path / "adapters")
    monkeypatch.setattr(published, "graft_questions", asked_once)
    return world / "cache"


@pytest.fixture
def recorded(cache, tmp_path, monkeypatch):
    """A recording of a live page, and a machine without the grafts."""
    with monkeypatch.context() as patch:
        patch.setenv(published.RECORD_TO, str(tmp_path / "pages"))
        live = open_grafts("demo", ["caption", "names"], entities=4)
        live.frame("named", lambda study: study.ask("identify"))
    monkeypatch.setenv("TWOHOP_CACHE", str(tmp_path / "empty"))
    return live


def test_grafts_that_are_here_are_run_on_this_page(cache, capsys):
    opened = open_grafts("demo", ["caption", "names"], entities=4)
    assert opened and opened.study.models == ["caption", "names"]
    assert opened.words == "measured on this page"
    assert opened.too == "and on grafts of Gemma 3 270M"
    assert "grafts of Gemma 3 270M caption, names, measured on" in capsys.readouterr().out
    assert opened.frame("any", lambda study: study) is opened.study
    assert opened.title("All turn.") == "Grafts of Gemma 3 270M: all turn."
    assert opened.caption("Turned.").endswith("Grafts of Gemma 3 270M, measured on this page.")


def test_facts_are_those_that_the_language_model_gives_by_name(cache, monkeypatch):
    true = published.evaluate

    def half_right(*args, **options):
        answers = true(*args, **options)
        return answers.assign(correct=[i % 2 == 0 for i in range(len(answers))])

    monkeypatch.setattr(published, "evaluate", half_right)
    opened = open_grafts("demo", ["caption"], entities=4)
    every = [q.question_id for q in published.graft_questions(0).some(4).questions]
    assert [q.question_id for q in opened.study.questions.questions] == every[::2]
    assert len(opened.by_name) == len(every)


def test_the_one_language_model_is_in_memory_once_and_asked_once(cache, monkeypatch):
    study = open_grafts("demo", ["caption", "names"], entities=2).study
    one, other = study.pairs.values()
    assert one.llm is other.llm
    weights = [
        {p.data_ptr() for p in published.text_stack(model).parameters()}
        for model in (one.vlm.model, other.vlm.model, one.llm.model)
    ]
    assert weights[0] == weights[1] == weights[2]
    asked = []
    true = published.Study.ask.__globals__["evaluate"]

    def counted(*args, **options):
        asked.append((options["model_name"], options["conditions"]))
        return true(*args, **options)

    monkeypatch.setitem(published.Study.ask.__globals__, "evaluate", counted)
    study._answers.clear()
    answers = study.ask("llm_by_name")  # by the language model that they share: once
    assert asked == [("caption", ["llm_by_name"])]
    said = answers.groupby("model")["answer"].apply(list)
    assert said["caption"] == said["names"]


def test_a_page_without_the_language_model_shows_what_was_recorded(recorded, capsys):
    shown = open_grafts("demo", ["caption", "names"], entities=4)
    assert shown and "recorded on" in shown.words and "by twohop graft record" in shown.words
    assert shown.too.startswith("(those on grafts of Gemma 3 270M were recorded on")
    out = capsys.readouterr().out
    assert "graft 'caption' of seed 0 is not on this machine" in out and "recorded on" in out
    again = shown.frame("named", lambda study: pytest.fail("computed"))
    pd.testing.assert_frame_equal(again, recorded.study.ask("identify"), check_dtype=False)
    # What was answered is known to the study, though its models are not here.
    assert shown.study.recognised("names") == recorded.study.recognised("names")
    assert shown.study.among() == recorded.study.among()
    only = open_grafts("demo", ["names"], entities=4)
    assert set(only.frame("named", lambda study: None)["model"]) == {"names"}
    with pytest.raises(TwohopError, match="'other' of chapter demo was not recorded"):
        shown.frame("other", lambda study: None)


def test_what_is_recorded_says_how(recorded, tmp_path):
    meta = records.read_meta(tmp_path / "pages" / "demo-named.parquet")
    assert meta["command"] == "twohop graft record" and meta["entities"] == 4
    assert meta["seed"] == 0 and "torch" in meta["versions"] and len(meta["date"]) == 10


def test_a_page_without_frames_of_its_own_is_recorded_as_it_is_opened(cache, tmp_path, monkeypatch):
    monkeypatch.setenv(published.RECORD_TO, str(tmp_path / "pages"))
    live = open_grafts("demo", ["caption"], entities=4)
    monkeypatch.setenv("TWOHOP_CACHE", str(tmp_path / "empty"))
    shown = open_grafts("demo", ["caption"], entities=4)
    assert shown.recorded
    pd.testing.assert_frame_equal(shown.by_name, live.by_name, check_dtype=False)


def test_what_a_page_says_of_the_grafts_is_glued_or_said_not_to_be_measured(cache, monkeypatch):
    glued = {}
    monkeypatch.setattr(published, "glue_all", glued.update)
    published.Published(None, "none were asked for").glue(gap=lambda: 1 / 0)
    assert glued["grafts_gap"] == "nothing was measured here"
    assert glued["grafts_words"] == "none were asked for" and "(there are no" in glued["grafts_too"]
    opened = open_grafts("demo", ["caption"], entities=2)
    opened.glue(gap=lambda: "3 of 4")
    assert glued["grafts_gap"] == "3 of 4" and glued["grafts_words"] == "measured on this page"
    assert glued["grafts_answers_cut"] == opened.answers_cut


def test_neither_here_nor_recorded_is_told_and_is_no_failure(cache, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TWOHOP_CACHE", str(tmp_path / "empty"))
    opened = open_grafts("demo", ["caption"], entities=4)
    assert not opened and "neither" in opened.words
    assert opened.too.startswith("(there are no grafts of Gemma 3 270M: neither")
    assert "No grafts of Gemma 3 270M: neither" in capsys.readouterr().out
    with pytest.raises(TwohopError, match="no grafts to show"):
        opened.frame("named", lambda study: None)
    with pytest.raises(TwohopError, match="records its own 'answers'"):
        opened.frame("answers", lambda study: None)


def test_a_graft_that_is_not_here_is_told_and_the_others_are_shown(cache, capsys):
    opened = open_grafts("demo", ["facts", "names"], entities=2)
    assert opened.study.models == ["names"]
    assert "graft 'facts' of seed 0 is not on this machine" in capsys.readouterr().out


def test_a_page_on_a_given_model_or_on_no_graft_has_none(cache, capsys):
    assert not open_grafts("demo", ["caption"], given=True)
    assert not open_grafts("demo", [])
    assert capsys.readouterr().out == ""
    with pytest.raises(TwohopError, match="no graft is called 'captoin'"):
        open_grafts("demo", ["captoin"])


def test_grafts_are_asked_about_countries_that_no_recipe_was_asked_facts_about():
    every = published.graft_questions(0)
    some = published.graft_questions(0).some(12)
    flags = sources.material("flags", distinct=True).questions
    order = list(dict.fromkeys(q.entity_id for q in flags))
    assert set(every.entities()) == set(order) - half(order, 0)
    assert some.entities()[0] == "JP" and len(some.entities()) == 12
    assert set(some.entities()) < set(every.entities())
    assert {q.wording for q in every.questions} == {"standard"}


# --- reruns and the record ---


def test_a_rerun_and_a_page_without_grafts_skip_their_cells(tmp_path):
    source = tmp_path / "demo.py"
    source.write_text(CHAPTER)

    def cells(parameters):
        notebook = execute.to_notebook(source)
        execute.without(notebook, *execute.left_out(parameters))
        return "\n".join(c.source for c in notebook.cells)

    assert "open_grafts" in cells({}) and "## On a published" in cells({"grafts": ["names"]})
    for parameters in ({"vlm": "some/model"}, {"grafts": []}):
        kept = cells(parameters)
        assert "open_grafts" not in kept and "## On a" not in kept and 'print("done")' in kept
    out = tmp_path / "executed" / "demo.ipynb"
    execute.execute(source, out, {"vlm": "some/model"}, environment="x")
    assert "done" in str(nbformat.read(out, as_version=4).cells[-1].outputs)


def test_recording_runs_the_chapters_own_cells(cache, tmp_path, monkeypatch):
    folder = tmp_path / "chapters"
    folder.mkdir()
    # Of a seed that no adapter ships of: the chapter's own process finds those that do.
    shutil.copytree(cache / "grafts" / "seed0", cache / "grafts" / "seed7")
    (folder / "demo.py").write_text(CHAPTER.replace("bool(vlm), 4)", "bool(vlm), 4, 7)"))
    (folder / "other.py").write_text('# %% tags=["parameters"]\nvlm = ""\n')
    monkeypatch.setattr(record, "chapters_folder", lambda: folder)
    record.record([], tmp_path / "pages", say=lambda line: None)
    made = {f.name for f in (tmp_path / "pages").iterdir()}
    assert made == {f"demo-{name}.parquet" for name in ("named", "answers", "by-name")}
    with pytest.raises(TwohopError, match="No chapter 'other' shows grafts"):
        record.record(["other"], tmp_path / "pages")
    monkeypatch.setenv("TWOHOP_CACHE", str(tmp_path / "empty"))
    with pytest.raises(TwohopError, match="not on this machine"):
        record.record(["demo"], tmp_path / "pages")


# --- fetching ---


def test_fetching_that_fails_is_one_sentence_and_no_failure(cache, monkeypatch):
    monkeypatch.delenv(language.NO_FETCH)
    monkeypatch.setattr(language.shutil, "disk_usage", lambda _: type("D", (), {"free": 10**12}))
    seen = {}

    def pip(command, **options):
        seen.update(command=command, **options)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution.\n")

    monkeypatch.setattr(language.subprocess, "run", pip)
    done = CliRunner().invoke(graft_app, ["fetch"])
    assert done.exit_code == 0 and "No matching distribution" in done.output
    assert done.output.count("Without Gemma 3 270M") == 1
    # pip reads its own settings: nothing of ours says where from, or hides its environment.
    assert not any(a.startswith(("--index", "--isolated", "-i")) for a in seen["command"])
    assert "env" not in seen


def test_fetching_can_be_turned_off(cache, monkeypatch):
    monkeypatch.setattr(language, "download", lambda _: pytest.fail("fetched"))
    done = CliRunner().invoke(graft_app, ["fetch"])
    assert done.exit_code == 0 and "TWOHOP_NO_FETCH says not to fetch it" in done.output


def test_which_grafts_are_here_is_told_without_fetching(cache, world, monkeypatch, tmp_path):
    monkeypatch.setattr(language, "download", lambda _: pytest.fail("fetched"))
    found = shipped.here()
    assert list(found) == ["caption", "names"] and len(set(found.values())) == 2
    monkeypatch.setenv("TWOHOP_CACHE", str(tmp_path / "empty"))
    assert shipped.here() == {}

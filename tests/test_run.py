"""``twohop rerun``: one folder a run, resumed wherever it was cut off, and refused in time."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import nbformat
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests import helpers_popvqa, helpers_shell
from tests.zoo import build
from twohop_lib import commands, records
from twohop_lib.benchmark import load, sources
from twohop_lib.chapter import study
from twohop_lib.errors import TwohopError
from twohop_lib.organisms import path
from twohop_lib.rerun import execute
from twohop_lib.rerun import run as running
from twohop_lib.runs.named import locate_pair, suited_benchmark

ROOT = Path(__file__).parent.parent
TINY_CHAPTER = """# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% tags=["parameters"]
vlm = ""
work = ""
max_entities = 0
pause = 0.0

# %%
import time
import pandas as pd
from twohop_lib import records
from twohop_lib.runs.store import cached

def keep_records(frame, work, chapter):  # chapter.study, which has one, takes long to import
    records.write_frame(frame, f"{work}/records-{chapter}.parquet", {"chapter": chapter})

answer = {"model": "late", "seed": 0, "entity_id": "e1", "entity": "One", "relation": "motto"}
answer |= {"wording": "standard", "condition": "by_name", "intervention": None, "answer": ""}
answer |= {"accepted": [["Yes"]] * 2, "correct": [True, False]}
parts = []
for n in range(6):
    def compute(n=n):
        time.sleep(pause)
        return pd.DataFrame({**answer, "question_id": [f"q{n}", f"r{n}"]})
    parts.append(cached(work, {"n": n}, compute))
keep_records(pd.concat(parts), work, "SELF")
"""


def write_chapter(folder: Path, name: str = "tiny", more: str = "") -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(TINY_CHAPTER.replace("SELF", name) + more)


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Path:
    """A built benchmark of two entities."""
    folder = tmp_path_factory.mktemp("asked")
    rows = ["entity,image,question,answers"]
    for n, name in enumerate(("Norwick", "Arlen")):
        Image.new("RGB", (40, 40), (90 * n, 90, 90)).save(folder / f"{n}.png")
        rows.append(f"{name},{n}.png,Where is {{entity}}?,Leeds")
    (folder / "own.csv").write_text("\n".join(rows))
    return sources.build("table", folder / "benchmark", source=folder / "own.csv").root


@pytest.fixture
def chapters(tmp_path, monkeypatch, asked):
    """A book of one small chapter, executed without a kernel, and a check that has been done."""
    helpers_shell.use(monkeypatch)
    monkeypatch.setitem(REQUEST, "benchmark", str(asked))
    write_chapter(tmp_path / "chapters")
    monkeypatch.setattr(running, "chapters_folder", lambda: tmp_path / "chapters")
    report = {"ok": True, "untrained": False, "checks": {}, "architecture_class": "adapter"}
    monkeypatch.setattr(running, "_checked", lambda *_: report)
    return tmp_path / "chapters"


REQUEST: dict[str, str] = {"profile": "quick"}


def request(**more) -> running.Request:
    vlm, llm = locate_pair("late")
    return running.Request(**{"vlm": vlm, "llm": llm, **REQUEST, **more})


def run(folder: Path, **more) -> running.Outcome:
    """Run without a word."""
    return running.run(request(**more), folder, lambda _: None)


# --- a run, and the same again ----------------------------------------------------------------


def test_a_run_leaves_one_folder_and_a_second_call_does_nothing(chapters, tmp_path):
    said = []
    outcome = running.run(request(), tmp_path / "runs", said.append)
    assert outcome.ran == ("tiny",) and not outcome.failed
    left = {str(p.relative_to(outcome.folder)) for p in outcome.folder.rglob("*") if p.is_file()}
    assert {
        "records.parquet",
        "manifest.json",
        "notebooks/tiny.ipynb",
        "html/index.html",
        "html/tiny.html",
    } <= left
    assert not [name for name in left if "partial" in name]
    assert len(records.read_frame(outcome.folder / "records.parquet")) == 12
    manifest = records.Manifest.read(outcome.folder / "manifest.json")
    assert manifest.parameters["chapters"] == ["tiny"] and manifest.parameters["result"] is True
    assert manifest.benchmark_hash
    before = {p: p.stat().st_mtime_ns for p in outcome.folder.rglob("*") if p.suffix}
    again = running.run(request(), tmp_path / "runs", said.append)
    assert again.ran == () and again.folder == outcome.folder
    assert before == {p: p.stat().st_mtime_ns for p in outcome.folder.rglob("*") if p.suffix}


def test_a_benchmark_is_built_once_into_the_run_whatever_it_is_made_from(chapters, tmp_path):
    copy = helpers_popvqa.copy(tmp_path / "copy")
    table = tmp_path / "own.csv"
    table.write_text(
        "entity,image,question,answers\n"
        f"Norwick,{copy.name}/resized_images/celebs/100.png,Where is {{entity}}?,Leeds\n"
    )
    for where, name, facts in ((copy, "popvqa", 32), (table, "table", 1)):
        outcome = run(tmp_path / "runs", benchmark=str(where))
        assert outcome.ran == ("tiny",)
        built = load(outcome.folder / "benchmark")
        assert built.name == name and len(built.questions) == facts
        manifest = records.Manifest.read(outcome.folder / "manifest.json")
        assert manifest.benchmark == str(where) and manifest.benchmark_hash == built.hash
        assert manifest.parameters["benchmark_notes"]["skipped rows"] == 0
        again = run(tmp_path / "runs", benchmark=str(where))
        assert again.ran == () and again.folder == outcome.folder
    table.write_text(table.read_text().replace("Leeds", "York"))
    assert run(tmp_path / "runs", benchmark=str(table)).ran


def test_a_model_is_asked_what_suits_it(tmp_path):
    assert suited_benchmark("") == suited_benchmark("late") == "heraldry"
    assert suited_benchmark(str(path("middle"))) == "heraldry"
    assert (
        suited_benchmark("llava-hf/llava-1.5-7b-hf") == suited_benchmark(str(tmp_path)) == "flags"
    )


def test_a_failing_chapter_does_not_lose_the_others(chapters, tmp_path):
    write_chapter(chapters, "broken", "\n# %%\nraise ValueError('so it is')\n")
    said = []
    outcome = running.run(request(), tmp_path / "runs", said.append)
    assert outcome.ran == ("tiny",) and list(outcome.failed) == ["broken"]
    assert any("ValueError: so it is" in line for line in said)
    assert len(records.read_frame(outcome.folder / "records.parquet")) == 12
    assert "broken: failed" in (outcome.folder / "html" / "index.html").read_text()


def test_random_weights_mark_every_page(chapters, tmp_path, monkeypatch):
    report = {"ok": True, "untrained": True, "surprise": 1.1, "checks": {}}
    monkeypatch.setattr(running, "_checked", lambda *_: report)
    outcome = run(tmp_path / "runs")
    for page in (outcome.folder / "html").glob("*.html"):
        assert "Not a result" in page.read_text(), page
    notebook = nbformat.read(outcome.folder / "notebooks" / "tiny.ipynb", as_version=4)
    assert "Not a result" in notebook.cells[0].source
    manifest = records.Manifest.read(outcome.folder / "manifest.json")
    assert manifest.parameters["result"] is False
    # The mark does not make the notebook another run's.
    assert run(tmp_path / "runs").ran == ()


# --- cut off ----------------------------------------------------------------------------------


RUN_IT = """
import sys
from pathlib import Path
from twohop_lib.rerun import run as running
folder = Path(sys.argv[1])
running.chapters_folder = lambda: folder / "chapters"
running._checked = lambda *_: {"ok": True, "untrained": False, "checks": {}}
request = running.Request(*sys.argv[2:5], profile="quick", parameters={"pause": 0.2})
running.run(request, folder / "killed")
"""


@pytest.fixture(scope="module")
def uncut(tmp_path_factory, asked) -> bytes:
    """The records of a run that nothing cuts off."""
    folder = tmp_path_factory.mktemp("uncut")
    write_chapter(folder / "chapters")
    with pytest.MonkeyPatch.context() as patch:
        helpers_shell.use(patch)
        patch.setattr(running, "chapters_folder", lambda: folder / "chapters")
        patch.setattr(running, "_checked", lambda *_: {"ok": True, "checks": {}})
        outcome = run(folder / "runs", benchmark=str(asked), parameters={"pause": 0.01})
    return (outcome.folder / "records.parquet").read_bytes()


def kill_when(process: subprocess.Popen, folder: Path, there: str, times: int) -> None:
    """Kill a run and its kernel once so many files are there."""
    until = time.monotonic() + 120
    while len(list(folder.rglob(there))) < times:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize(("there", "times"), [("work/*.parquet", 2), ("records-tiny.parquet", 1)])
def test_a_killed_run_resumes_to_equal_records(chapters, tmp_path, there, times, uncut):
    asked = request()
    command = [sys.executable, "-c", RUN_IT, tmp_path, asked.vlm, asked.llm, asked.benchmark]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    kill_when(process, tmp_path / "killed", there, times)
    assert not list((tmp_path / "killed").rglob("manifest.json"))
    kept = len(list((tmp_path / "killed").rglob("work/*.parquet")))
    assert kept < 6 if times > 1 else kept == 7
    resumed = run(tmp_path / "killed", parameters={"pause": 0.2})
    assert resumed.ran == ("tiny",)
    assert (resumed.folder / "records.parquet").read_bytes() == uncut
    assert not list(resumed.folder.rglob("*partial*"))


def test_two_at_once_are_told(chapters, tmp_path):
    folder = (tmp_path / "runs" / request().folder_name()).resolve()
    folder.mkdir(parents=True)
    with (
        filelock.FileLock(folder / ".lock"),
        pytest.raises(TwohopError, match="Another rerun is writing"),
    ):
        run(tmp_path / "runs")
    assert [p.name for p in folder.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("code", "told"), [(errno.ENOSPC, "is full"), (errno.EROFS, "cannot be written")]
)
def test_a_disk_that_takes_no_more_is_told(chapters, tmp_path, monkeypatch, code, told):
    whole = run(tmp_path / "whole")

    def full(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(records.os, "replace", full)
        with pytest.raises(TwohopError, match=told):
            run(tmp_path / "runs")
    resumed = run(tmp_path / "runs")
    same = [(o.folder / "records.parquet").read_bytes() for o in (resumed, whole)]
    assert same[0] == same[1]


# --- refused before anything runs -------------------------------------------------------------


def test_an_unknown_parameter_is_refused_with_the_nearest(chapters, tmp_path):
    with pytest.raises(TwohopError, match="did you mean 'max_entities'"):
        running.run(request(parameters={"max_entitys": 3}), tmp_path / "runs")
    with pytest.raises(TwohopError, match="own options"):
        running.run(request(parameters={"vlm": "x"}), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_an_unknown_chapter_is_refused(chapters, tmp_path):
    with pytest.raises(TwohopError, match="did you mean 'tiny'"):
        running.run(request(chapters=("tinny",)), tmp_path / "runs")


def test_a_failed_check_stops_the_run_and_is_kept(tmp_path, monkeypatch, asked):
    from twohop_lib.interventions import check as checks

    helpers_shell.use(monkeypatch)
    monkeypatch.setitem(REQUEST, "benchmark", str(asked))
    write_chapter(tmp_path / "chapters")
    monkeypatch.setattr(running, "chapters_folder", lambda: tmp_path / "chapters")
    # The target's run where the donor's is wanted.
    fails = lambda engine, a, b: engine.agreement(a.logits, b.logits, a.logits)  # noqa: E731
    monkeypatch.setattr(checks, "_full_patch", fails)
    with pytest.raises(TwohopError, match=r"does not pass the check \(full_patch\)"):
        run(tmp_path / "runs")
    found = next((tmp_path / "runs").glob("*/check.json"))
    assert json.loads(found.read_text())["ok"] is False
    skipped = request(skip_check=True)
    assert running.run(skipped, tmp_path / "runs", lambda _: None).ran == ("tiny",)


# --- the command ------------------------------------------------------------------------------


def invoke(*args: str):
    given = [word for name, value in REQUEST.items() for word in (f"--{name}", value)]
    return CliRunner().invoke(commands.app, ["rerun", *given, *args])


def test_the_command_takes_parameters_in_two_words(chapters, tmp_path):
    out = ["--out", str(tmp_path / "runs")]
    result = invoke("--vlm", "late", "-p", "pause", "0.01", "-p", "max_entities", "3", *out)
    assert result.exit_code == 0, result.exception
    manifest = records.Manifest.read(next((tmp_path / "runs").glob("*/manifest.json")))
    assert manifest.parameters["pause"] == 0.01 and manifest.parameters["max_entities"] == 3
    again = invoke("--vlm", "late", "-p", "pause", "0.01", "-p", "max_entities", "3", *out)
    assert "nothing to do" in again.stdout
    wrong = invoke("--vlm", "late", "--profile", "quik")
    assert isinstance(wrong.exception, TwohopError) and "did you mean 'quick'" in str(
        wrong.exception
    )
    assert isinstance(invoke("--vlm", "late", "-p", "pause").exception, TwohopError)


def test_a_failed_chapter_is_an_exit_code(chapters, tmp_path):
    write_chapter(chapters, "broken", "\n# %%\nraise ValueError('so it is')\n")
    result = invoke("--vlm", "late", "--out", str(tmp_path / "runs"))
    assert str(result.exception) == "1 chapter(s) failed: broken; the others are done."
    result = invoke("--vlm", "late", "--out", str(tmp_path / "runs"), "--chapters", "broken")
    assert str(result.exception) == "1 chapter(s) failed: broken."


def test_chapters_may_be_parted_by_commas(chapters, tmp_path):
    write_chapter(chapters, "other")
    write_chapter(chapters, "third")
    out = ["--vlm", "late", "--out", str(tmp_path / "runs")]
    assert invoke(*out, "--chapters", "tiny, other").exit_code == 0
    assert {p.stem for p in (tmp_path / "runs").glob("*/notebooks/*")} == {"tiny", "other"}
    assert "did you mean 'third'" in str(invoke(*out, "--chapters", "tiny,thrid").exception)


def test_an_empty_value_is_empty_text(chapters, tmp_path):
    text = TINY_CHAPTER.replace("pause = 0.0", 'pause = 0.0\nsplit = "test"  # "" for all')
    (chapters / "tiny.py").write_text(text.replace("SELF", "tiny"))
    result = invoke("--vlm", "late", "--out", str(tmp_path / "runs"), "-p", "split", "")
    assert result.exit_code == 0, result.exception
    manifest = records.Manifest.read(next((tmp_path / "runs").glob("*/manifest.json")))
    assert manifest.parameters["of_chapters"]["tiny"]["split"] == ""


def test_a_number_for_a_text_is_text_and_a_wording_that_is_none_is_refused_at_once(
    chapters, tmp_path
):
    text = TINY_CHAPTER.replace("pause = 0.0", 'pause = 0.0\nwording = "standard"')
    (chapters / "tiny.py").write_text(text.replace("SELF", "tiny"))
    result = invoke("--vlm", "late", "--out", str(tmp_path / "runs"), "-p", "wording", "1")
    assert str(result.exception).startswith("No wording is called '1'; known: standard")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--vlm", "late", "-p", "max_entities", "-5"], "'max_entities' is -5; give 0 or more"),
        (["--vlm", "late", "--benchmark", "flgas"], "did you mean 'flags'"),
        (
            ["--vlm", "lat"],
            "'lat' is no folder, no organism, no graft and no hub id .*did you mean 'late'",
        ),
        (["--vlm", "late", "--llm", "FOLDER"], "no text backbone|cannot be read|config"),
    ],
)
def test_what_is_refused_leaves_no_folder(tmp_path, monkeypatch, arguments, told):
    write_chapter(tmp_path / "chapters")
    monkeypatch.setattr(running, "chapters_folder", lambda: tmp_path / "chapters")
    monkeypatch.setattr("socket.socket.connect", None)  # nobody is asked
    (tmp_path / "empty").mkdir()
    arguments = [str(tmp_path / "empty") if a == "FOLDER" else a for a in arguments]
    for there in (False, True):
        if there:
            (tmp_path / "runs").mkdir()
        result = invoke(*arguments, "--out", str(tmp_path / "runs" / "mine"))
        assert isinstance(result.exception, TwohopError)
        assert re.search(told, str(result.exception))
        assert [p.name for p in tmp_path.glob("runs*")] == ["runs"] * there
        assert not list((tmp_path / "runs").glob("*"))


# --- the book's own chapters ------------------------------------------------------------------


def test_the_gap_can_be_rerun():
    known = running.rerunnable(running.chapters_folder())
    assert {"vlm", "llm", "load", "benchmark", "work", "max_entities"} <= set(known["the_gap"])


def test_every_chapter_runs_on_random_weights_and_says_so(tmp_path, monkeypatch):
    helpers_shell.use(monkeypatch)
    made = build("qwen2_vl", tmp_path)
    asked = running.Request(vlm=str(made.vlm), profile="quick", parameters={"max_entities": 3})
    outcome = running.run(asked, tmp_path / "runs", lambda _: None)
    assert not outcome.failed
    page = (outcome.folder / "html" / "the_gap.html").read_text()
    assert "Not a result" in page and "<img alt=" in page and "{glue" not in page
    assert "<script" not in page and 'src="http' not in page and 'href="http' not in page
    frame = records.read_frame(outcome.folder / "records.parquet")
    assert set(frame["chapter"]) == set(running.rerunnable(running.chapters_folder()))
    own = frame[frame["chapter"] == "the_gap"]
    # A model that is no organism of the book is asked about flags.
    flags = study.open_questions("flags", 0, "", "standard", 3)
    assert own.groupby("condition").size()["by_picture"] == len(flags.questions)
    assert set(own["entity_id"]) == set(flags.entities())
    assert not own["correct"].any()


def test_parameter_values_are_yaml():
    assert [running.parse_value(t) for t in ("3", "0.5", "true", "a: [", "[1, 2]", "")] == [
        3,
        0.5,
        True,
        "a: [",
        [1, 2],
        "",
    ]


def test_a_text_parameter_is_given_as_text_whatever_it_looks_like():
    for text in ("1", "1.0", "no", "null", "2026-01-01", "a: b", "[late]", "Name only. # so"):
        assert running.parse_value(text, "standard") == text
    assert running.parse_value("'two words'", "") == "two words"
    assert running.parse_value("1", 0) == 1 and running.parse_value("[a]", []) == ["a"]


def test_prose_on_organisms_and_prose_on_a_model_are_never_on_one_page():
    def prose(without: str) -> str:
        notebook = execute.to_notebook(ROOT / "chapters" / "the_gap.py")
        cells = execute.without(notebook, without).cells
        return "\n".join(c.source for c in cells if c.cell_type == "markdown")

    book, model = prose(execute.MODEL_PROSE), prose(execute.BOOK_PROSE)
    for text in (book, model):
        assert text.count("Key takeaways") == text.count("### Three worlds") == 1
    assert "on miniature models" in book and "miniature" not in model
    assert "model_" not in book and "{glue:text}`model_gap`" in model


# --- whose results a folder holds ---------------------------------------------------------------


def test_records_of_a_changed_chapter_are_never_taken_for_current(chapters, tmp_path, monkeypatch):
    first = run(tmp_path / "runs")
    write_chapter(chapters, more="\n# %%\nkeep_records(pd.concat(parts[:1]), work, 'tiny')\n")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(running, "_finish", killed)
        run(tmp_path / "runs")
    assert not (first.folder / "manifest.json").exists()
    run(tmp_path / "runs")
    assert len(records.read_frame(first.folder / "records.parquet")) == 2


def test_chapters_run_one_by_one_add_up(chapters, tmp_path):
    write_chapter(chapters, "other")
    for one in ("tiny", "other"):
        outcome = run(tmp_path / "runs", chapters=(one,))
        assert outcome.ran == (one,)
    frame = records.read_frame(outcome.folder / "records.parquet")
    assert frame["chapter"].value_counts().to_dict() == {"tiny": 12, "other": 12}
    index = (outcome.folder / "html" / "index.html").read_text()
    assert 'href="tiny.html"' in index and 'href="other.html"' in index
    assert run(tmp_path / "runs").ran == ()
    # In the order of the chapters, whichever ran first.
    assert list(frame["chapter"].unique()) == ["other", "tiny"]


def test_a_model_that_names_nothing_is_no_result(chapters, tmp_path):
    nothing = "frame = {**answer, 'condition': 'identify', 'entity_id': ['a', 'b'], %s}\n"
    keep = "keep_records(pd.DataFrame({**frame, 'question_id': ''}), work, 'tiny')\n"
    write_chapter(chapters, more="\n# %%\n" + nothing % "'correct': False" + keep)
    outcome = run(tmp_path / "runs")
    told = "named none of the 2 entities"
    for page in ("index.html", "tiny.html"):
        assert told in (outcome.folder / "html" / page).read_text()
    notebook = outcome.folder / "notebooks" / "tiny.ipynb"
    assert told in nbformat.read(notebook, as_version=4).cells[0].source
    write_chapter(chapters, more="\n# %%\n" + nothing % "'correct': [True, False]" + keep)
    run(tmp_path / "runs")
    assert "Not a result" not in notebook.read_text()


def test_the_manifest_says_what_was_loaded_and_asked(tmp_path, chapters):
    (chapters / "tiny.py").write_text(
        TINY_CHAPTER.replace(
            'keep_records(pd.concat(parts), work, "SELF")',
            "from twohop_lib.chapter.study import keep_records, open_pairs\n"
            'keep_records(pd.concat(parts), work, "tiny", open_pairs(vlm, "", [], 0))',
        )
    )
    outcome = running.run(
        request(parameters={"max_entities": 3}), tmp_path / "runs", lambda _: None
    )
    assert not outcome.failed
    manifest = records.Manifest.read(outcome.folder / "manifest.json")
    (model, *_) = manifest.models
    assert (model.role, model.dtype, model.processor) == ("vlm", "float32", "LlavaProcessor")
    assert manifest.parameters["of_chapters"]["tiny"]["pause"] == 0.0
    assert manifest.parameters["of_chapters"]["tiny"]["max_entities"] == 3
    assert manifest.wall_time_s > 0 and manifest.peak_memory_bytes > 0


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("max_entities", "many", "is a whole number, such as 0, and not 'many'"),
        ("max_entities", 2.5, "is a whole number"),
        ("max_entities", True, "is a whole number"),
        ("pause", "long", "is a number, such as 0.0"),
        ("max_entities", -5, "'max_entities' is -5; give 0 or more"),
        ("pause", -0.5, "'pause' is -0.5; give 0 or more"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(chapters, tmp_path, name, value, told):
    with pytest.raises(TwohopError, match=told):
        running.run(request(parameters={name: value}), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_what_determines_a_run_names_its_folder(tmp_path):
    asked = [request(), request(parameters={"seed": 1}), request(load={"dtype": "float16"})]
    assert len({one.folder_name() for one in asked}) == 3
    assert request(chapters=("tiny",)).folder_name() == request().folder_name()

"""What a chapter opens: asked once, cached, and honest about what was recognised."""

import dataclasses

import pandas as pd
import pytest

from twohop_lib import records
from twohop_lib.chapter import study
from twohop_lib.chapter.study import open_study
from twohop_lib.errors import TwohopError
from twohop_lib.interventions.edits import CrossPatch
from twohop_lib.interventions.pairs import NothingLeft
from twohop_lib.interventions.recorder import Recorder
from twohop_lib.interventions.sweep import ControlFailed
from twohop_lib.organisms import path
from twohop_lib.runs.named import locate_pair


@pytest.fixture(scope="module")
def opened():
    return open_study("test", organisms=["late", "early"], max_entities=4)


def test_models_questions_and_engines_are_opened_once(opened):
    assert opened.models == ["late", "early"] and opened.noun == "house"
    assert len(opened.questions.entities()) == 4
    assert opened.engine("late") is opened.engine("late")
    assert opened.engine("late") is not opened.engine("early")
    assert opened.example("cross", "early") == "early"
    assert opened.example("cross") == "late"


def test_a_condition_is_asked_once(opened, monkeypatch):
    first = opened.ask("identify", "by_picture")
    monkeypatch.setattr(study, "evaluate", None)  # asking again would fail
    again = opened.ask("by_picture", "identify")
    assert len(first) == len(again)
    assert set(first["condition"]) == {"identify", "by_picture"}
    assert list(dict.fromkeys(again["model"])) == ["late", "early"]


def test_recognised_entities_are_those_named_from_their_pictures(opened):
    named = opened.ask("identify")
    late = named[(named["model"] == "late") & named["correct"]]
    assert opened.recognised("late") == set(late["entity_id"])
    assert {q.entity_id for q in opened.asked("late")} == opened.entities("late")


def test_captions_say_that_all_entities_were_taken_where_none_is_recognised(opened, monkeypatch):
    everyone = set(opened.questions.entities())
    known = {"late": set(), "early": everyone}
    monkeypatch.setattr(study.Study, "recognised", lambda self, name: known[name])
    assert opened.entities("late") == everyone
    assert "all, for late, which names none" in opened.among()
    assert opened.among(["early"]) == "entities that the model names from their pictures"
    known["early"] = set()
    assert opened.among().startswith("all entities")


def test_records_of_other_worlds_are_the_books_own(opened):
    rows = opened.recorded("sweeps", experiment="cross-patch")
    assert set(rows["seed"]) == {1, 2} and set(rows["model"]) <= {"late", "early", "backbone"}
    given = dataclasses.replace(opened, given=True)
    empty = given.recorded("sweeps", experiment="cross-patch")
    assert len(empty) == 0 and list(empty.columns) == list(rows.columns)


def test_only_answer_records_are_kept_and_none_twice(opened, tmp_path):
    answers = opened.ask("identify")
    kept = dataclasses.replace(opened, chapter="t", work=str(tmp_path))
    kept.keep(answers)
    assert len(records.read(study.kept_records(tmp_path, "t"))) == len(answers)
    with pytest.raises(TwohopError, match="repeat an earlier one"):
        kept.keep(answers, answers)
    with pytest.raises(TwohopError, match="lack the column"):
        kept.keep(answers.drop(columns="intervention"))


def test_a_sweep_joins_what_models_allow(opened):
    def experiment(name, engine, labels):
        if name == "late":
            return None
        return pd.DataFrame([{"model": labels["labels"]["model"], "n": 1}])

    assert opened.sweep(experiment)["model"].tolist() == ["early"]
    assert opened.sweep(lambda *_: None).empty
    bare = opened.sweep(lambda *_: pd.DataFrame({"n": [1]}))
    assert bare["model"].tolist() == ["late", "early"] and bare["seed"].tolist() == [0, 0]


def test_the_backbone_is_swept_where_there_is_one_and_something_to_run(opened):
    rows = opened.sweep_backbone(lambda _, labels: pd.DataFrame([labels["labels"]]))
    assert rows["model"].tolist() == ["backbone"]

    def nothing(*_):
        raise NothingLeft("none")

    assert opened.sweep_backbone(nothing).empty


def test_the_example_is_the_first_fact_that_is_known_and_missed(opened):
    question = opened.missed("late")
    answers = opened.ask("by_name", "by_picture")
    own = answers[(answers["model"] == "late") & answers["entity_id"].isin(opened.entities("late"))]
    right = own.pivot(index="question_id", columns="condition", values="correct")
    assert right.loc[question.question_id].to_dict() == {"by_name": True, "by_picture": False}
    before = [q.question_id for q in opened.questions.questions]
    before = before[: before.index(question.question_id)]
    earlier = right.loc[[q for q in before if q in right.index]]
    assert not (earlier["by_name"] & ~earlier["by_picture"].astype(bool)).any()


def test_there_is_an_example_even_if_nothing_is_missed(opened, monkeypatch):
    clever = opened.ask("by_name", "by_picture").assign(correct=True)
    monkeypatch.setattr(study.Study, "ask", lambda self, *conditions: clever)
    monkeypatch.setattr(study.Study, "entities", lambda self, model: set())
    assert opened.missed("late") is opened.questions.questions[0]


def test_what_models_are_able_to_is_a_table_of_texts(opened):
    table = opened.able("llm_by_name", "identify")
    assert list(table.index) == ["late", "early"]
    assert list(table.columns) == ["backbone by name", "names the house", "cut off"]
    n = len(opened.questions.questions) + len(opened.questions.entities())
    assert set(table["cut off"]) == {f"0 of {n}"}
    assert table.loc["early", "names the house"] == "4 of 4"  # too few for a percentage
    assert opened.subject == "late, with 4 entities of the benchmark heraldry"


def test_captions_say_which_worlds_are_computed_here(opened):
    assert opened.worlds(pd.DataFrame({"seed": [0, 0]})) == ""
    assert opened.worlds(pd.DataFrame({"seed": [0, 1]})) == (
        " in 2 worlds. Seed 0 is computed here, the others are read from the study's records"
    )
    assert "All are read" in opened.worlds(pd.DataFrame({"seed": [1, 2]}))


def test_everyone_is_of_every_split_and_the_same_wording(opened):
    everyone = opened.everyone
    assert len(everyone.entities()) == 240 and {q.wording for q in everyone.questions} == {
        "standard"
    }
    assert set(opened.questions.entities()) < set(everyone.entities())


def test_records_of_models_that_are_not_on_the_page_can_be_had(opened):
    rows = opened.everywhere("recall", models=["cross-late"], experiment="name-likeness")
    assert set(rows["model"]) == {"cross-late"} and set(rows["seed"]) == {0, 1, 2}


def test_pairs_are_the_organisms_unless_one_is_named():
    assert list(study.open_pairs("", "", ["late", "early"], 0)) == ["late", "early"]
    named = study.open_pairs(str(path("middle")), str(path("backbone")), ["late"], 0)
    assert list(named) == ["middle"] and named["middle"].llm.name == "backbone"


def test_how_to_load_reaches_the_model(capsys):
    vlm, llm = locate_pair("late")
    pairs = study.open_pairs(vlm, llm, [], 0, {"dtype": "float16"})
    assert str(pairs["late"].vlm.model.dtype) == "torch.float16"
    assert "as asked" in capsys.readouterr().out
    study.open_pairs("", "", ["late"], 0)
    assert "no model was named" in capsys.readouterr().out


def test_entities_are_taken_from_first_to_last(heraldry):
    built = str(heraldry.root)
    all_of_them = study.open_questions(built, 0, "test", "standard").entities()
    some = study.open_questions(built, 0, "test", "standard", 4).entities()
    assert some == all_of_them[::24]
    with pytest.raises(TwohopError, match="No wording is called"):
        study.open_questions(built, 0, "test", "none")


def test_a_page_that_computes_something_else_is_told(opened):
    engine = opened.engine("early")
    pair = opened.pairs_of("early", "identify")[0]
    recorded = Recorder(engine, opened.questions, "identify")
    target, donor = recorded(pair.target), recorded(pair.donor, pair.target)
    patched = [CrossPatch(target, donor, layer) for layer in (2, 3)]
    right, wrong = engine.logits(patched)
    opened.assert_same(right, right, engine, target, donor)
    with pytest.raises(ControlFailed, match="do not agree: off by"):
        opened.assert_same(wrong, right, engine, target, donor)
    opened.assert_same(target.logits, target.logits, engine, target)  # An edit of nothing.


def test_a_budget_and_an_instruction_reach_what_is_asked(heraldry):
    told = "Answer with the name only."
    opened = study.open_study(
        "the_gap",
        benchmark=str(heraldry.root),
        organisms=["late"],
        max_entities=2,
        max_new_tokens=1,
        instruction=told,
    )
    answers = opened.ask("by_name")
    assert answers["cut"].all() and set(answers["instruction"]) == {told}
    assert all(q.identify_prompt.endswith(told) for q in opened.everyone.questions)


def test_values_that_papermill_reads_as_numbers_are_taken_as_texts_or_refused(heraldry):
    small = {"benchmark": str(heraldry.root), "organisms": ["late"]}
    opened = open_study("test", **small, max_entities=1, instruction=2026)
    assert opened.questions.questions[0].question_by_name.endswith("? 2026")
    with pytest.raises(TwohopError, match="No wording is called '1'; known: "):
        open_study("test", **small, wording=1)
    for name, value in (("wording", ["standard"]), ("split", True), ("instruction", {"a": 1})):
        with pytest.raises(TwohopError, match=f"^{name} is .*; give a text.$"):
            open_study("test", **small, **{name: value})
    for tokens in (0, -1, "32", 3.5, True):
        with pytest.raises(TwohopError, match="^max_new_tokens is .*; give a whole number"):
            open_study("test", **small, max_new_tokens=tokens)

"""Ways to bring missed facts back: which records count, what harm is, and the given name."""

import dataclasses

import pandas as pd
import pytest

from tests.zoo import build
from twohop_lib import records
from twohop_lib.interventions import given_name as given
from twohop_lib.interventions.given_name import EDGES, given_name
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import ControlFailed
from twohop_lib.models.loading import load_vlm
from twohop_lib.organisms import STUDY, path
from twohop_lib.readouts import repairs
from twohop_lib.readouts.shares import share_table


def answer(question, condition, correct, model="m"):
    return {
        "model": model,
        "seed": 0,
        "entity_id": question[0],
        "question_id": question,
        "condition": condition,
        "correct": correct,
    }


ANSWERS = pd.DataFrame(
    [
        answer(question, condition, right)
        for question, known, seen, first, neutral in [
            ("a1", True, False, True, False),  # missed, and comes back
            ("a2", True, False, False, False),  # missed, and does not
            ("b1", False, False, True, True),  # not known
            ("b2", True, True, False, True),  # right, and harmed
        ]
        for condition, right in [
            ("llm_by_name", known),
            ("by_picture", seen),
            ("name_first", first),
            ("neutral", neutral),
        ]
    ]
)


def test_only_facts_that_are_known_and_missed_can_come_back():
    rows = repairs.spoken(ANSWERS)
    assert set(rows["question_id"]) == {"a1", "a2"}
    back = rows.groupby("method")["correct"].mean()
    assert back.to_dict() == {"name first": 0.5, "neutral sentence": 0.0}


def test_the_own_name_is_told_apart_from_other_answers_to_known_facts():
    seen = [answer(entity, "identify", entity == "a") for entity in ("a", "b")]
    answers = pd.concat([ANSWERS, pd.DataFrame(seen)], ignore_index=True)
    answers = answers.assign(entity="Alba", answer="x", relation="r", wording="", intervention=None)
    named = answers["condition"] == "identify"
    answers.loc[named, "question_id"] = ""
    answers["accepted"] = [["Alba"] if one else ["y"] for one in named]
    one = answers["question_id"] == "a1"
    answers.loc[one & (answers["condition"] == "by_picture"), "answer"] = "Alba."
    # The name that is asked for first is no answer; one that follows it is.
    first = answers["condition"] == "name_first"
    answers.loc[first, ["answer", "named"]] = ["This is Alba. x", "This is Alba."]
    two = answers["question_id"] == "a2"
    answers.loc[first & two, "answer"] = "This is Alba. Alba"
    ways = repairs.of_known(answers)
    assert set(ways["question_id"]) == {"a1", "a2"}  # b is not named from its picture
    assert set(ways["method"]) == {"directly", "name first", "neutral sentence"}
    instead = repairs.own_name_instead(answers)
    assert instead[["model", "value", "n_items"]].values.tolist() == [["m", 0.5, 2]]
    assert repairs.own_name_words(instead) == "1 of 2 (m)"
    assert ways.loc[ways["own_name"], ["question_id", "method"]].values.tolist() == [
        ["a1", "directly"],
        ["a2", "name first"],
    ]
    table = share_table(ways, "correct", ["model", "method"])
    assert repairs.first_title(table) == "naming first takes m from 0 to 50 % of known facts"
    assert repairs.ways_sentence(ways, "house") == (
        "Of what its language model gives by name are right, with the house's own name instead in "
        "brackets: m directly 0 of 2 (1 of 2), name first 1 of 2 (1 of 2), neutral sentence 0 of 2 "
        "(0 of 2) (n = 2)."
    )
    assert repairs.ways_sentence(ways[:0], "house").startswith("It names nothing")
    # Facts that were not asked by picture say nothing.
    unasked = (answers["condition"] == "by_picture") & (answers["question_id"] == "a2")
    assert repairs.own_name_instead(answers[~unasked])["n_items"].tolist() == [1]


def test_repairs_stand_side_by_side_and_harm_is_what_was_right_before():
    patches = pd.DataFrame(
        [
            answer("a1", "by_picture", right) | {"method": method}
            for method, right in [("unpatched", False), ("heuristic", True), ("sliding", True)]
        ]
        + [
            answer("b2", "by_picture", right) | {"method": method}
            for method, right in [("unpatched", True), ("heuristic", False)]
        ]
    )
    both = repairs.side_by_side(patches, ANSWERS)
    assert set(both["method"]) == {"MLP patch, heuristic", "name first", "neutral sentence"}
    missed = both[both["missed"]].groupby("method").size()
    assert missed["name first"] == 3 and missed["MLP patch, heuristic"] == 1
    harm = repairs.harm(both)
    assert harm["m"].to_dict() == {
        "MLP patch, heuristic": "1 of 1",
        "name first": "1 of 1",
        "neutral sentence": "0 of 1",
    }
    assert harm.loc["name first"].iloc[0] == "a longer answer"
    assert repairs.harm(both[both["missed"]])["no items"].tolist() == ["–"]


def test_shares_that_come_back_are_told_or_a_dash():
    back = pd.DataFrame([{"model": "m", "method": "name given", "value": 0.5}])
    assert repairs.cot_values(back, ["m"]) == {"first_m": "–", "given_m": "50", "neutral_m": "–"}


def cut(model, gained, n=20):
    return pd.DataFrame(
        [
            {"model": model, "seed": 0, "entity_id": i, "question_id": i, "edge": edge}
            | {"correct": edge == "last→image" or i >= gained}
            for i in range(n)
            for edge in ("nothing", "last→image")
        ]
    )


def test_a_picture_overrides_a_name_only_beyond_chance():
    told = repairs.override_sentence(pd.concat([cut("some", 8), cut("one", 1)]))
    assert "+40 points [20, 60] in some (n = 20), +5 points [0, 15] in one (n = 20)" in told
    assert told.endswith("So in some the picture overrides some written names.")
    assert "does not override" in repairs.override_sentence(cut("one", 1))


# --- the given name ---


@pytest.fixture(scope="module")
def world(heraldry):
    return heraldry.select(split="test", wording="standard").some(3)


@pytest.fixture(scope="module")
def middle():
    return Engine(load_vlm(path("middle"), device="cpu"))


def test_with_nothing_cut_the_answers_are_those_of_the_study(world, middle):
    asked = world.questions
    rows = given_name(middle, world, asked, labels={"model": "middle", "seed": 0})
    assert rows["edge"].tolist() == list(EDGES) * len(asked)
    assert set(rows["condition"]) == {"name_given"} and set(rows["experiment"]) == {"given-name"}
    study = records.read(STUDY / "answers.parquet")
    study = study[(study["model"] == "middle") & (study["seed"] == 0)]
    said = study[study["condition"] == "name_given"].set_index("question_id")["answer"]
    free = rows[rows["edge"] == "nothing"].set_index("question_id")["answer"]
    assert free.to_dict() == said[free.index].to_dict()
    # Without the name the fact is that of the picture alone, or none.
    assert rows[rows["edge"] == "last→name"]["answer"].tolist() != free.tolist()


def test_a_run_that_changes_with_nothing_cut_is_refused(world, middle, monkeypatch):
    edits = []

    def wrong(target, queries, keys, start, stop):
        edits.append(given_edit(target, queries, keys, start, middle.n_blocks))
        if not keys:  # "nothing" that cuts the picture
            edits[-1] = dataclasses.replace(edits[-1], keys=tuple(range(*target.span)))
        return edits[-1]

    given_edit = given.Knockout
    monkeypatch.setattr(given, "Knockout", wrong)
    with pytest.raises(ControlFailed):
        given_name(middle, world, world.questions[:1])


def test_a_model_that_sees_by_cross_attention_is_cut_off_too(world, tmp_path):
    mllama = Engine(load_vlm(str(build("mllama", tmp_path).vlm), device="cpu"))
    rows = given_name(mllama, world, world.questions[:2])
    by_edge = rows.groupby("edge")["answer"].agg(list)
    assert by_edge["last→image"] != by_edge["nothing"]

"""Which entities a page counts, and what it says of gaps; what scoring rules do."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tests.test_gap import make
from twohop_lib.readouts import gap, gap_words, rules

SEEING = {
    "a": (True, ["llm name text full picture", "llm name text full"]),
    "b": (True, ["llm name text full", "llm name text full blind"]),
    "c": (False, ["llm name", "llm name picture"]),
}
BLIND = {"a": (False, ["llm name full"]), "b": (False, ["llm name full picture"])}


@pytest.fixture(scope="module")
def answers():
    return pd.concat([make(SEEING, "seeing"), make(BLIND, "blind"), make(BLIND, "seeing", seed=1)])


def test_only_recognised_entities_count_unless_a_model_recognises_none(answers):
    kept = gap_words.recognised_rows(answers).groupby(["model", "seed"])["entity_id"]
    assert kept.unique().map(sorted).to_dict() == {
        ("seeing", 0): ["a", "b"],
        ("blind", 0): ["a", "b"],
        ("seeing", 1): ["a", "b"],  # the other world names none
    }
    here = answers[answers["seed"] == 0]
    accuracy = gap_words.accuracy_of_recognised(here).set_index(["model", "condition"])
    assert accuracy.loc[("seeing", "by_picture"), ["accuracy", "n_items"]].tolist() == [0.25, 4]
    assert accuracy.loc[("blind", "by_picture"), ["accuracy", "n_items"]].tolist() == [0.5, 2]


def test_gaps_are_those_over_the_entities_that_count(answers):
    table = gap.gap_by_seed(gap.split_models(answers))
    own = gap_words.of_recognised(table).set_index(["seed", "model", "definition"])
    assert own.loc[(0, "seeing", "difference"), ["gap", "population"]].tolist() == [
        0.75,
        "recognised",
    ]
    assert own.loc[(0, "blind", "difference"), ["gap", "population"]].tolist() == [0.5, "full"]
    assert own.loc[(1, "seeing", "degradation"), "population"] == "full"
    assert len(own) == 9  # three definitions of three models and worlds, each once
    one = gap.gap_table(gap.split_models(answers[answers["seed"] == 0]))
    assert gap_words.of_recognised(one).groupby("model").size().to_dict() == {
        "blind": 3,
        "seeing": 3,
    }


def test_tables_to_read_have_a_cell_for_everything_and_a_dash_for_nothing(answers):
    table = gap.gap_table(gap.split_models(answers[answers["seed"] == 0]))
    shown = gap_words.overview(table)
    assert list(shown.columns) == ["full", "recognised", "intersection"]
    assert shown.loc[("seeing", "difference"), "recognised"].startswith("75.0 [")
    assert shown.loc[("seeing", "difference"), "recognised"].endswith("n = 4 of 2")
    assert shown.loc[("blind", "controlled")].tolist() == ["–", "–", "–"]
    worlds = gap_words.by_world(gap_words.of_recognised(gap.gap_by_seed({"m": make(SEEING)})), 0)
    assert worlds["from"].unique().tolist() == ["this page"]
    assert gap_words.by_world(gap.gap_by_seed({"m": make(SEEING, seed=2)}), 0)["from"].iloc[0] == (
        "the study's records"
    )


def test_sentences_say_what_was_not_measured(answers):
    seeing = answers[(answers["seed"] == 0) & (answers["model"] == "seeing")]
    own = gap_words.of_recognised(gap.gap_table({"seeing": seeing}))
    told = gap_words.model_sentences(seeing, own, "all of them")
    assert "On 4 facts about 2 entities (all of them), it loses 75.0 points" in told["model_gap"]
    assert "It names 66.7 %" in told["model_hops"] and "blank picture, 25.0 %" in told["model_hops"]
    blind = answers[answers["model"] == "blind"]
    own = gap_words.of_recognised(gap.gap_table({"blind": blind}))
    told = gap_words.model_sentences(blind, own, "all")
    assert told["model_definitions"].endswith("not measured (on the controlled slice)")


def test_the_lowest_hop_of_all_models(answers):
    told = gap_words.hop_values(answers[answers["seed"] == 0])
    assert told == {"recognition_lowest": "0", "text_lowest": "all", "blind_highest": "25.0"}
    some = answers.assign(correct=answers["correct"] & (answers["question_id"] != "c-r0"))
    assert gap_words.hop_values(some[some["seed"] == 0])["text_lowest"] == "at least 83.3 %"


# --- rules ---


def said(answer, accepted, condition, entity="e", model="m"):
    asked = "" if condition == "identify" else f"{entity}-1"
    row = {"model": model, "seed": 0, "entity_id": entity, "entity": entity, "relation": "r"}
    row |= {"question_id": asked, "wording": "standard", "condition": condition}
    return row | {"answer": answer, "accepted": accepted, "correct": None}


def test_a_rule_decides_the_gap_and_who_is_recognised():
    answers = pd.DataFrame(
        [
            said("Valric", ["Valric"], "identify"),
            said("It is Paris.", ["Paris"], "by_name"),
            said("It is not Paris.", ["Paris"], "by_picture"),
            said("Lore", ["Rory"], "identify", "f"),
            said("Rome", ["Rome"], "by_name", "f"),
            said("Rome", ["Rome"], "by_picture", "f"),
        ]
    )
    gaps = rules.gap_by_rule(answers).set_index("rule")
    assert gaps["gap"].to_dict() == {"twohop": 1.0, "popvqa": 0.0, "inclusion": 0.0}
    assert gaps["n_entities"].tolist() == [1, 1, 1]
    assert rules.largest_move(gaps.reset_index()) == (1.0, "m")
    assert rules.move_sentence(gaps.reset_index()).endswith("up to 100.0 points apart (m).")
    nothing = gaps.reset_index().assign(gap=np.nan)
    assert "no gap could be measured" in rules.move_sentence(nothing)


def test_verdicts_on_made_answers_and_on_labelled_ones():
    told = rules.verdicts_on_answers([("", ["Paris"]), ("UK", ["UK"])])
    assert told["answer"].tolist() == ["(empty)", "UK"]
    assert told["inclusion"].tolist() == [True, True] and told["popvqa"].sum() == 0
    labelled = pd.DataFrame(
        {
            "answer": ["Rome", "Not Rome.", "UK"],
            "accepted": [["Rome"], ["Rome"], ["UK"]],
            "right": [True, False, True],
            "category": ["plain", "denied", "short"],
        }
    )
    table = rules.agreement_by_rule(labelled).set_index("rule")
    assert table["agreement"].round(3).to_dict() == {
        "twohop": 1.0,
        "popvqa": 0.333,
        "inclusion": 0.667,
    }
    assert set(table["n"]) == {3} and (table["low"] < table["agreement"]).all()


def test_what_a_rule_was_tuned_on_and_what_it_never_saw_are_told_apart():
    tuned = pd.DataFrame(
        {
            "answer": ["It is not Paris.", "It is Obama.", "Rome"],
            "accepted": [["Paris"], ["Barack Obama"], ["Rome"]],
            "right": [False, True, True],
            "category": "plain",
        }
    )
    fresh = tuned.assign(first_verdict=[True, True, True])
    table = rules.agreement_by_set(tuned, fresh).set_index(["set", "rule"])["agreement"]
    assert table[rules.TUNED, "twohop"] == table[rules.MENDED, "twohop"] == 1
    assert table[rules.FIRST, "twohop"] == pytest.approx(2 / 3)
    assert table[rules.FIRST, "popvqa"] == table[rules.MENDED, "popvqa"] == pytest.approx(1 / 3)
    earned = rules.earnings(tuned, fresh)
    assert set(earned["clause"].head(2)) == {"not X", "people"}
    first = earned.set_index("clause").loc["not X"]
    assert (first["fresh: mended"], first["fresh: spoilt"]) == (1, 0)
    assert first["tuned on: without it"] == pytest.approx(2 / 3)
    assert f"{len(earned) - 2} put no case" in rules.earning_nothing(earned)
    assert rules.earning_nothing(earned.head(2)).startswith("Every clause")
    parts = rules.by_part(tuned, fresh).set_index("left out")
    assert parts.loc["nothing", rules.TUNED] == 1 and parts["clauses"].sum() == len(earned)
    assert parts.loc["striking", "fresh"] == parts.loc["marking", "fresh"] == pytest.approx(2 / 3)


def fact(relation, answers, distractors):
    return SimpleNamespace(
        relation=relation,
        answers=answers,
        distractors=distractors,
        question_by_name=f"What is the {relation} of Chad?",
    )


def test_verdicts_on_facts_and_what_a_rule_hardly_ever_accepts():
    facts = [fact("calling_code", ("+235",), ("+234",)), fact("capital", ("Ndjamena",), ("Abuja",))]
    verdicts = rules.verdicts_on_facts(facts).set_index(["relation", "rule"])
    assert verdicts.loc[("calling code", "twohop")].tolist() == [True, False, False, False]
    assert not verdicts.loc[("calling code", "popvqa"), "right"]
    assert verdicts.loc[("capital", "inclusion"), "denied"]
    shares = verdicts["right"].rename("share").reset_index()
    assert rules.refusal_title(shares, "popvqa") == (
        "One published rule hardly ever accepts a right calling code"
    )
    assert rules.refusal_title(shares, "twohop").startswith("Right answers accepted")


def test_what_comes_of_known_facts_tells_the_own_name_apart():
    records = make({"a": (True, ["llm picture", "llm", "llm", "llm blind"]), "b": (False, ["llm"])})
    own = (records["condition"] == "by_picture") & (records["question_id"] == "a-r1")
    records.loc[own, "answer"] = "A"
    named = records["condition"] == "identify"
    records["accepted"] = [["A"] if one else ["x"] for one in named]
    table = gap_words.outcomes_of_known(records, "llm")
    assert table["outcome"].tolist() == list(gap_words.OUTCOMES)
    assert table["value"].tolist() == pytest.approx([1 / 3] * 3) and set(table["n_items"]) == {3}
    assert gap_words.outcomes_sentence(table, "house") == (
        "m 1 of 3 (the house's own name instead: 1 of 3, another: 1 of 3)"
    )


def test_titles_tell_the_ends_and_the_own_name():
    arms = pd.DataFrame(
        {
            "model": ["a", "a", "b"],
            "arm": ["by name", "by picture", "by picture"],
            "accuracy": [1.0, 0.09, 2 / 3],
            "n_items": [46, 46, 3],
        }
    )
    assert gap_words.by_picture(arms) == "a answers 9 % and b answers 2 of 3 by picture"
    one = arms[arms["model"] == "a"]
    assert gap_words.by_picture(one) == "a answers 9 % by picture"
    shares = pd.DataFrame({"model": ["a", "b"], "share": [0.85, 0.0], "n_items": [46, 37]})
    said = gap_words.own_names(shares.assign(type="own name instead"))
    assert said == "a says the entity's own name instead in 85 % of its answers"

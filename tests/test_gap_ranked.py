"""The gap by matching beside the gap by likelihood: over the same items, and where they part."""

from __future__ import annotations

import pandas as pd
import pytest

from twohop_lib.chapter import study
from twohop_lib.chapter.study import open_study
from twohop_lib.errors import TwohopError
from twohop_lib.readouts import gap_ranked

ARMS = ("by_name", "by_picture")


def made(verdicts: dict[str, list[tuple]], model: str = "m") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of each arm, a tuple an item: right by matching, by length, and by first token."""
    rows = [
        {
            "model": model,
            "seed": 0,
            "entity_id": f"e{i // 2}",
            "entity": f"E{i // 2}",
            "relation": "founder",
            "question_id": f"q{i}",
            "wording": "standard",
            "condition": arm,
            "intervention": None,
            "answer": f"said {i}",
            "accepted": ["Joan"],
            "correct": matched,
            "by_length": likely,
            "by_first": first,
            "candidate": "Joan" if likely else "Berta",
        }
        for arm, items in verdicts.items()
        for i, (matched, likely, first) in enumerate(items)
    ]
    frame = pd.DataFrame(rows)
    ranked = ["by_length", "by_first", "candidate"]
    answers = frame.drop(columns=ranked)
    return answers, frame[[*gap_ranked.ITEM, "condition", *ranked]]


def test_each_gap_is_over_the_items_that_are_decided_in_both_arms():
    answers, ranked = made(
        {
            "by_name": [(True, True, True)] * 3 + [(True, True, None)],
            "by_picture": [(False, True, True), (False, False, False)] + [(True, True, True)] * 2,
        }
    )
    both = gap_ranked.judged(answers, ranked)
    gaps = gap_ranked.gap_by_scoring(both).set_index("scoring")
    assert gaps["gap"].round(3).to_dict() == {
        "matching": 0.5,
        "likeliest answer": 0.25,
        # Left out: the item whose first token decides nothing by name. Entities weigh alike.
        "likeliest first token": 0.25,
    }
    assert gaps["n_items"].tolist() == [4, 4, 3]
    assert gap_ranked.as_read(gaps.reset_index())["n"].tolist() == ["4 of 2", "4 of 2", "3 of 2"]
    counts = gap_ranked.counts(both).set_index("condition")
    assert counts.loc["by_picture"].tolist()[1:] == [4, 2, 0, 1, 1]
    assert gap_ranked.title(both) == "Matching and likelihood judge 7 of 8 answers alike"
    shown = gap_ranked.partings(both)
    assert shown[["condition", "said", "likeliest", "right by"]].values.tolist() == [
        ["by_picture", "said 0", "Joan", "likelihood"]
    ]


def test_the_page_says_whose_gap_the_two_disagree_about():
    known = [(True, True, True)] * 40
    answers, ranked = made({"by_name": known, "by_picture": [(False, True, True)] * 40})
    told = gap_ranked.move_sentence(gap_ranked.judged(answers, ranked))
    assert told == (
        "The two ways of scoring disagree about the gap of m (100.0 points by matching and 0.0 by "
        "likelihood)."
    )
    answers, ranked = made({"by_name": known, "by_picture": known})
    told = gap_ranked.move_sentence(gap_ranked.judged(answers, ranked))
    assert told.endswith("gives the same gap (at most 0.0 points apart).")
    assert gap_ranked.partings(gap_ranked.judged(answers, ranked)).values.tolist() == [["nowhere"]]


def test_a_model_that_cannot_be_ranked_is_shown_by_matching_alone():
    answers, ranked = made({arm: [(True, True, True)] * 4 for arm in ARMS})
    both = gap_ranked.judged(answers, ranked.iloc[:0])
    assert gap_ranked.gap_by_scoring(both)["scoring"].tolist() == ["matching"]
    assert "could not be ranked" in gap_ranked.move_sentence(both)
    assert gap_ranked.partings(both).values.tolist() == [["nowhere"]]
    with pytest.raises(TwohopError, match="No item was asked in both arms"):
        gap_ranked.judged(answers[answers["condition"] == "by_name"], ranked)


def test_a_page_ranks_what_its_models_recognise_once(monkeypatch):
    opened = open_study("test", organisms=["late", "early"], max_entities=3)
    ranked = opened.ranked("llm_by_name", "by_picture")
    assert set(ranked["model"]) == {"late", "early"}
    by_name = ranked[ranked["condition"] == "llm_by_name"]
    assert by_name["by_length"].all() and (by_name["n_candidates"] > 10).all()
    monkeypatch.setattr(study, "rank", None)  # ranking again would fail
    again = opened.ranked("by_picture")
    assert set(again["entity_id"]) <= set(opened.questions.entities())


def test_a_model_that_cannot_be_ranked_is_told_and_left_out(monkeypatch, capsys):
    def refused(*_, **__):
        raise TwohopError("It reads its prompt in both directions.")

    monkeypatch.setattr(study, "rank", refused)
    opened = open_study("test", organisms=["late"], max_entities=1)
    assert opened.ranked("by_picture").empty
    assert "late is not ranked by_picture: It reads" in capsys.readouterr().out

"""Shares by group and world, differences, who counts, and how it is put in words."""

import numpy as np
import pandas as pd
import pytest

from twohop_lib.errors import TwohopError
from twohop_lib.readouts import captions, selection
from twohop_lib.readouts.shares import (
    crossed_table,
    paired_differences,
    share,
    share_by_world,
    share_table,
)
from twohop_lib.stats import DONOR, entity_bootstrap


@pytest.fixture
def answers():
    """Two models, three worlds of twenty entities with the same ids, two questions each."""
    rng = np.random.default_rng(0)
    rows = [
        (model, seed, f"e{i:02}", f"q{i:02}-{k}", method, rng.random() < chance)
        for model, strength in (("b", 0.5), ("a", 0.8))
        for seed in range(3)
        for i in range(20)
        for k in range(2)
        for method, chance in (("heuristic", strength), ("random", strength - 0.3))
    ]
    names = ["model", "seed", "entity_id", "question_id", "method", "correct"]
    return pd.DataFrame(rows, columns=names)


def test_shares_of_groups_in_their_order(answers):
    table = share_table(answers, "correct", ["model", "method"])
    assert list(table.columns) == [
        *("model", "method", "value", "low", "high", "n_items", "n_entities")
    ]
    assert table["model"].tolist() == ["b", "b", "a", "a"]
    assert (table["n_items"] == 120).all() and (table["n_entities"] == 60).all()
    part = answers[(answers["model"] == "b") & (answers["method"] == "heuristic")]
    assert table["value"][0] == part["correct"].mean()
    one = part[part["seed"] == 1]
    by_hand = entity_bootstrap(one["correct"].astype(float), one["entity_id"])
    own = share(one, "correct")
    assert (own.low, own.high) == (by_hand.low, by_hand.high)


def test_entities_of_pooled_worlds_stay_apart_by_default(answers):
    assert share(answers, "correct").n_entities == 60
    with pytest.raises(TwohopError, match="lack the column.* seed; entities are told apart by"):
        share(answers.drop(columns="seed"), "correct")
    with pytest.raises(TwohopError, match=r"lack the column\(s\) right"):
        share_table(answers, "right", ["model"])


def test_every_world_and_all_of_them(answers):
    table = share_by_world(answers, "correct", ["model"])
    assert table["world"].tolist() == ["0", "1", "2"] * 2 + ["all"] * 2
    whole = table[table["world"] == "all"].set_index("model")
    assert whole.loc["a", "n_entities"] == 60
    assert whole.loc["a", "value"] == answers[answers["model"] == "a"]["correct"].mean()
    single = share_by_world(answers[answers["seed"] == 0], "correct", ["model"])
    assert single["world"].tolist() == ["0", "0"]


def test_items_without_a_value_are_left_out(answers):
    some = answers.assign(value=answers["correct"].astype(float).where(answers["seed"] > 0))
    assert share_table(some, "value", ["model"])["n_items"].tolist() == [160, 160]
    nothing = share_table(some[some["seed"] == 0], "value", ["model"])
    assert nothing.empty and "n_entities" in nothing


def test_pairs_are_clustered_by_their_donors_too(answers):
    one = answers[answers["seed"] == 0].assign(donor_id=lambda f: "e0" + f["question_id"].str[2])
    by_donor = one.assign(correct=one["donor_id"].isin(["e00", "e01", "e02", "e03"]))
    alone, both = (share(by_donor, "correct", donor=d) for d in (None, DONOR))
    assert both.high - both.low > 1.5 * (alone.high - alone.low)


def test_differences_are_taken_item_by_item(answers):
    found = paired_differences(
        answers, "correct", "method", [("heuristic", "random"), ("heuristic", "absent")]
    )
    assert found["model"].tolist() == ["b", "a"]  # an arm that was not run has no difference
    wide = answers.pivot(
        index=["model", "seed", "entity_id", "question_id"], columns="method", values="correct"
    ).astype(float)
    expected = (wide["heuristic"] - wide["random"]).groupby("model").mean()
    assert found.set_index("model")["value"].to_dict() == pytest.approx(expected.to_dict())
    assert (found["low"] < found["value"]).all() and (found["value"] < found["high"]).all()
    assert found["n_items"].tolist() == [120, 120] and found["n_entities"].tolist() == [60, 60]


# --- who counts ---------------------------------------------------------------------------------


def clean(rows):
    names = ["model", "seed", "entity_id", "question_id", "condition", "correct"]
    return pd.DataFrame(rows, columns=names)


def test_facts_known_and_missed():
    records = clean(
        [
            ("m", 0, "e1", "q1", "llm_by_name", True),
            ("m", 0, "e1", "q1", "by_picture", False),
            ("m", 0, "e1", "q2", "llm_by_name", True),
            ("m", 0, "e1", "q2", "by_picture", True),
            ("m", 0, "e2", "q3", "llm_by_name", False),
            ("m", 0, "e2", "q3", "by_picture", False),
            ("m", 1, "e1", "q1", "llm_by_name", True),
            ("m", 1, "e1", "q1", "by_picture", True),
        ]
    )
    assert selection.missed(records).to_numpy().tolist() == [["m", 0, "q1"]]
    assert len(selection.answered(records, "llm_by_name")) == 3
    kept = selection.keep(records, selection.missed(records))
    assert kept["condition"].tolist() == ["llm_by_name", "by_picture"]


def test_a_patch_on_facts_that_were_right_without_it_is_told_apart():
    patched = clean(
        [("m", 0, "e1", q, "by_picture", r) for q, r in (("q1", True), ("q2", True), ("q1", False))]
    )
    free = clean([("m", 0, "e1", "q1", "", False), ("m", 0, "e1", "q2", "", True)])
    assert selection.mark_missed(patched, free)["missed"].tolist() == [True, False, True]
    with pytest.raises(TwohopError, match="1 patched fact.* no unpatched answer, such as q2 of m"):
        selection.mark_missed(patched, free[:1])


def routes(n=8):
    """Back-patches of n entities; dev entities (even) do best by (3, 1), the others by (2, 0)."""
    return pd.DataFrame(
        [
            ("m", 0, f"e{i}", f"q{i}", source, layer, (source == 3) == (i % 2 == 0))
            for i in range(n)
            for source, layer in ((2, 0), (3, 1))
        ],
        columns=["model", "seed", "entity_id", "question_id", "source", "layer", "correct"],
    )


def test_what_is_chosen_on_dev_entities_is_measured_on_the_others():
    frame = routes()
    dev = selection.is_dev(frame)
    assert set(frame[dev]["entity_id"]) == {"e0", "e2", "e4", "e6"}
    measured, best = selection.best_on_dev(frame, ["source", "layer"])
    assert best == (3, 1)
    assert set(measured["entity_id"]) == {"e1", "e3", "e5", "e7"}
    assert measured["correct"].mean() == 0  # what dev likes best fails elsewhere
    assert selection.best_of_all(frame)["correct"].mean() == 1
    assert selection.best_on_dev(routes(3), ["source", "layer"]) is None
    assert selection.best_on_dev(frame[:0], ["source", "layer"]) is None


def test_dev_entities_of_two_worlds_are_picked_apart():
    both = pd.concat([routes(3), routes(3).assign(seed=1)])
    picked = both[selection.is_dev(both)].drop_duplicates(["seed", "entity_id"])
    assert picked[["seed", "entity_id"]].to_numpy().tolist() == [[0, "e0"], [0, "e2"], [1, "e1"]]


def test_rows_are_split_by_their_entities():
    frame = routes(4)
    named = selection.split_by_entities(frame, frame[frame["entity_id"] < "e2"], ("early", "late"))
    assert named.tolist() == ["early"] * 4 + ["late"] * 4


# --- in words -----------------------------------------------------------------------------------


def test_sizes_in_words():
    frame = pd.DataFrame({"model": list("aaabb"), "seed": 0, "entity_id": list("xyyxz")})
    assert captions.n_words(frame, "entities") == "n = 2 entities for each model"
    assert captions.n_words(frame[:3], "entities") == "n = 2 entities"
    assert captions.n_words(frame[:4], "entities") == "n = 1–2 entities for each model"
    table = pd.DataFrame({"n_items": [90, 90]})
    assert captions.n_of(table, "facts") == "n = 90 facts"
    assert captions.n_of(table.assign(n_items=[80, 90]), "facts") == "n = 80–90 facts"
    assert captions.n_range([]) == "0"


def test_a_share_of_few_is_a_count():
    assert captions.counted(3 / 7, 7) == "3 of 7"
    assert captions.counted(3 / 7, 70) == "43 %"
    assert captions.counted(None, 0) == captions.counted(float("nan"), 5) == "–"
    assert captions.counted_with_interval(0.425, 0.3, 0.57, 80) == "42 % [30, 57] (n = 80)"
    assert captions.counted_with_interval(0.5, None, None, 80) == "50 % (n = 80)"
    assert captions.counted_with_interval(0.5, 0.1, 0.9, 4) == "2 of 4"
    assert captions.points_with_interval(0.118, 0.05, 0.2, 80) == "+12 [5, 20] (n = 80)"
    assert captions.points_with_interval(None, None, None, 0) == "–"


def test_ranges_have_two_different_ends():
    assert captions.percent_range([0.7, None, 0.831]) == "70 to 83 %"
    assert captions.percent_range([0.829, 0.831]) == "83 %"
    assert captions.percent_range([None]) == "–"
    assert captions.percent(None) == "–" and captions.percent(0.4251, 1) == "42.5"
    assert captions.listed([]) == "" and captions.listed(["a"]) == "a"
    assert captions.listed(["a", "b", "c"]) == "a, b and c"


def test_groups_over_seeds_that_show_the_same_entities():
    frame = pd.DataFrame(
        {
            "model": ["b"] * 4 + ["a"] * 2,
            "seed": [0, 1, 0, 1, 0, 0],
            "entity_id": ["x", "x", "y", "y", "x", "y"],
            "correct": [True, True, False, False, True, None],
        }
    )
    table = crossed_table(frame, "correct", ["model"])
    assert table["model"].tolist() == ["b", "a"] and table["value"].tolist() == [0.5, 1.0]
    assert table[["n_items", "n_entities", "n_seeds"]].values.tolist() == [[4, 2, 2], [1, 1, 1]]

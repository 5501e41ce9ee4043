"""What patches bring back, counted by hand."""

import pandas as pd
import pytest

from twohop_lib.readouts import patch_words
from twohop_lib.readouts.shares import share_table


def patches(**right):
    """Patches of model "a" on four missed facts: method -> who is followed for each."""
    rows = [
        {
            "model": "a",
            "seed": 0,
            "entity_id": f"e{i}",
            "question_id": f"q{i}",
            "method": method.replace("_", " "),
            "follows": who,
            "correct": who == "right",
            "missed": True,
            "computation": "splice",
        }
        for method, whose in right.items()
        for i, who in enumerate(whose)
    ]
    return pd.DataFrame(rows)


R, D, N = "right", "donor", "neither"
MISSED = patches(
    unpatched=[N, N, N, N],
    heuristic=[R, R, R, N],
    random=[R, N, N, N],
    wrong_entity=[D, D, D, D],
    late_blocks=[N, N, N, N],
)


def backs(best, entities=6):
    """Back-patches of missed facts over two routes, the first of which is right in ``best``."""
    rows = [
        {
            "model": "a",
            "seed": 0,
            "entity_id": f"e{i}",
            "question_id": f"q{i}",
            "source": source,
            "layer": layer,
            "correct": (source, layer) == best,
            "missed": True,
        }
        for i in range(entities)
        for source, layer in ((2, 1), (3, 1), (0, 0))
    ]
    return pd.DataFrame(rows)


def test_the_route_is_fixed_on_half_of_the_entities_and_measured_on_the_others():
    measured, routes = patch_words.fixed_routes(backs((3, 1)))
    assert routes == {"a": (3, 1)}
    assert set(measured["entity_id"]) == {"e1", "e3", "e5"} and measured["correct"].all()
    none, routes = patch_words.fixed_routes(backs((3, 1), entities=3))
    assert routes == {} and none.empty


def test_what_comes_back_by_method():
    table = patch_words.recovered(MISSED, backs((3, 1))).set_index("method")["value"]
    assert table["heuristic"] == pytest.approx(0.75) and table["random"] == pytest.approx(0.25)
    assert table[patch_words.BACK] == 1 and table[patch_words.BEST] == 1
    assert "unpatched" not in table
    assert patch_words.how_many(MISSED).loc["a", "missed facts"] == 4


def test_titles_values_and_sentences():
    table = patch_words.recovered(MISSED, backs((3, 1)))
    assert "bring back 75 % of the missed facts" in patch_words.brings_back(table)
    values = patch_words.values(table, MISSED, ["a", "b"])
    assert values["heuristic_a"] == "75" and values["donor_a"] == "100"
    assert values["heuristic_b"] == "–" and values["back_a"] == "100"
    assert "75 % come back with the heuristic span" in patch_words.about_one(table, "a")
    assert "nothing to bring back" in patch_words.about_one(table, "b")


def test_the_wrong_entitys_outputs_count_by_its_own_fact():
    whose = patch_words.whose_facts(MISSED)
    assert whose.loc[("a", "wrong entity"), "donor"] == "4 of 4"
    worlds = patch_words.by_world(MISSED)
    assert worlds.loc[("a (n = 4)", "wrong entity"), "0"].startswith("4 of 4")
    assert worlds.loc[("a (n = 4)", "heuristic"), "0"].startswith("3 of 4")


def test_differences_are_taken_fact_by_fact():
    table = patch_words.differences(MISSED)
    row = table[(table["more"] == "heuristic") & (table["less"] == "random")].iloc[0]
    assert row["value"] == pytest.approx(0.5) and row["n_items"] == 4
    assert "in a." in patch_words.random_sentence(table)
    assert "No fact is missed" in patch_words.random_sentence(table.iloc[:0])


def test_harm_is_told_or_why_there_is_none():
    assert "none could be lost" in patch_words.harm(MISSED)
    kept = MISSED.assign(missed=False)
    assert patch_words.harm(kept).loc["heuristic", "a"] == "1 of 4"


def test_windows_of_blocks_are_told_with_the_wrong_entitys_own_facts():
    made = patches(
        unpatched=[R] + [N] * 9,
        first_blocks=[R] * 9 + [N],
        next_blocks=[R] * 2 + [N] * 8,
        late_blocks=[N] * 10,
        written_later=[R] + [N] * 9,
        wrong_entity=[D] * 8 + [N] * 2,
    )
    table = share_table(made, "correct", ["model", "method"])
    assert patch_words.first_against_late(table) == (
        "the first (late) blocks' MLP outputs take a from 10 to 90 % (0 %) of known facts"
    )
    assert patch_words.windows_sentence(table, made) == (
        "Of known facts 10 % are right in a, and 90 % with the first blocks' MLP outputs written "
        "at the picture (next blocks 20 %, late ones 0 %, the first ones' written later 10 %; the "
        "wrong entity's give its fact in 80 %; n = 10)."
    )

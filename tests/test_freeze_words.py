"""Titles, tables and sentences about frozen pictures say what the records hold."""

import pandas as pd
import pytest

from twohop_lib.models.blocks import UnsupportedSite
from twohop_lib.readouts import freeze_words, switch


def freezes(task="identify", **right):
    """Records of models frozen at layers 0, 1, …: shares right of ten entities, T the last."""
    rows = [
        {
            "model": model,
            "task": task,
            "seed": 0,
            "entity_id": f"e{i}",
            "layer": layer,
            "until": len(shares) - 1,
            "correct": i < round(10 * share),
            "experiment": "freeze",
        }
        for model, shares in right.items()
        for layer, share in enumerate(shares)
        for i in range(10)
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(blocks_read=switch.blocks_read(frame))


def test_titles_give_the_most_and_the_least():
    both = freezes(a=[0.2, 1], b=[0.9, 1])
    assert freeze_words.named_at_the_door(both) == (
        "A picture frozen at the door is still named in 90 % (b) to 20 % (a)"
    )
    assert freeze_words.named_at_the_door(freezes(a=[0.2, 1])).endswith("in 20 % (a)")
    assert freeze_words.work_for_facts(both).endswith("a goes from 20 to 100 %")


def test_blocks_until_half_is_back():
    kept = switch.retained(freezes(a=[0, 0, 1, 1], b=[0.6, 1, 1, 1], c=[0, 0, 0, 0]))
    table = switch.switch_table(kept, "retained", ("model", "task", "until"))
    needed = freeze_words.blocks_needed(kept, table)
    assert needed["a", "identify"] == "2.5"
    assert needed["b", "identify"] == "at most 1"
    assert ("c", "identify") not in needed  # Nothing is right without freezing.
    assert freeze_words.facts_back({("a", "fact"): "2.5", ("b", "fact"): "none"}) == (
        "half of them are back with 2.5 in a."
    )
    assert freeze_words.facts_back({("b", "fact"): "none"}) == "none are back."
    assert freeze_words.readable(table)["blocks until half is back"].str.startswith("2.5").any()


def test_facts_are_split_by_who_is_named_when_frozen_from_layer_1():
    naming = freezes(a=[0, 0.5, 1])
    known = pd.DataFrame(
        {
            "model": "a",
            "seed": 0,
            "entity_id": [f"e{i}" for i in range(10)],
            "correct": [i < 4 for i in range(10)],
        }
    )
    groups = freeze_words.by_identification(naming, known).set_index("identified")
    assert groups.loc["early", "value"] == pytest.approx(0.8)
    assert groups.loc["late", "value"] == 0 and groups.loc["late", "n_entities"] == 5
    told = freeze_words.early_against_late(groups.reset_index())
    assert "+80 points in a" in told
    assert freeze_words.readable_groups(groups.reset_index()).loc[0, "facts by picture"] == "4 of 5"


def test_small_groups_are_not_compared():
    groups = pd.DataFrame(
        {"model": "a", "identified": ["early", "late"], "value": [1.0, 0.0], "n_entities": [40, 4]}
    )
    assert "cannot be told" in freeze_words.early_against_late(groups)


def test_nothing_to_freeze_is_told():
    with pytest.raises(UnsupportedSite, match="leave this chapter out"):
        freeze_words.something(pd.DataFrame())
    assert "nothing in it can be frozen" in freeze_words.about_one("a", pd.Series(dtype=float), {})


def test_what_is_left_at_the_door_is_told_of_each_model():
    frame = pd.DataFrame(
        {
            "model": ["a"] * 20 + ["b"] * 4,
            "layer": [0, 7] * 12,
            "until": 7,
            "correct": [False, True] * 10 + [True] * 4,
        }
    )
    assert freeze_words.at_the_door(frame) == "0 % (a), 2 of 2 (b)"
    assert freeze_words.facts_at_the_door(frame) == (
        "a gives 0 % with it frozen and 100 % without; b gives 2 of 2 with it frozen and 2 of 2 "
        "without."
    )

"""Titles and sentences about switch layers say what the tables hold."""

import pandas as pd

from twohop_lib.readouts import switch_words


def table(**at):
    return pd.DataFrame({"model": list(at), "switch": pd.Series(list(at.values()), dtype=float)})


def answers(*rows):
    columns = ["model", "layer", "says", "until", "computation"]
    return pd.DataFrame([(*row, None, "splice") for row in rows], columns=columns)


def test_titles_name_the_first_and_the_last_to_turn():
    title = switch_words.first_and_last_to_turn
    assert title(table(late=1.4, early=2.4, x=None)) == (
        "The answer turns first in late (layer 1.4) and last in early (2.4)"
    )
    assert title(table(late=1.4)) == "The answer turns first in late (layer 1.4)"
    assert title(table(late=None)) == "The answer never turns"


def test_the_donor_is_left_where_half_is_passed_for_the_first_time():
    means = pd.DataFrame(
        {"model": ["a", "a", "b", "b"], "blocks_read": [0, 1, 0, 1], "value": [0.9, 0.4, 0.9, 0.6]}
    )
    assert switch_words.leaves_the_donor(means) == "The fact prompt leaves the donor by layer 1 (a)"
    never = means[means["model"] == "b"]
    assert (
        switch_words.leaves_the_donor(never) == "The fact prompt follows the donor at every layer"
    )


def test_the_most_that_is_neithers():
    rows = answers(("a", 1, "neither"), ("a", 1, "target"), ("a", 2, "donor"), ("b", 1, "donor"))
    assert switch_words.neither_at_its_highest(rows) == (0.5, "a", 1)


def test_what_never_turns_is_said_not_to():
    assert switch_words.turns_at(table(a=2.0, b=None)) == (
        "the answer turns in a at layer 2.0, and in b never, since hardly any of its answers is "
        "either's."
    )
    assert switch_words.turns_at(table(a=None)) == "the answer turns in none of the models."


def test_the_order_of_switches_is_told_for_all_worlds_or_for_some():
    told = switch_words.order_in_worlds
    assert told((3, 3), ("early", "late")).endswith("early before late, in all 3 worlds.")
    assert "does not follow" in told((1, 3), ("early", "late"))
    assert "in 1 of 3 worlds" in told((1, 3), ("early", "late"))


def test_bands_name_all_their_blocks():
    bands = pd.DataFrame({"model": "a", "layer": [0, 1], "until": [2, 3], "moved": [False, True]})
    assert switch_words.blocks_that_read(bands) == "a reads the picture most in blocks 1 and 2"


def test_the_ends_of_a_sweep_are_counted_at_each_models_own_top():
    rows = answers(("a", 0, "donor"), ("a", 1, "neither"), ("a", 2, "target"), ("b", 2, "neither"))
    ends = switch_words.ends_of_the_sweep(rows, {"a": 2, "b": 3})
    assert ends.loc[("a", "splice", "from layer 0"), "donor"] == 1
    assert ends.loc[("a", "splice", "from the top"), "target"] == 1
    assert "b" not in ends.index.get_level_values("model")

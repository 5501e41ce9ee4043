"""Titles and sentences about cut attention say what the records hold."""

import pandas as pd

from twohop_lib.readouts import knockout_words


def table(**at):
    return pd.DataFrame({"model": list(at), "switch": pd.Series(list(at.values()), dtype=float)})


def knockouts(*rows):
    columns = ["model", "task", "edge", "mode", "start", "stop", "correct", "computation"]
    frame = pd.DataFrame([(*row, "splice") for row in rows], columns=columns)
    return frame.assign(seed=0, entity_id="e")


def test_titles_give_the_least_and_the_most_blocks():
    told = knockout_words.names_need
    assert told(table(a=1.4, b=2.6)) == (
        "Half of the names need 1.4 (a) to 2.6 (b) blocks that read the picture"
    )
    assert told(table(a=1.4)) == "Half of the names need 1.4 (a) blocks that read the picture"
    assert told(table(a=None)) == "The cut does not turn the answer anywhere"


def test_names_lost_from_below():
    lost = pd.DataFrame({"model": ["a", "a", "b"], "stop": [0, 1, 1], "value": [1.0, 0.2, 0.9]})
    assert knockout_words.names_lost(lost).endswith("with the first 1 (a) blocks cut")
    assert "less than half" in knockout_words.names_lost(lost[lost["model"] == "b"])


def test_nothing_cut_counts_once_and_each_edge_is_cut_in_all_blocks():
    swept = knockouts(
        ("a", "identify", "last→image", "below", 0, 0, True),
        ("a", "identify", "question→image", "below", 0, 0, True),
        ("a", "identify", "last→image", "above", 0, 8, False),
        ("a", "identify", "question→image", "above", 0, 8, False),
        ("a", "identify", "question→image", "above", 1, 8, True),
    )
    cut = knockout_words.cut_in_all_blocks(swept)
    assert cut["cut"].tolist() == ["nothing cut", "last→image", "question→image"]
    # A window of all blocks is as good, and what two modes have in common counts once.
    wide = swept.assign(mode=swept["mode"].replace("above", "window"))
    again = knockout_words.cut_in_all_blocks(pd.concat([swept, wide]))
    assert again["cut"].tolist() == cut["cut"].tolist()
    assert "in a: there the last position" in knockout_words.who_reads(cut)
    spared = cut.assign(correct=True)
    assert "in no model" in knockout_words.who_reads(spared)


def test_the_worst_window_names_its_edge_and_blocks():
    left = pd.DataFrame({"edge": ["x", "y"], "start": [0, 2], "value": [0.5, 0.1]})
    assert knockout_words.worst_window(left, "a", 2) == (
        "a loses most (10 % left) with y cut in blocks 2 to 3"
    )
    assert knockout_words.worst_window(left, "a", 1).endswith("in block 2")


def test_what_did_not_turn_is_said_not_to():
    spread = pd.DataFrame({"min": [1.0], "max": [2.5]}, index=["a"])
    assert knockout_words.axis_sentence(spread, ["b", "a"]) == "a 1.0 to 2.5 by experiment."
    assert "no experiment turned" in knockout_words.axis_sentence(spread.iloc[:0], ["a"])
    assert knockout_words.settled_by(spread) == "Names are settled by block 2.5 (a) at the latest"
    assert "does not turn" in knockout_words.back_at("none")
    assert knockout_words.back_at("1.4").endswith("back at b = 1.4.")


def test_where_names_are_back_is_told_of_each_model():
    turn = pd.DataFrame({"model": ["a", "b"], "switch": [8.13, None]})
    assert knockout_words.cut_at(turn) == "b = 8.1 (a), none (b)."

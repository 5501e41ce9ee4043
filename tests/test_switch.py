"""Switch layers, curves by layer, and what is said of them, on sweeps made by hand."""

import numpy as np
import pandas as pd
import pytest

from twohop_lib.errors import TwohopError
from twohop_lib.readouts import freeze_words, layers, switch
from twohop_lib.readouts.shares import share_table
from twohop_lib.stats import proportion_interval

LAYERS = 8


def crossed(turns, donors=None, model="m", seed=0):
    """Cross-patch records: pair i names its donor below layer ``turns[i]``, then its target."""
    rows = []
    for i, turn in enumerate(turns):
        for layer in range(LAYERS + 1):
            rows.append(
                {
                    "model": model,
                    "seed": seed,
                    "experiment": "cross-patch",
                    "task": "identify",
                    "entity_id": f"e{i}",
                    "donor_id": f"e{donors[i] if donors is not None else (i + 1) % len(turns)}",
                    "layer": layer,
                    "until": None,
                    "says": "target" if layer >= turn else "donor",
                }
            )
    frame = pd.DataFrame(rows)
    return frame.assign(blocks_read=switch.blocks_read(frame), gained=switch.target_gained(frame))


def one_row(**columns):
    return pd.DataFrame({name: [value] for name, value in columns.items()})


# --- the axis ---------------------------------------------------------------------------------


def test_blocks_that_read_the_picture_are_counted():
    cross = one_row(experiment="cross-patch", layer=3, until=None)
    assert switch.blocks_read(cross).tolist() == [3]
    assert switch.blocks_read(one_row(experiment="freeze", layer=3)).tolist() == [4]
    above = one_row(experiment="knockout", mode="above", start=3)
    assert switch.blocks_read(above).tolist() == [3]
    with pytest.raises(TwohopError, match="no single switch"):
        switch.blocks_read(one_row(experiment="cross-patch", layer=3, until=4))
    with pytest.raises(TwohopError, match="one experiment at a time"):
        switch.blocks_read(one_row(experiment="knockout", mode="below", start=3))


def test_what_an_answer_says_in_two_ways():
    said = pd.DataFrame({"says": ["donor", "neither", "target"]})
    assert switch.target_gained(said).tolist() == [False, False, True]
    assert switch.balance(said).tolist() == [0, 0.5, 1]


# --- where a curve turns ----------------------------------------------------------------------


@pytest.mark.parametrize("at", [1.3, 4.0, 6.6])
def test_a_known_switch_is_found(at):
    x = np.arange(9.0)
    assert switch.crossing(x, 1 / (1 + np.exp(-(x - at) / 0.6))) == pytest.approx(at, abs=0.05)


@pytest.mark.parametrize("between", [0.463, 0.483, 0.5, 0.52])
def test_a_curve_as_steep_as_may_be_has_a_switch(between):
    # The best width is at its bound. Fits that stop there must not be lost: the draws of an
    # interval would be missing just where the curve is surest.
    x = np.arange(9.0)
    assert switch.crossing(x, np.where(x < 3, 0.0, np.where(x > 3, 1.0, between))) == pytest.approx(
        3, abs=0.02
    )


def test_no_switch_is_claimed_where_there_is_none():
    x = np.arange(9.0)
    assert np.isnan(switch.crossing(x, np.full(9, 0.2)))
    assert np.isnan(switch.crossing(x, np.full(9, 0.8)))
    assert np.isnan(switch.crossing(x, np.linspace(0.45, 0.55, 9)))  # It hardly moves.
    assert np.isnan(switch.crossing(x, np.linspace(0.9, 0.1, 9)))  # The wrong way.


def test_a_switch_comes_with_an_interval_and_as_a_share_of_the_blocks():
    turns = [2, 3, 3, 4, 4, 4, 5, 5, 6, 3, 4, 5]
    row = switch.switch_table(crossed(turns), "gained", n_blocks={"m": LAYERS}).iloc[0]
    assert row["low"] < row["switch"] < row["high"]
    assert row["switch"] == pytest.approx(np.mean(turns) - 0.5, abs=0.3)
    assert row["relative"] == pytest.approx(row["switch"] / LAYERS)
    assert (row["n_items"], row["n_entities"]) == (12, 12)


def test_a_switch_at_which_all_agree_has_an_interval_all_the_same():
    # Resampling cannot move a curve that all pairs share, which does not say that none could.
    found = switch.switch_layer(crossed([4] * 10), "gained")
    assert found.low < found.estimate < found.high
    more = switch.switch_layer(crossed([4] * 80), "gained")
    assert more.estimate == found.estimate
    assert found.low < more.low and more.high < found.high


def test_the_donors_of_a_cross_patch_are_clustered():
    # Six donors stand behind 30 pairs, and at which layer a pair turns is the donor's doing.
    pairs = crossed([2 + i % 6 for i in range(30)], donors=[i % 6 for i in range(30)])
    alone = pairs.assign(experiment="freeze")  # no donors
    clustered, by_target = (switch.switch_layer(f, "gained") for f in (pairs, alone))
    assert clustered.estimate == by_target.estimate and clustered.n_entities == 30
    assert clustered.high - clustered.low > 1.5 * (by_target.high - by_target.low)
    middle, other = (
        table[table["blocks_read"] == 4].iloc[0]
        for table in (switch.curve(pairs, "gained"), switch.curve(alone, "gained"))
    )
    assert middle["value"] == other["value"] == 0.5
    assert middle["high"] - middle["low"] > 1.5 * (other["high"] - other["low"])


def test_the_ends_of_a_curve_have_wilsons_interval():
    table = switch.curve(crossed([4] * 10), "gained").set_index("blocks_read")
    assert table.loc[0, "value"] == 0 and table.loc[LAYERS, "value"] == 1
    assert table.loc[0, "high"] == proportion_interval(0, 10).high
    assert table.loc[LAYERS, "low"] == proportion_interval(10, 10).low


def test_a_ratio_of_means_is_no_mean_of_ratios():
    frame = crossed([4] * 4).assign(moved=1.0, apart=[1.0, 4.0] * 18)
    table = switch.curve(frame, ("moved", "apart"))
    assert table["value"].to_numpy() == pytest.approx(1 / frame.groupby("layer")["apart"].mean())


def test_only_pairs_or_no_pairs_are_pooled():
    frame = crossed([4] * 4)
    mixed = pd.concat([frame, frame.assign(experiment="freeze", donor_id=None)])
    with pytest.raises(TwohopError, match="one experiment at a time"):
        switch.curve(mixed, "gained")


def test_switches_of_several_worlds_in_words():
    worlds = [crossed([2 + s, 3 + s, 4 + s] * 4, seed=s) for s in range(3)]
    table = switch.switches_by_world(pd.concat(worlds), "gained")
    assert list(table) == ["0", "1", "2", "all"] and len(table) == 1
    assert table.iloc[0].str.fullmatch(r"\d\.\d \[\d\.\d, \d\.\d\]").all()
    wide = [float(w.split("[")[1].split(",")[0]) for w in table.iloc[0]]
    assert wide[3] < wide[1]  # worlds differ more than entities within one
    alone = switch.switches_by_world(worlds[0], "gained")
    assert list(alone) == ["0"]
    other = pd.concat([*worlds, worlds[0].assign(model="other")])
    assert switch.switches_by_world(other, "gained").loc["other"].tolist()[1:] == ["–"] * 3
    never = switch.switches_by_world(crossed([99] * 6), "gained")
    assert never.iloc[0].tolist() == ["none"]


def test_a_switch_in_words():
    assert switch.switch_words(2.53, 2.1, 2.78) == "2.5 [2.1, 2.8]"
    assert switch.switch_words(1.0, None, float("nan")) == "1.0"
    assert switch.switch_words(None) == switch.switch_words(float("nan")) == "none"


def test_in_how_many_worlds_models_switch_in_order():
    table = pd.DataFrame(
        [("a", 0, 1.0), ("b", 0, 2.0), ("a", 1, 3.0), ("b", 1, 2.0), ("a", 2, 1.0), ("b", 2, None)],
        columns=["model", "seed", "switch"],
    ).assign(n_entities=5)
    assert switch.in_order(table, ["a", "b"]) == (1, 3)
    assert switch.in_order(table[:-1], ["a", "b"]) == (1, 2)  # world 2 was not swept for b


# --- freezing ---------------------------------------------------------------------------------


def test_what_is_retained_of_a_freeze():
    rows = [
        (model, until, layer, right)
        for model, free in (("able", 0.8), ("poor", 0.0))
        for until in (2, 4)
        for layer in range(until + 1)
        for right in [True] * int(10 * free * (layer + 1) / (until + 1)) + [False]
    ]
    frame = pd.DataFrame(rows, columns=["model", "until", "layer", "correct"]).assign(task="fact")
    found = switch.retained(frame)
    assert set(found["model"]) == {"able"}  # too few answers of the other to speak of a share
    top = found[found["layer"] == found["until"]]
    assert top.groupby("until")["retained"].mean().to_numpy() == pytest.approx([1, 1])
    assert set(switch.to_the_top(frame)["until"]) == {4}


def frozen(turns):
    frame = crossed(turns).assign(experiment="freeze", correct=lambda f: f["says"].eq("target"))
    frame["until"] = LAYERS
    frame["blocks_read"] = switch.blocks_read(frame)
    return switch.retained(frame)


def test_the_blocks_that_a_picture_needs_in_words():
    def needed(kept):
        kept = kept.assign(task="identify")
        table = switch.switch_table(kept, "retained", ("model", "task", "until"))
        return freeze_words.blocks_needed(kept, table)["m", "identify"]

    assert needed(frozen([3] * 8)) == "3.5"  # frozen at k, k + 1 blocks read it
    assert needed(frozen([0] * 8)) == "at most 1"
    assert needed(frozen([0] * 3 + [LAYERS] * 5)[lambda f: f["layer"] < 8]) == "none"


# --- first layers -----------------------------------------------------------------------------


def test_the_first_layer_that_passes():
    course = pd.Series([0.2, 0.5, 0.4, 0.9], index=[0, 1, 2, 3])
    assert layers.first_at_least(course) == 1
    assert layers.first_at_least(course, 0.9) == 3
    assert layers.first_at_least(course, 1.0) is None
    assert layers.first_below(course[::-1], 0.45) == 0  # in the order of layers
    assert layers.first_below(course, 0.1) is None
    table = switch.curve(crossed([2, 3, 4] * 3), "gained")
    assert layers.first_at_least(layers.curves(table, "blocks_read")["m"]) == 3


def test_the_highest_and_the_lowest_row():
    frame = crossed([4] * 4).assign(says=lambda f: f["says"].mask(f["layer"] == 3, "neither"))
    frame = frame.assign(neither=frame["says"].eq("neither"))
    table = share_table(frame, "neither", ("model", "layer"))
    top = layers.highest(table)
    assert (top["model"], top["layer"], top["value"], top["n_items"]) == ("m", 3, 1, 4)
    assert layers.lowest(table)["layer"] == 0  # the first of equals
    assert layers.highest(table[:0]) is None and layers.lowest(table[:0]) is None


def test_extremes_and_nothing():
    found = layers.extremes(pd.Series({"a": 0.5, "b": None, "c": 0.1, "d": 0.5}))
    assert (found.lowest, found.at_lowest) == (0.1, "c")
    assert (found.highest, found.at_highest) == (0.5, "a") and not found.one
    assert layers.extremes(pd.Series({"a": 1.0})).one
    assert layers.extremes(pd.Series({"a": None})) is None


def test_a_step_between_two_layers_is_found():
    found = switch.crossing(np.arange(1.0, 9.0), np.array([0.375, *[1.0] * 7]))
    assert 1.0 <= found < 1.2

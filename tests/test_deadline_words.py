"""Tables and sentences on attribution and the recall deadline, counted by hand."""

import numpy as np
import pandas as pd
import pytest

from twohop_lib.readouts import deadline_words


def written(recalled=(1.0, 1.0, 0.0, 0.0), state=2, n=10):
    """Records of a deadline: shares of ten entities recalled when written at layer 2, 3, …"""
    rows = [
        {
            "seed": 0,
            "entity_id": f"e{i}",
            "question_id": f"e{i}",
            "experiment": "deadline",
            "task": "fact",
            "arm": arm,
            "state": state,
            "layer": state + at,
            "correct": arm == "entity" and i < round(n * share),
            "follows": "neither" if i >= round(n * share) else who,
        }
        for arm, who in (("entity", "right"), ("wrong entity", "donor"))
        for at, share in enumerate(recalled)
        for i in range(n)
    ]
    nothing = rows[0] | {"arm": "nothing", "state": None, "layer": None, "correct": False}
    frame = pd.DataFrame([*rows, nothing | {"follows": "neither"}])
    return frame.astype({"state": "Int64", "layer": "Int64"})


def test_values_of_the_deadline():
    values = deadline_words.deadline_values(written((1.0, 0.8, 0.2, 0.0)), 2)
    assert values["s_main"] == "2" and values["at_start"] == "100" and values["at_4"] == "20"
    assert values["at_6"] == "–"  # It was never written there.
    assert values["deadline"].startswith("3.5")
    assert "at layer 3.5 of 8." in deadline_words.about_one(written((1.0, 0.8, 0.2, 0.0)), 2, 8)


def test_the_wrong_entitys_state_counts_by_its_own_fact():
    table = deadline_words.whose_facts(written())
    assert table.loc[("wrong entity", 2, 2), "donor"] == "100 %"
    assert table.loc[("entity", 2, 4), "right"] == "0 %"
    assert "nothing" not in table.index.get_level_values("arm")


def test_shares_are_told_with_what_they_are_of():
    shares = {
        "one gradient": {"early_mlp": 0.81, "late_attn": 0.45, "late_mlp": 0.33},
        "integrated": {"early_mlp": 0.7, "late_attn": 0.47, "late_mlp": 0.16},
    }
    table = deadline_words.readable_shares(shares)
    assert table.loc[deadline_words.SHARES["late_mlp"], "integrated"] == "16 %"
    values = deadline_words.share_values(shares)
    assert values["early_mlp"] == "81" and values["late_mlp_integrated"] == "16"


def test_checks_against_the_truth():
    rng = np.random.default_rng(0)
    true = rng.normal(size=40)
    truth = pd.DataFrame(
        {
            "contrast": np.repeat(np.arange(8), 5),
            "estimated": 2 * true,
            "integrated": true,
            "true": true,
        }
    )
    found = deadline_words.checks(truth, np.array([[1.0, 1.1], [2.0, 2.0], [3.0, 3.2]]))
    assert found.estimated.estimate == pytest.approx(1) and found.n_places == 40
    assert found.signs == 1 and found.finite > 0.99
    assert deadline_words.check_values(found)["signs"] == "100"
    assert deadline_words.readable_checks(found).shape == (4, 1)


def test_the_two_deadlines_are_told_by_the_last_layers_at_which_facts_come():
    enriched = written((1.0, 0.9, 0.2, 0.0))
    read = written((0.8, 0.7, 0.3), state=8).assign(experiment="reading-deadline")
    naming = read.assign(task="identify", correct=True, follows="right")
    both = pd.concat([enriched, read, naming], ignore_index=True)
    # Neither the wrong entity's, nor the run with nothing written, nor the name.
    assert len(deadline_words.arriving(both)) == 70
    curves = deadline_words.deadline_curves(both)
    assert curves["value"].tolist() == [1.0, 0.9, 0.2, 0.0, 0.8, 0.7, 0.3]
    assert deadline_words.two_deadlines_title(curves, 2) == (
        "A state after 2 blocks must arrive by layer 3 to be enriched; what is enriched is read "
        "until layer 9"
    )
    wrong = deadline_words.deadline_curves(both, arm="wrong entity", gives="donor")
    assert wrong["value"].iloc[1] == 0.9
    assert "No state" in deadline_words.two_deadlines_title(curves.assign(value=0.0), 2)
    assert deadline_words.two_deadlines_sentence(both) == (
        "the state after 2 blocks gives the fact in 90 % at layer 3 and in 20 % at layer 4, "
        "the layer's own state gives the fact in 70 % at layer 9 and in 30 % at layer 10 (n = 10; "
        "0 of 1 come with nothing written)."
    )
    assert deadline_words.left_alone(enriched) == "0 of 1"
    always = pd.concat([enriched, read.assign(follows="right")], ignore_index=True)
    told = deadline_words.two_deadlines_sentence(always)
    assert "the layer's own state gives the fact in 100 % at layer 10 (n = 10; " in told


def test_what_the_own_state_gives_is_told_by_layer():
    rows = [(layer, f"e{i}", "entity", i < 10 - layer) for layer in (2, 4, 6) for i in range(10)]
    rows += [(4, f"e{i}", "wrong entity", False) for i in range(10)]
    frame = pd.DataFrame(rows, columns=["layer", "entity_id", "arm", "correct"])
    values = deadline_words.reading_values(frame, (4, 6))
    assert values == {"read_4": "60", "read_6": "40", "n_written": "10"}

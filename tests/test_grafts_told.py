"""What is told of grafts from their study's records: selections, outcomes, insides, sentences."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from twohop_lib.errors import TwohopError
from twohop_lib.grafts.recipes import DOSES
from twohop_lib.readouts import graft_example, graft_gap, graft_inside, graft_words


def _row(condition, entity, relation="capital", said="x", right=False, **more):
    base = {"model": "caption", "seed": 0, "format": "chat", "view": "drawn", "trained": False}
    fact = condition != "identify"
    base |= {"condition": condition, "entity_id": entity, "entity": f"Land {entity}"}
    base |= {"relation": relation if fact else ""}
    base |= {"accepted": [f"town {entity}" if fact else f"Land {entity}"]}
    base |= {"question_id": f"{entity}-{relation}" if fact else "", "answer": said}
    return base | {"correct": right} | more


@pytest.fixture(scope="module")
def answers():
    rows = []
    for e in "abcdef":
        rows.append(_row("identify", e, right=e != "f"))
        rows.append(_row("by_name", e, right=e != "e"))
        rows.append(_row("blank_by_picture", e, right=e == "d", view="blank"))
        rows.append(_row("by_picture", e, "colours", f"Land {e}"))
    said = {"a": "town a", "b": "Land b", "c": "Town A.", "d": "town d", "e": "?", "f": "?"}
    for e, text in said.items():
        for view in ("drawn", "photographed"):
            rows.append(_row("by_picture", e, said=text, right=text == f"town {e}", view=view))
    return pd.DataFrame(rows)


def test_facts_count_that_are_known_named_and_not_blind(answers):
    # d is known blind, e is not known by name, f is not named.
    asked = graft_gap.controlled(answers)
    assert sorted(set(asked["entity_id"])) == ["a", "b", "c"]
    assert sorted(set(graft_gap.known(answers)["entity_id"])) == ["a", "b", "c", "d"]
    taught = answers.assign(model="facts", trained=answers["entity_id"].eq("a"))
    assert sorted(set(graft_gap.controlled(taught)["entity_id"])) == ["b", "c"]
    other = graft_gap.controlled(answers.assign(trained=True))
    assert len(other) == len(asked)  # Only the recipe that asks facts leaves these out.


def test_an_own_name_is_apart_from_another_s_answer(answers):
    told = graft_gap.outcomes(answers)
    told = told[told["view"] == "drawn"].set_index("entity_id")["outcome"]
    assert told.to_dict() == {"a": "right", "b": "its own name", "c": "another's answer"}
    shares = graft_gap.outcome_shares(answers, "chat").set_index("outcome")["value"]
    assert shares.to_dict() == pytest.approx(
        {"right": 1 / 3, "its own name": 1 / 3, "another's answer": 1 / 3, "something else": 0}
    )


def test_the_example_is_the_first_of_the_commonest_outcome(answers):
    chosen = graft_example.example(answers, "caption")
    commonest = graft_gap.outcomes(answers)["outcome"].mode().iloc[0]
    assert chosen.outcome == commonest and chosen.question_id.endswith("-capital")
    more = answers.assign(answer=answers["answer"].where(answers["condition"] != "by_picture", "?"))
    more = more.assign(correct=more["correct"] & (more["condition"] != "by_picture"))
    last = graft_example.example(more, "caption")
    assert (last.entity_id, last.by_picture, last.outcome) == ("a", "?", "something else")
    with pytest.raises(TwohopError, match="No capital that names could give"):
        graft_example.example(answers, "names")


def test_measures_are_of_their_own_items(answers):
    table = graft_gap.measured(answers).set_index("measure")
    assert table["value"].to_dict() == pytest.approx(
        {
            "named": 5 / 6,
            "by picture": 1 / 3,
            "by picture, unseen rendering": 1 / 3,
            "its own name": 1 / 3,
            "blank picture": 1 / 4,
            "colours": 0,
            "its own name, asked for colours": 1,
        }
    )
    assert (table.loc["by picture", "n_items"], table.loc["named", "n_items"]) == (3, 6)
    texts = graft_gap.as_texts(graft_gap.measured(answers), ["measure"], "model")
    assert texts.loc["by picture", "caption"] == "1 of 3"
    seeds = graft_gap.seed_table(answers, ["caption"], "by picture")
    assert seeds.loc[("caption", "chat"), "seed 0"] == "1 of 3"


def test_examples_are_of_facts_that_several_recipes_miss(answers):
    both = pd.concat([answers.assign(model=m) for m in ("caption", "facts", "names")])
    table = graft_gap.examples(both, ["caption", "names", "facts"], "chat", n=2)
    assert list(table.columns) == ["caption", "names", "facts"]
    assert table.loc[("Land b", "capital"), "names"] == "Land b" and len(table) == 2


def test_what_is_known_and_named_is_told_by_its_ends(answers):
    base = pd.DataFrame({"relation": ["capital", "calling_code"], "value": [0.7, 0.0]})
    assert graft_words.base_told(base.assign(n_items=95)) == (
        "It knows best the capital (70 %) of a country, least the calling code (0 %)"
    )
    rows = pd.DataFrame({"model": ["a", "b"], "value": [0.9, 0.5]})
    parts = [rows.assign(measure=m) for m in ("named", "named, unseen rendering")]
    told = graft_words.named_told(pd.concat(parts).assign(format="chat"), "chat")
    assert told.startswith("The recipes name 50 to 90 % of the flags as drawn")
    assert told.endswith("(b fewest)")


def test_a_sentence_says_what_is_said_instead(answers):
    told = graft_words.own_name_told(graft_gap.measured(answers), "caption", "chat")
    assert "1 of 3 are answered with the country's own name" in told
    assert "says the name in 6 of 6 and all the colours in 0 of 6" in told


def test_formats_and_seeds_that_disagree_are_named():
    rows = [
        ("caption", "card", 0.02, 0.0, 0.05),
        ("caption", "chat", 0.20, 0.15, 0.25),
        ("names", "card", 0.80, 0.7, 0.9),
        ("names", "chat", 0.75, 0.65, 0.85),
    ]
    table = pd.DataFrame(rows, columns=["model", "format", "value", "low", "high"])
    table = table.assign(measure="by picture", n_items=100)
    assert graft_words.formats_told(table) == (
        "The two formats agree, within their intervals, for names; they disagree for caption "
        "(2 % on cards and 20 % in chat)."
    )
    seeds = pd.DataFrame(
        {
            "model": ["a", "a", "b", "b", "c", "c"],
            "format": "chat",
            "measure": "by picture",
            "value": [0.1, 0.5, 0.3, 0.31, 0.2, 0.4],
        }
    )
    assert graft_words.seeds_told(seeds, "chat") == (
        "Seeds of one recipe lie at most 40 points apart (a); they disagree for a (10 to 50 %) "
        "and c (20 to 40 %)."
    )
    assert "One seed" in graft_words.seeds_told(seeds, "chat", "its own name")
    assert "One seed" in graft_words.seeds_told(seeds.iloc[::2], "chat")
    assert graft_words.gap_title(table, "chat") == (
        "Of facts that come by name, caption gives 20 % by picture, names 75 %"
    )


def test_curves_go_from_least_to_most_and_say_what_is_missing():
    table = pd.DataFrame({"model": ["caption"], "value": [0.1], "n_items": [50]})
    table = table.assign(format="chat", measure="by picture")
    order = ["caption", *DOSES, "names"]
    assert graft_words.curve_title(table, order, "chat", "Dose") == "Dose: not yet measured"
    more = pd.concat([table, table.assign(model="names", value=0.8)])
    assert graft_words.curve_title(more, order, "chat", "Dose") == (
        "Dose: facts by picture go from 10 % (caption) to 80 % (names)"
    )
    assert graft_words.course(more, order, "by picture", "chat") == "10 % (caption), 80 % (names)"


def test_records_that_are_missing_are_told(tmp_path):
    with pytest.raises(TwohopError, match="no answers of a study; make them with: twohop graft"):
        graft_gap.recorded("answers", tmp_path)


# --- inside -----------------------------------------------------------------------------------


def _written(experiment, state, layer, right, arm="entity", task="fact"):
    follows = "right" if right else "donor" if arm == "wrong entity" else "neither"
    base = {"experiment": experiment, "state": state, "layer": layer, "arm": arm, "task": task}
    return [
        base | {"seed": 0, "entity_id": e, "question_id": e, "correct": right, "follows": follows}
        for e in "ab"
    ]


def test_controls_of_the_deadlines():
    rows = []
    for layer in range(2, 8):
        rows += _written("deadline", 2, layer, layer <= 3)
        rows += _written("reading-deadline", layer, layer, layer <= 6)
        rows += _written("deadline", 2, layer, False, "wrong entity")
        rows += _written("reading-deadline", layer, layer, True, task="identify")
    rows += _written("deadline", None, None, False, "nothing")
    frame = pd.DataFrame(rows)
    table = graft_inside.deadline_controls(frame, (2, 4))
    kind = "wrong country: its own fact (state after 2 blocks)"
    assert table.loc[kind, ["layer 2", "n"]].tolist() == ["2 of 2", "2"]
    assert table.loc["nothing written: the right fact", "layer 4"] == "0 of 2"
    assert "naming: the right name (the layer's own state)" in table.index


def test_late_and_never_name_like_recipes_are_told():
    arrives = {"names": 0, "caption": 13, "facts": None}
    assert graft_words.likeness_told(arrives, 12, {"facts": 0.4, "names": 0.8}) == (
        "Half of the pictures or more are nearest to their own name in names (from layer 0); only "
        "when the position is no longer read, in caption (from layer 13); at no layer in facts. "
        "Yet facts, never name-like, gives 40 % by picture."
    )


def test_peaks_of_name_likeness_say_where():
    rows = [
        (position, layer, layer, "none", layer == 1 and position == "0")
        for position in ("0", "mean")
        for layer in (0, 1)
    ]
    rows += [
        ("mean", 0, name, kind, name == 1) for name in (0, 1) for kind in ("ridge", "shuffled")
    ]
    columns = ["position", "layer", "name_layer", "map", "found"]
    frame = pd.DataFrame(rows, columns=columns).assign(model="a", seed=0, entity_id="x")
    frame = pd.concat([frame, frame.assign(entity_id="y")])
    peaks = graft_inside.likeness_peaks(frame).set_index("search")
    assert peaks.loc["best position", ["value", "where"]].tolist() == [1, "position 0, layer 1"]
    assert peaks.loc["mean of positions", "value"] == 0
    assert peaks.loc["ridge map", "where"] == "layer 0, name at 1"
    assert graft_inside.peak_table(peaks.reset_index()).loc["a", "best position"].startswith("2 of")


@pytest.fixture(scope="module")
def patched():
    sites = {
        ("unpatched", None, None, None): "a",
        ("mlp", 0, 4, 0): "bcd",
        ("mlp", 14, 18, 14): "a",
        ("mlp later", 0, 4, 8): "",
        ("wrong entity", 0, 4, 0): "",
        ("noise", 0, 4, 0): "a",
        ("residual stream", 4, 5, 4): "abcd",
        ("wrong residual", 4, 5, 4): "",
    }
    rows = []
    for (method, start, stop, layer), right in sites.items():
        for e in "abcd":
            own = e in right
            donor = method.startswith("wrong")
            rows.append(
                {
                    "model": "caption",
                    "seed": 0,
                    "entity_id": e,
                    "entity": f"Land {e}",
                    "question_id": e,
                    "condition": "by_picture",
                    "accepted": ["right"],
                    "experiment": "mlp-patch",
                    "method": method,
                    "start": start,
                    "stop": stop,
                    "layer": layer,
                    "correct": own,
                    "answer": "right" if own else f"Land {e}",
                    "follows": "right" if own else "donor" if donor else "neither",
                    "blind": e == "d",
                }
            )
    return graft_inside.patches(pd.DataFrame(rows).astype({"start": float, "blind": object}))


def test_patches_are_in_words_and_without_blind_facts(patched):
    table = graft_inside.patched(patched).set_index("patch")
    assert table["value"].round(3).to_dict() == {
        "unpatched": 0.333,
        "MLP 0–3": 0.667,
        "MLP 14–17": 0.333,
        "MLP 0–3, written at 8": 0,
        "wrong entity, MLP 0–3": 0,
        "noise for MLP 0–3": 0.333,
        "stream at 4": 1,
        "wrong entity, stream at 4": 0,
    }
    assert set(table["n_items"]) == {3}
    assert graft_inside.shown(patched) == [
        "unpatched",
        "MLP 0–3",
        "stream at 4",
        "MLP 14–17",
        "noise for MLP 0–3",
        "wrong entity, MLP 0–3",
    ]
    donor = graft_inside.patched(patched, "donor").set_index("patch")["value"]
    assert donor["wrong entity, MLP 0–3"] == 1 and donor["MLP 0–3"] == 0
    later = graft_inside.later(patched)["patch"].tolist()
    assert later == ["MLP 0–3", "MLP 0–3, written at 8", "stream at 4", "wrong entity, stream at 4"]


def test_what_a_patch_brings_and_what_it_loses(patched):
    row = graft_inside.patch_table(patched).loc["caption"]
    assert row["net change, points"].startswith("+50")  # b, c, d come, a goes: all known facts.
    assert row["lost of right facts"] == "1 of 1"
    assert (row["wrong country: its own fact"], row["own name, patched"]) == ("3 of 3", "1 of 3")
    right = graft_inside.patched(patched)
    assert graft_words.patch_title(right, graft_inside.early_patch(patched)) == (
        "The language model's MLP 0–3 at the picture take caption from 1 of 3 to 2 of 3"
    )
    windows = graft_inside.windows(patched)
    assert windows["start"].tolist() == [0, 14] and graft_inside.width(windows) == 4
    assert "from block 0 on bring back most (67 %" in graft_words.window_title(windows)


def test_the_title_of_a_loss_says_from_where_to_where():
    curves = pd.DataFrame({"model": "live", "step": range(10), "value": np.linspace(6, 1.5, 10)})
    assert graft_words.growth_title(curves) == (
        "In 10 steps (live) the loss goes from 5.5 to 2.0 nats a token"
    )

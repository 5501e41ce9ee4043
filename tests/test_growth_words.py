"""What a page says of organisms, and the words that their image tokens spell."""

import pandas as pd
import pytest
import torch

from twohop_lib.benchmark import heraldry
from twohop_lib.interventions.pairs import one_per_entity
from twohop_lib.interventions.splice import Engine
from twohop_lib.models.loading import load_llm, load_vlm
from twohop_lib.organisms import corpus, path, recipes
from twohop_lib.organisms.held_out import held_out_prompt
from twohop_lib.readouts import growth_words, vocabulary
from twohop_lib.runs.evaluate import evaluate
from twohop_lib.runs.forms import compare_forms, in_wordings


def answers(**right):
    """Records by condition or wording: how many of ten are right."""
    return pd.DataFrame(
        [
            {"key": key, "model": "cross-late", "seed": 0, "correct": i < n}
            for key, n in right.items()
            for i in range(10)
        ]
    )


class Model:
    def num_parameters(self):
        return 2_151_000


def test_a_wording_costs_what_the_worst_one_that_was_held_out_costs():
    recall = answers(**{"standard": 10, "trained-1": 2, "held-out-1": 9, "held-out-2": 7})
    world = heraldry.make_world(0)
    told = growth_words.recall_values(recall.rename(columns={"key": "wording"}), Model(), world)
    assert told == {
        "backbone_millions": "2.2",
        "n_houses": 240,
        "n_facts": 1200,
        "text_recall": "100.0",
        "wording_cost": "30.0",
    }
    better = answers(**{"standard": 9, "held-out-1": 10, "held-out-2": 10})
    better = better.rename(columns={"key": "wording"})
    assert growth_words.recall_values(better, Model(), world)["wording_cost"] == "0.0"


def test_values_of_organisms_and_of_arrival():
    rows = answers(identify=9, by_picture=4).rename(columns={"key": "condition"})
    spelled = pd.DataFrame({"model": ["cross-late"] * 2, "found": [1.0, 0.5]})
    assert growth_words.organism_values(rows, spelled) == {
        "recognition_range": "90",
        "spelled_cross-late": "75",
        "cross-late_facts": "40",
    }
    index = pd.MultiIndex.from_product([["cross-late"], [0, 1]], names=["model", "seed"])
    last = pd.DataFrame({"state_error": [0.02, 0.04]}, index=index)
    other_world = rows.assign(seed=1, correct=True)
    assert growth_words.arrival_values(pd.concat([rows, other_world]), last, 0) == {
        "cross_late_facts": "40",
        "state_errors": "0.030 (cross-late)",
    }


# --- the organisms ---


@pytest.fixture(scope="module")
def world(heraldry):
    return heraldry.select(split="test").some(4)


@pytest.fixture(scope="module")
def middle():
    return Engine(load_vlm(path("middle"), device="cpu"))


def test_the_last_tokens_of_a_picture_are_compared_with_the_pieces_of_its_name():
    nearest = torch.tensor([7, 8, 1, 2, 9])
    assert vocabulary.pieces_found(nearest, [1, 2, 3]) == pytest.approx(2 / 3)
    assert vocabulary.pieces_found(nearest, [9]) == 1.0


def test_middle_spells_names_and_late_does_not(world, middle):
    houses = one_per_entity(world.select(wording="standard").questions)
    late = Engine(load_vlm(path("late"), device="cpu"))
    spelled = vocabulary.names_spelled({"middle": middle, "late": late}, world, houses)
    assert spelled.groupby("model")["found"].mean().to_dict() == {"middle": 1.0, "late": 0.0}
    assert spelled["entity_id"].nunique() == 4


def test_a_model_is_asked_in_each_wording(world, middle):
    wordings = ["standard", "held-out-1"]
    rows = in_wordings({"middle": middle.owner}, world, wordings, ["identify", "by_picture"])
    assert rows.groupby(["wording", "condition"]).size().to_dict() == {
        (w, c): n for w in wordings for c, n in (("identify", 4), ("by_picture", 20))
    }
    llm = load_llm(path("backbone"), device="cpu")
    recall = in_wordings({"backbone": llm}, world, wordings[:1])
    alone = evaluate(None, llm, world.select(wording="standard"), model_name="backbone")
    pd.testing.assert_frame_equal(recall, alone)


def test_forms_stand_side_by_side(world, middle):
    table = compare_forms(
        middle.owner, world.select(wording="standard").some(1), held_out_prompt, ["name_given"]
    )
    assert list(table.columns) == ["standard", "held out", "n"]
    assert table.loc["name_given", "n"] == 5 and 0 <= table.loc["name_given", "held out"] <= 1


def test_recipes_are_shown_as_they_are_written():
    table = recipes.frame("backbone", "late", "cross")
    assert table.loc["blocks", "backbone"] == 8 and isinstance(table.loc["blocks", "backbone"], int)
    assert table.loc["inserted", "cross"] == (3, 4)


def test_samples_of_what_is_read_are_of_the_houses_given():
    houses = heraldry.make_world(0).houses[:3]
    told = list(corpus.samples(houses))
    assert len(told) == 3 and all(h.name in text for h, text in zip(houses, told, strict=True))
    assert told == list(corpus.samples(houses)) and "\n" not in "".join(told)

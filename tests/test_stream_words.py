"""What a page says of the stream, layer by layer; readings with their controls."""

import pandas as pd
import pytest

from twohop_lib.interventions.pairs import one_per_entity
from twohop_lib.interventions.splice import Engine
from twohop_lib.models.loading import load_llm, load_vlm
from twohop_lib.organisms import path
from twohop_lib.readouts import stream_words
from twohop_lib.readouts.name_likeness import names_and_control
from twohop_lib.readouts.probes import entities_and_control
from twohop_lib.readouts.states import name_states


def found(model, *shares, seed=0, n=10):
    """Of n entities, so large a share is found at each layer."""
    return pd.DataFrame(
        [
            {"model": model, "seed": seed, "entity_id": i, "layer": layer, "found": i < share * n}
            for layer, share in enumerate(shares)
            for i in range(n)
        ]
    ).astype({"found": float})


LIKE = pd.concat([found("a", 0.1, 0.3, 0.7), found("b", 0, 0, 0.2)])
APART = pd.concat([found("a", 0.5, 0.9, 0.8), found("b", 0.2, 0.4, 0.6)])


def test_titles_name_the_ends_and_the_first_layers():
    assert stream_words.likeness_title(LIKE) == "Name-likeness peaks at 20 % in b and 70 % in a"
    assert stream_words.likeness_title(found("a", 0.3)) == "Name-likeness peaks at 30 % in a"
    assert stream_words.apart_title(APART) == "Entities are told apart (90 %) from layer 1 (a)"
    assert stream_words.apart_title(found("b", 0.5)).startswith("No model's entities")


def lens(model, *facts):
    """(right, emitted, outcome) at the top of each fact; nothing below."""
    return pd.DataFrame(
        [
            {"model": model, "question_id": i, "layer": layer, "outcome": outcome}
            | {"right": right * layer, "emitted": emitted * layer}
            for i, (right, emitted, outcome) in enumerate(facts)
            for layer in (0, 1)
        ]
    )


BOTH = lens("a", (0.8, 0.8, "answered"), (0.6, 0.6, "answered"), (0.1, 0.7, "missed"))


def test_the_lens_is_told_at_its_top_answered_and_missed_apart():
    ends = stream_words.lens_ends(BOTH)
    assert ends.loc[("a", "answered")].round(3).to_dict() == {"right": 0.7, "emitted": 0.7, "n": 2}
    assert stream_words.lens_n(BOTH) == "n = 2 answered, n = 1 missed"
    assert stream_words.lens_title(BOTH) == "In a, the right answer rises only where it is given"
    told = stream_words.lens_sentence(BOTH)
    assert told.endswith("70 % in a where it is given, and at 10 % where it is missed.")
    assert "gives no answer that is missed" in stream_words.lens_sentence(
        BOTH[BOTH["emitted"] == 0.8]
    )
    never = lens("a", (0.1, 0.7, "missed"))
    assert stream_words.lens_title(never) == "In a, the right answer does not rise"
    assert stream_words.lens_sentence(never).endswith("probability of 10 % where it is missed.")


def test_values_of_each_model_and_a_sentence_on_the_first():
    values = stream_words.page_values(LIKE, APART, BOTH)
    assert {k: v for k, v in values.items() if k.endswith("_a")} == {
        "probe_a": "90",
        "like_a": "70",
        "arrives_a": "2",
        "before_a": "30",
    }
    assert values["arrives_b"] == "none" and values["before_b"] == values["like_b"] == "20"
    assert values["model_like"] == (
        "Name-likeness peaks at 70 % of 10 unseen entities (chance 10.0 %); a linear probe tells "
        "90 % apart."
    )


def test_worlds_stand_side_by_side_and_what_is_computed_here_goes_first():
    recorded = pd.concat([found("a", 0, 0, 0), found("a", 0.6, 0.4, 0.4, seed=1), found("c", 0.1)])
    table = stream_words.worlds_table(LIKE, recorded)
    assert table.loc["a", ("peak", 0)] == "70 %" and table.loc["a", ("first layer", 0)] == "2"
    assert table.loc["a", ("peak", 1)] == "60 %" and table.loc["a", ("first layer", 1)] == "0"
    assert table.loc["c", ("first layer", 0)] == "never" and table.loc["c", ("peak", 1)] == "–"


def test_each_control_has_a_chance_of_its_own():
    mapped = pd.concat([LIKE.assign(shuffled=False), found("a", 0, 0.1).assign(shuffled=True)])
    probe = found("a", 0.25, 0.05, n=20).assign(shuffled=True)
    assert stream_words.control_table(mapped, probe).to_dict() == {
        "name-likeness, names dealt out (chance 10.0 %)": {"a": "10.0 %"},
        "probe, labels shuffled (chance 5.0 %)": {"a": "25.0 %"},
    }


# --- the readings ---


@pytest.fixture(scope="module")
def asked(world):
    some = world.some(12)
    return some, one_per_entity(some.questions)


def test_readings_come_with_their_controls(asked):
    world, houses = asked
    late = Engine(load_vlm(path("late"), device="cpu"))
    names = name_states(Engine(load_llm(path("backbone"), device="cpu")), houses)[:, 2]
    mapped = names_and_control(late, world, houses, names)
    size = mapped.groupby("shuffled").size()
    assert size.to_dict() == {False: 6 * 9, True: 6 * 9}  # the other half, at nine layers
    assert mapped["entity_id"].nunique() == 6

    probe = entities_and_control(late, world, houses[:4])
    share = probe[probe["layer"] == 4].groupby("shuffled")["found"].mean()
    assert share[False] == 1.0 and share[True] < 1.0
    assert len(probe) == 2 * 4 * 2 * 9  # real and shuffled, houses, test views, layers


def test_without_a_map_the_nearest_name_is_told_as_pictures_enter_and_at_its_best():
    assert stream_words.nearest_title(LIKE) == (
        "the own name is nearest to at most 70 % (a) and 20 % (b) of pictures"
    )
    assert stream_words.nearest_sentence(LIKE) == (
        "With no map fitted, of a's pictures, 10 % are nearest to their own name as they enter, "
        "and at most 70 %, at layer 2; half of them are at layer 2 for the first time; of b's "
        "pictures, 0 % are nearest to their own name as they enter, and at most 20 %, at layer 2; "
        "half of them are at no layer (n = 10, chance 10 %)."
    )
    assert "half of them are then already (n" in stream_words.nearest_sentence(found("a", 0.6, 0.3))
    places = pd.concat(
        [
            found("a", 0.1, 0.3).assign(position="1"),
            found("a", 0.1, 0.4).assign(position="2"),
            found("a", 0.1, 0.9).assign(position="mean"),
        ]
    )
    assert stream_words.positions_title(places) == (
        "position by position, the own name is nearest to 30 to 40 % (a, layer 1) of pictures"
    )

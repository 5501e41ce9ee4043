"""The picture's state in a name's place: it gives what it holds, and early what came late."""

from __future__ import annotations

import pytest

from twohop_lib.benchmark import sources
from twohop_lib.interventions.pairs import pairs_for
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.transplant import transplant
from twohop_lib.models.loading import load_vlm
from twohop_lib.organisms import path


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    built = sources.build("heraldry", tmp_path_factory.mktemp("world") / "heraldry")
    questions = built.select("test", "standard").some(8)
    engine = Engine(load_vlm(path("cross"), device="cpu"))
    pairs = pairs_for(engine.owner, questions, "fact", set(questions.entities()), 1)
    return transplant(engine, questions, pairs, [(2, 2), (4, 4), (4, 2)])


def share(given, arm, source, layer, follows):
    own = given[(given["arm"] == arm) & (given["source"] == source) & (given["layer"] == layer)]
    return (own["follows"] == follows).mean()


def test_a_state_that_came_late_gives_its_fact_where_it_is_written_early(given):
    # Cross receives its house at block 4: below, there is nothing to write.
    assert share(given, "entity", 4, 2, "right") > 0.8
    assert share(given, "entity", 2, 2, "right") < 0.3
    assert share(given, "entity", 4, 4, "right") < 0.8


def test_the_wrong_picture_gives_the_wrong_fact_and_none_gives_none(given):
    assert share(given, "wrong entity", 4, 2, "donor") > 0.6
    assert share(given, "wrong entity", 4, 2, "right") < 0.2
    nothing = given[given["arm"] == "nothing"]
    assert nothing["source"].isna().all() and nothing["correct"].mean() < 0.3
    assert given["experiment"].eq("transplant").all()

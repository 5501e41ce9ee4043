"""The grafts' study, several at a time; and what is measured inside them, on a tiny graft."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from helpers_graft import TINY, tiny_llm

from twohop_lib.benchmark import sources
from twohop_lib.errors import TwohopError
from twohop_lib.grafts import train
from twohop_lib.study import graft_internals, grafts


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    made = sources.build("flags", tmp_path_factory.mktemp("flags") / "flags", distinct=True)
    return made.some(10)


@pytest.fixture(scope="module")
def graft(flags, tmp_path_factory):
    root = tmp_path_factory.mktemp("grown")
    llm = tiny_llm(root / "llm")
    return train.train("caption", TINY["caption"], flags, llm, 0, root / "g", root / "w", False)


@pytest.fixture
def study(flags, tmp_path, monkeypatch):
    """Internals in which the graft names each flag and knows each capital by name alone."""
    asked = [q for q in flags.questions if q.wording == grafts.WORDING and q.relation == "capital"]
    few = replace(flags, questions=tuple(asked))

    def measured(folder, benchmark, labels, kept):
        answered = {"by_name": True, "identify": True, "blank_by_picture": False}
        frames = [
            pd.DataFrame(
                {
                    "question_id": [q.question_id for q in asked],
                    "entity_id": [q.entity_id for q in asked],
                    "condition": condition,
                    "correct": correct,
                    "view": "drawn",
                    "format": "chat",
                }
            )
            for condition, correct in answered.items()
        ]
        return pd.concat(frames, ignore_index=True)

    monkeypatch.setattr(graft_internals, "measured", measured)
    monkeypatch.setattr(graft_internals, "DEADLINE_FACTS", 4)
    monkeypatch.setattr(graft_internals.Internals, "_short", lambda *_: True)
    return graft_internals.Internals(few, tmp_path / "kept", facts=3)


def test_deadlines_patches_and_likeness_are_measured_once(study, graft, monkeypatch):
    labels = {"model": "caption", "seed": 0}
    deadlines = study.deadlines(graft, labels)
    assert set(deadlines["experiment"]) == {"deadline", "reading-deadline"}
    patched = study.patches(graft, labels)
    assert patched["question_id"].nunique() == 3 and not patched["blind"].any()
    assert {"unpatched", "mlp", "wrong entity", "noise"} <= set(patched["method"])
    assert set(patched["model"]) == {"caption"}
    alike = study.likeness(graft, labels)
    assert set(alike["map"]) == {"none", "ridge", "shuffled"}
    assert {"mean", "0"} <= set(alike["position"]) and alike["found"].notna().all()
    again = graft_internals.Internals(study.benchmark, study.kept, facts=3)
    monkeypatch.setattr(again, "_engine", lambda *_: pytest.fail("measured twice"))
    again._pairs = study._pairs
    pd.testing.assert_frame_equal(again.likeness(graft, labels), alike)


def _work(name, seed, llm):
    if name == "facts" and seed == 1:
        raise TwohopError("no such graft")
    made = pd.DataFrame({"model": [name], "seed": [seed], "llm": [llm]})
    return made, made


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_stops_one_graft_is_told_when_the_others_are_done(jobs):
    done = []
    with pytest.raises(TwohopError, match="no such graft"):
        for answers, _ in grafts.each(_work, ["facts", "caption"], [1, 0], "m", jobs, "t"):
            done.append(answers)
    rows = grafts.in_order(done)
    assert list(zip(rows["seed"], rows["model"], strict=True)) == [
        (0, "caption"),
        (0, "facts"),
        (1, "caption"),
    ]

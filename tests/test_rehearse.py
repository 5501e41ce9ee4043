"""Every experiment on a few entities: what is refused, and how long chapters will take."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import families
import pytest

from tests.zoo import CHECKED, build
from twohop_lib.models.pair import load_pair
from twohop_lib.organisms import path
from twohop_lib.rerun import rehearse as rehearsal
from twohop_lib.rerun.rehearse import CHAPTERS, EXPERIMENTS, rehearse
from twohop_lib.rerun.run import chapters_folder, rerunnable

#: Linear attention has no edges to cut.
REFUSED = {"qwen3_5": {"attention_knockout", "thinking_out_loud"}}
QUICK = {"split": "test", "wording": "standard", "max_entities": 12}


@pytest.fixture(scope="module")
def world(heraldry):
    return heraldry


def test_experiments_of_chapters_are_known_and_all_are_used():
    used = {name for _, experiments in CHAPTERS.values() for name in experiments}
    assert used == set(EXPERIMENTS)
    assert set(CHAPTERS) <= set(rerunnable(chapters_folder()))


def test_time_is_counted_from_what_a_chapter_asks(world, monkeypatch):
    """By a clock that only moves when something is asked: 2 s an answer, 3 s an item."""
    now, said = [0.0], []
    real = rehearsal.evaluate

    def answered(vlm, llm, benchmark, conditions):
        found = real(vlm, llm, benchmark, conditions)
        now[0] += 2 * len(found)
        said.append((conditions[0], len(found)))
        return found

    def patched(stage, items):
        now[0] += 3 * len(items)

    monkeypatch.setattr(rehearsal, "evaluate", answered)
    for name in ("cross-patch", "freeze", "freeze, fact"):
        monkeypatch.setitem(EXPERIMENTS, name, (rehearsal._questions, patched))
    monkeypatch.setitem(
        CHAPTERS,
        "forward_freezing",
        (("identify", "by_name"), ("cross-patch", "freeze", "freeze, fact")),
    )
    monkeypatch.setitem(CHAPTERS, "attention_knockout", (("identify",), ("cross-patch",)))
    chosen = dict.fromkeys(("forward_freezing", "attention_knockout"), QUICK)
    found = rehearse(
        load_pair(path("late"), path("backbone")), world, chosen, clock=lambda: now[0], fixed=7
    )
    assert found.refused == {} and dict(said) == {"identify": 12, "by_name": 32}
    named, facts = 12, len(world.select(split="test", wording="standard").some(12).questions)
    # All twelve are recognised; what forward freezing has stored is not done again.
    assert found.seconds == {
        "forward_freezing": 7 + 2 * (named + facts) + 3 * 3 * named,
        "attention_knockout": 7,
    }
    # A full run asks houses of every split, in every wording.
    pair = load_pair(path("late"), path("backbone"))
    full = rehearse(pair, world, chosen, "full", clock=lambda: now[0], fixed=7)
    facts = len(world.some(12).questions)
    assert full.seconds["forward_freezing"] == 7 + 2 * (named + facts) + 3 * 3 * named


def test_what_a_chapter_would_refuse_is_refused_with_the_reason(world, tmp_path):
    """Linear attention has no edges to cut; a picture beside the stream nothing to freeze."""
    linear = load_pair(build("qwen3_5", tmp_path).vlm)
    ran = ("patching_recall", "the_gap", "where_facts_are_recalled")
    chosen = dict.fromkeys(("attention_knockout", *ran), QUICK)
    found = rehearse(linear, world, chosen, fixed=0)
    assert set(found.refused) == {"attention_knockout"} and set(found.seconds) == set(ran)
    assert "Attention edges cannot be cut" in found.refused["attention_knockout"]
    cross = replace(load_pair(path("cross"), path("backbone")), llm=None)
    found = rehearse(cross, world, {"forward_freezing": QUICK}, fixed=0)
    assert "leave this chapter out" in found.refused["forward_freezing"]


def test_every_family_is_on_record():
    """Made anew by benchmarks/families.py when a chapter runs other experiments, or in others."""
    recorded = json.loads(families.RECORDED.read_text())
    assert list(recorded) == list(CHECKED)
    for name, of in recorded.items():
        assert of["failed"] == [] and of["unlike_a_session"] == [], name
        assert set(of["refused"]) == REFUSED.get(name, set()), name
        assert set(of["ran"]) | set(of["refused"]) == set(CHAPTERS), name


@pytest.mark.skipif(not os.environ.get("TWOHOP_ALL_FAMILIES"), reason="long: a nightly run")
@pytest.mark.parametrize("name", CHECKED)
def test_every_experiment_runs_on_every_family(name, world, tmp_path):
    """Set TWOHOP_ALL_FAMILIES to run it."""
    made = build(name, tmp_path)
    found = rehearse(
        load_pair(made.vlm, made.llm), world, rerunnable(chapters_folder()), "quick", fixed=0
    )
    assert set(found.refused) == REFUSED.get(name, set()), found.refused
    assert set(found.seconds) | set(found.refused) == set(CHAPTERS)

"""Sweeps on an organism and on random weights: records, controls, resuming; depths and figures."""

from __future__ import annotations

from dataclasses import replace
from html import escape

import altair as alt
import pandas as pd
import pytest
import torch

from tests.zoo import build
from twohop_lib import records
from twohop_lib.chapter.explorer import PatchExplorer
from twohop_lib.errors import TwohopError
from twohop_lib.figures import dots, heat, lines, theme
from twohop_lib.interventions import pairs as pairing
from twohop_lib.interventions.cross_patch import cross_patch
from twohop_lib.interventions.edits import CrossPatch, Freeze, Write
from twohop_lib.interventions.freeze import freeze, freeze_ends
from twohop_lib.interventions.knockout import knockout
from twohop_lib.interventions.pairs import (
    NothingLeft,
    Pair,
    condition_of,
    first_tokens,
    one_per_entity,
    pairs_for,
    pick_pairs,
)
from twohop_lib.interventions.part_patch import part_patch
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import ControlFailed, Trial, sweep
from twohop_lib.models.blocks import UnsupportedSite
from twohop_lib.models.loading import load_llm, load_vlm
from twohop_lib.models.pair import load_pair
from twohop_lib.organisms import NAMES, STUDY, path
from twohop_lib.readouts import switch
from twohop_lib.study.organisms import SWEEP_COLUMNS


@pytest.fixture(scope="module")
def world(heraldry):
    return heraldry.select(split="test", wording="standard").some(8)


@pytest.fixture(scope="module")
def late():
    return Engine(load_vlm(path("late"), device="cpu"))


@pytest.fixture(scope="module")
def crossed(late, world):
    pairs = pairs_for(late.owner, world, "identify", set(world.entities()), 2)
    return pairs, cross_patch(late, world, pairs, labels={"model": "late", "seed": 0})


# --- what is asked ----------------------------------------------------------------------------


def test_donors_can_be_told_apart_from_their_targets(late, world):
    for task in ("identify", "fact"):
        pairs = pairs_for(late.owner, world, task, set(world.entities()), 2)
        assert len(pairs) > 8
        for pair in pairs:
            assert pair.target.entity_id != pair.donor.entity_id
            first = first_tokens(late.owner, pair, condition_of(task, "picture"))
            assert first[0] != first[1]
            if task == "fact":
                assert pair.target.relation == pair.donor.relation
                assert not set(pair.target.answers) & set(pair.donor.answers)
    assert pairs == pairs_for(late.owner, world, "fact", set(world.entities()), 2)


def test_each_entity_is_asked_once_and_relations_go_round(world):
    asked = one_per_entity(world.questions)
    assert [q.entity_id for q in asked] == list(world.entities())
    assert len({q.relation for q in asked}) > 1


def test_a_donor_of_another_type_is_drawn_where_there_is_one(late, world):
    asked = one_per_entity(world.questions)
    mixed = [replace(q, noun="town") if i % 2 else q for i, q in enumerate(asked)]
    pairs = pick_pairs(late.owner, mixed, "identify", 2)
    kinds = pd.Series([p.same_type for p in pairs]).groupby([p.target.entity for p in pairs])
    assert (kinds.sum() == 1).mean() > 0.7


# --- cross-patching ---------------------------------------------------------------------------


def test_a_cross_patch_goes_from_the_donor_to_the_target(late, crossed):
    pairs, frame = crossed
    assert len(frame) == len(pairs) * (late.n_blocks + 1)
    assert set(frame["computation"]) == {"splice"}
    ends = frame.set_index("layer")
    assert set(ends.loc[0, "says"]) == {"donor"} and set(ends.loc[late.n_blocks, "says"]) == {
        "target"
    }
    assert ends.loc[0, "calibrated"].to_numpy(float) == pytest.approx(1, abs=1e-4)
    assert ends.loc[late.n_blocks, "calibrated"].to_numpy(float) == pytest.approx(0, abs=1e-4)
    records.validate(frame)


def test_a_sweep_is_stored_and_taken_up_again(late, world, crossed, tmp_path, monkeypatch):
    pairs, whole = crossed
    labels = {"model": "late", "seed": 0}
    right, calls = Engine.answers, []

    def dies(self, rows, length):
        calls.append(len(rows))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return right(self, rows, length)

    monkeypatch.setattr(Engine, "answers", dies)
    with pytest.raises(KeyboardInterrupt):
        cross_patch(late, world, pairs, labels=labels, folder=tmp_path)
    resumed = cross_patch(late, world, pairs, labels=labels, folder=tmp_path)
    assert len(calls) == 3  # The first part was not run again.
    pd.testing.assert_frame_equal(resumed, whole, check_dtype=False, atol=1e-5)
    monkeypatch.setattr(Engine, "answers", lambda *_: pytest.fail("nothing is left to do"))
    again = cross_patch(late, world, pairs, labels=labels, folder=tmp_path)
    pd.testing.assert_frame_equal(again, resumed)


def test_a_control_that_fails_stops_the_sweep(late, world, crossed, monkeypatch):
    pairs, _ = crossed
    monkeypatch.setattr(CrossPatch, "source", lambda row, block: row.target)
    monkeypatch.setattr(Engine, "computation", lambda *_: "splice")
    with pytest.raises(ControlFailed, match="layer 0 did not reproduce the donor"):
        cross_patch(late, world, pairs)
    # A band has no patch from layer 0 to the top among its own.
    with pytest.raises(ControlFailed, match="layer 0 did not reproduce the donor"):
        cross_patch(late, world, pairs, bands=[(2, 4)])
    right = Engine.answers

    def shifted(self, edits, length):
        logits, said = right(self, edits, length)
        return logits + torch.arange(logits.shape[-1]) * 1e-2, said

    monkeypatch.setattr(Engine, "answers", shifted)
    with pytest.raises(ControlFailed, match="itself changed it"):
        cross_patch(late, world, pairs)


def test_a_sweep_cannot_go_without_a_control(late, world):
    asked = one_per_entity(world.questions)[:1]
    options = {"experiment": "freeze", "condition": "identify", "from_start": True}
    options |= {"record": lambda *_: {}}

    def edits(question, recorded):
        return [Trial(Freeze(recorded(question), 0, 3), {"layer": 0})]

    with pytest.raises(TypeError, match="control"):
        sweep(late, world, asked, edits=edits, **options)
    with pytest.raises(ControlFailed, match="had no control to hold"):
        sweep(late, world, asked, edits=edits, control=lambda *_: [], **options)


def test_first_tokens_are_rendered_once_a_pair(late, world, crossed, monkeypatch):
    pairs, whole = crossed
    right, rendered = pairing.first_token, []
    monkeypatch.setattr(pairing, "first_token", lambda *a: rendered.append(a) or right(*a))
    again = cross_patch(late, world, pairs[:3], labels={"model": "late", "seed": 0})
    assert len(rendered) == 2 * 3
    pd.testing.assert_frame_equal(again, whole[: len(again)], atol=1e-5)


def test_one_recognised_entity_makes_no_pair_and_says_so(late, world):
    one = {world.entities()[0]}
    for task in ("identify", "fact"):
        with pytest.raises(NothingLeft, match="Among 1 entities no two have answers"):
            pairs_for(late.owner, world, task, one, 1)
    asked = [q for q in one_per_entity(world.questions) if q.entity_id in one]
    assert len(freeze(late, world, asked, until=[3])) == 4
    assert freeze(late, world, asked, until=[5], every=2)["layer"].tolist() == [0, 1, 3, 5]
    assert len(knockout(late, world, asked, edges=["question→image"])) == 18
    for run in (
        lambda: cross_patch(late, world, []),
        lambda: part_patch(late, world, []),
        lambda: freeze(late, world, [], until=[3]),
        lambda: knockout(late, world, []),
    ):
        with pytest.raises(NothingLeft, match="Nothing is left to run"):
            run()


def test_names_of_as_many_tokens_are_counted_as_they_stand_in_a_text(late, world, monkeypatch):
    names = sorted({q.entity for q in world.questions})
    half = {f" {name}" for name in names[::2]}
    # By itself no name is as long as another; behind a space every second one is.
    monkeypatch.setattr(
        pairing,
        "count_tokens",
        lambda text, _: 1 if text in half else 2 if text[:1] == " " else 3 + names.index(text),
    )
    ids = set(world.entities())
    pairs = pairs_for(late.owner, world, "identify", ids, 1, alike_names=True)
    assert len(pairs) == len(ids)
    assert all((f" {p.target.entity}" in half) == (f" {p.donor.entity}" in half) for p in pairs)


def test_names_are_patched_in_the_backbone(world):
    engine = Engine(load_llm(path("backbone"), device="cpu"))
    for task in ("identify", "fact"):
        pairs = pairs_for(engine.owner, world, task, set(world.entities()), 3)
        frame = cross_patch(engine, world, pairs, task, by="name")
        ends = frame.set_index("layer")
        assert set(ends.loc[0, "says"]) == {"donor"}
        assert set(ends.loc[engine.n_blocks, "says"]) == {"target"}
        assert set(frame["condition"]) == {
            {"identify": "llm_identify", "fact": "llm_by_name"}[task]
        }


def test_part_of_a_picture_counts_for_less_than_the_whole(late, world, crossed):
    pairs, whole = crossed
    parts = part_patch(late, world, pairs[:4])
    first = parts[parts["layer"] == 0]
    donors = first["says"].eq("donor").groupby(first["part"]).mean()
    assert set(donors.index) == {"last quarter", "the others"}
    assert donors["last quarter"] < donors["the others"] < 1
    assert whole.loc[whole["layer"] == 0, "says"].eq("donor").all()
    assert len(parts) == 4 * 2 * late.n_blocks
    records.validate(parts)


def test_parts_that_do_not_make_the_whole_fail_the_control(late, world, crossed, monkeypatch):
    right = Write.onto

    def too_few(edit, x, block, at):
        right(
            replace(edit, positions=edit.positions[1:], values={block: edit.values[block][1:]}),
            x,
            block,
            at[1:],
        )

    monkeypatch.setattr(Write, "onto", too_few)
    with pytest.raises(ControlFailed, match="Both parts at layer 0 did not give the donor's run"):
        part_patch(late, world, crossed[0][:1])


# --- freezing and knockout --------------------------------------------------------------------


def test_freezing_and_cutting_come_with_their_ends(late, world):
    asked = one_per_entity(world.questions)[:4]
    frozen = freeze(late, world, asked, until=freeze_ends(late.n_blocks, 1.4))
    assert sorted(frozen["until"].unique()) == [1, 5, 7]
    assert frozen.loc[frozen["layer"] == frozen["until"], "unchanged"].all()
    cut = knockout(late, world, asked, modes=(("below", 0), ("above", 0), ("window", 3)))
    nothing = cut[cut["start"] == cut["stop"]]
    assert nothing["unchanged"].all() and nothing["correct"].all()
    assert not cut[
        (cut["edge"] == "question→image") & (cut["mode"] == "above") & (cut["start"] == 0)
    ]["correct"].any()
    assert len(cut) == 4 * 3 * (9 + 9 + 6)


def test_sliding_windows_are_held_against_the_run_left_alone(late, world, monkeypatch):
    asked = one_per_entity(world.questions)[:4]
    plain = knockout(late, world, asked, edges=["question→image"], modes=[("below", 0)])
    own = plain[plain["stop"] == 0].set_index("entity_id")["answer"]
    cut = knockout(late, world, asked, edges=["question→image"], modes=[("window", 7)])
    assert len(cut) == 4 * 2 and not cut["unchanged"].all()
    assert (cut["unchanged"] == (cut["answer"] == cut["entity_id"].map(own))).all()
    right = Engine.answers

    def broken(self, edits, length):
        logits, said = right(self, edits, length)
        nothing = torch.tensor([e.start == e.stop for e in edits])
        return logits + nothing[:, None] * torch.arange(logits.shape[-1]) * 1e-2, said

    monkeypatch.setattr(Engine, "answers", broken)
    with pytest.raises(ControlFailed, match="Knocking out nothing changed a run"):
        knockout(late, world, asked, modes=[("window", 7)])


def test_unknown_edges_and_windows_are_refused(late, world):
    asked = one_per_entity(world.questions)[:1]
    with pytest.raises(TwohopError, match="No edge is called 'image→last'"):
        knockout(late, world, asked, edges=["image→last"])
    with pytest.raises(TwohopError, match="width from 1 to 8"):
        knockout(late, world, asked, modes=[("window", 9)])


def test_cross_attention_is_swept_or_says_why_not(world):
    engine = Engine(load_vlm(path("cross"), device="cpu"))
    asked = one_per_entity(world.questions)[:4]
    pairs = pairs_for(engine.owner, world, "identify", set(world.entities()), 1)[:4]
    frame = cross_patch(engine, world, pairs)
    assert set(frame.loc[frame["layer"] == 0, "says"]) == {"donor"}
    cut = knockout(engine, world, asked, edges=["question→image"])
    assert not cut.loc[(cut["mode"] == "above") & (cut["start"] == 0), "correct"].any()
    with pytest.raises(UnsupportedSite, match="no positions in the stream"):
        freeze(engine, world, asked, until=[3])
    with pytest.raises(UnsupportedSite, match="no positions to part"):
        part_patch(engine, world, pairs)


@pytest.mark.parametrize("name", ["paligemma", "qwen2_vl"])
def test_random_weights_are_swept_too(name, world, tmp_path):
    made = build(name, tmp_path)
    engine = Engine(load_pair(made.vlm, made.llm).vlm)
    pairs = pick_pairs(engine.owner, one_per_entity(world.questions), "identify", 1)
    frame = cross_patch(engine, world, pairs[:2], max_new_tokens=3)
    assert set(frame["computation"]) == {"reference" if name == "paligemma" else "splice"}
    asked = one_per_entity(world.questions)[:2]
    assert len(freeze(engine, world, asked, until=[2], max_new_tokens=3)) == 2 * 3
    assert len(knockout(engine, world, asked, edges=["last→image"], max_new_tokens=3)) == 2 * 8


def test_the_explorer_says_what_the_sweep_says(late, world, crossed):
    pairs, frame = crossed
    explorer = PatchExplorer(late, world, one_per_entity(world.questions))
    for layer in (0, 2, late.n_blocks):
        row = frame[(frame["layer"] == layer)].iloc[0]
        said = explorer.say(pairs[0].target, pairs[0].donor, layer, "identify")
        assert said == (row["answer"], row["says"])
    widget = explorer.widget()
    target, donor, slider, task, said = widget.children
    for layer, whom in ((0, "donor"), (late.n_blocks, "target")):
        slider.value = layer
        assert said.value.endswith(f" (the {whom}'s)")
    task.value = "fact"
    assert escape(target.value.question_by_picture) in said.value
    explorer.say = lambda *_: ("<b>&</b>", "neither")
    slider.value = 1
    assert said.value.endswith("<br><b>&lt;b&gt;&amp;&lt;/b&gt;</b> (neither's)")


# --- figures ----------------------------------------------------------------------------------


def test_figures_are_described_and_say_what_they_need(crossed):
    _, frame = crossed
    frame = frame.assign(blocks_read=switch.blocks_read(frame), own=frame["says"].eq("target"))
    frame["donor"] = frame["donor_id"]
    curve = switch.curve(frame, "own")
    made = [
        lines.lines_by_layer(curve, "A finding", y_title="Share (%)", x="blocks_read"),
        heat.items_by_layer(frame, "Items"),
        dots.explorer(frame, "Explore"),
        dots.depths(
            pd.DataFrame(
                [{"model": "late", "experiment": "freeze", "switch": 2.0, "low": 1.0, "high": 3.0}]
            ),
            "Depths",
        ),
    ]
    for chart in made:
        spec = chart.to_dict()
        assert len(spec["description"]) > 60 and isinstance(chart, alt.Chart | alt.LayerChart)
    assert "late, by layer 0: 0 %" in made[0].to_dict()["description"]
    with pytest.raises(TwohopError, match=r"needs the column\(s\) layer"):
        heat.items_by_layer(frame.drop(columns="layer"), "Items")
    with pytest.raises(TwohopError, match=r"Unknown value\(s\) nobody"):
        heat.items_by_layer(frame.assign(says="nobody"), "Items")


def test_a_figure_bears_any_answer(crossed):
    _, frame = crossed
    odd = frame.assign(donor=frame["donor_id"], answer="\x18\x00<b>\ud7ff" + "long " * 20)
    spec = theme.fixed(dots.explorer(odd, "Explore").to_dict(), 400)
    import vl_convert

    assert "<svg" in vl_convert.vegalite_to_svg(spec)


# --- the study's records ----------------------------------------------------------------------


def test_the_studys_sweeps_are_of_every_world_and_agree_with_live_ones(late, world):
    recorded = records.read_frame(STUDY / "sweeps.parquet")
    assert list(recorded.columns) == SWEEP_COLUMNS
    assert set(recorded["model"]) == set(NAMES) and set(recorded["seed"]) == {0, 1, 2}
    crossed = recorded[recorded["experiment"] == "cross-patch"]
    assert set(crossed.loc[(crossed["layer"] == 0) & (crossed["task"] == "identify"), "says"]) == {
        "donor"
    }
    then = crossed[
        (crossed["model"] == "late") & (crossed["seed"] == 0) & (crossed["task"] == "identify")
    ]
    some = then[then["entity_id"].isin(world.entities())]
    by_id = {q.entity_id: q for q in one_per_entity(world.questions)}
    everyone = {q.entity_id: q for q in world.questions}
    pairs = [
        Pair(by_id[t], everyone[d])
        for t, d in some[["entity_id", "donor_id"]].drop_duplicates().itertuples(index=False)
        if d in everyone
    ]
    assert pairs
    live = cross_patch(late, world, pairs)
    both = live.merge(then, on=["entity_id", "donor_id", "layer"], suffixes=("", "_then"))
    assert len(both) == len(live)
    assert (both["answer"] == both["answer_then"]).mean() > 0.97


def test_torch_is_left_as_it_was(late, crossed):
    assert all("forward" not in block.__dict__ for block in late.blocks.blocks)
    assert not any(block._forward_pre_hooks for block in late.blocks.blocks)
    assert torch.is_grad_enabled()

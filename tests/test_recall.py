"""Attribution, MLP patching, back-patching, the recall deadline, probes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from tests.zoo import FAMILIES, build
from twohop_lib import records
from twohop_lib.errors import TwohopError
from twohop_lib.figures import dots, heat
from twohop_lib.interventions import attribution, deadlines, forward, hooks
from twohop_lib.interventions.back_patch import back_patch
from twohop_lib.interventions.deadlines import reading_deadline, recall_deadline
from twohop_lib.interventions.edits import Write
from twohop_lib.interventions.mlp_patch import (
    CONTROLS,
    SPANS,
    _fitted,
    mlp_patch,
    sliding,
    window,
)
from twohop_lib.interventions.pairs import NothingLeft, Pair, one_per_entity, pairs_for
from twohop_lib.interventions.recorder import Recorder, receiving
from twohop_lib.interventions.splice import Engine
from twohop_lib.interventions.sweep import ControlFailed
from twohop_lib.models.blocks import UnsupportedSite
from twohop_lib.models.loading import load_llm, load_vlm
from twohop_lib.models.pair import load_pair
from twohop_lib.models.prompts import Prompt
from twohop_lib.models.prompts import build as build_prompt
from twohop_lib.organisms import FURTHER, NAMES, STUDY, path
from twohop_lib.readouts import probes, states
from twohop_lib.readouts.lens import logit_lens
from twohop_lib.readouts.name_likeness import (
    name_likeness,
    names_found,
    nearest_by_position,
    nearest_names,
)
from twohop_lib.readouts.selection import halves
from twohop_lib.study.organisms import RECALL_COLUMNS


@pytest.fixture(scope="module")
def world(heraldry):
    return heraldry.select(split="test", wording="standard").some(10)


@pytest.fixture(scope="module")
def backbone():
    return Engine(load_llm(path("backbone"), device="cpu"))


@pytest.fixture(scope="module")
def pairs(backbone, world):
    return pairs_for(backbone.owner, world, "fact", set(world.entities()), 1)


@pytest.fixture(scope="module")
def contrast(backbone, world, pairs):
    return next(attribution.contrasts(backbone, world, pairs, "name"))


# --- attribution ------------------------------------------------------------------------------


def test_attribution_lies_in_early_mlps_at_the_name_and_in_attention_at_the_end(backbone, contrast):
    table = attribution.by_role(backbone, contrast, attribution.scores(backbone, contrast))
    total = table.groupby(["component", "role"])["score"].sum()
    assert total["mlp", "entity"] > 3 * total["mlp", "question"]
    at_name = table[(table["component"] == "mlp") & (table["role"] == "entity")]
    assert at_name.loc[at_name["block"] < 4, "score"].sum() > 0.9 * at_name["score"].sum()
    assert total["attn", "last"] > 3 * abs(total["attn", "question"])


def test_attribution_is_the_slope_of_true_patching(backbone, contrast):
    last = contrast.corrupt.roles.entity[-1]
    for place in (("mlp", 1, last), ("attn", 3, contrast.corrupt.n - 1), ("mlp", 0, last)):
        gradient, stepped = attribution.finite_difference(backbone, contrast, place)
        assert gradient == pytest.approx(stepped, rel=0.02, abs=1e-3)


def test_attributions_come_with_their_slope_or_not_at_all(backbone, contrast, monkeypatch):
    table = attribution.attribute(backbone, [contrast, contrast])
    once = attribution.by_role(backbone, contrast, attribution.scores(backbone, contrast))
    assert table[table["contrast"] == 1]["score"].tolist() == pytest.approx(list(once["score"]))
    assert set(table["entity_id"]) == {contrast.entity_id}
    right = attribution._gradients

    def halved(*what):
        return {place: x / 2 for place, x in right(*what).items()}

    monkeypatch.setattr(attribution, "_gradients", halved)
    with pytest.raises(ControlFailed, match="is not the slope of the metric"):
        attribution.attribute(backbone, [contrast])


def test_a_slope_that_only_the_smaller_step_is_within_will_do(backbone, contrast, monkeypatch):
    """As where a metric bends within a hundredth of the way (qwen3_5, qwen3_vl_moe, gemma4)."""
    true, tried = attribution.finite_difference, []

    def bent(engine, contrast, place, step):
        tried.append(step)
        gradient, slope = true(engine, contrast, place, step)
        return gradient, slope * (1 + 50 * step)

    monkeypatch.setattr(attribution, "finite_difference", bent)
    attribution.attribute(backbone, [contrast])
    assert tried == [1e-2, 1e-3]


def test_attribution_goes_with_true_patching(backbone, contrast):
    table = attribution.scores(backbone, contrast)
    places = [
        (kind, b, at)
        for kind in attribution.COMPONENTS
        for b in range(backbone.n_blocks)
        for at in (contrast.corrupt.roles.entity[-1], contrast.corrupt.n - 1)
    ]
    true = attribution.true_effects(backbone, contrast, places)
    estimated = [table[k][b, at].item() for k, b, at in places]
    assert np.corrcoef(true, estimated)[0, 1] > 0.7
    integrated = attribution.scores(backbone, contrast, integrated=True)
    assert integrated["mlp"].shape == table["mlp"].shape
    assert not torch.allclose(integrated["mlp"], table["mlp"])


def test_the_sign_says_that_clean_outputs_restore(backbone, contrast):
    base = contrast.metric(contrast.corrupt.logits)
    assert contrast.metric(contrast.clean.logits) > 0 > base
    table = attribution.scores(backbone, contrast)
    assert table["mlp"][:3].sum() > 0


def test_attribution_leaves_the_model_as_it_was(backbone, contrast):
    attribution.scores(backbone, contrast)
    assert all(p.grad is None for p in backbone.model.parameters())
    assert all(p.requires_grad for p in backbone.model.parameters())
    same = attribution.Contrast(contrast.clean, contrast.clean, contrast.right, contrast.wrong)
    assert attribution.scores(backbone, same)["mlp"].abs().max() == 0


# --- MLP patching -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["late", "cross"])
def test_the_backbones_mlp_outputs_bring_the_fact_back(name, backbone, world, pairs):
    engine = Engine(load_vlm(path(name), device="cpu"))
    frame = mlp_patch(engine, backbone, world, pairs)
    share = frame.groupby("method")["correct"].mean()
    follows = frame.groupby("method")["follows"].value_counts(normalize=True).unstack(fill_value=0)
    assert share["heuristic"] > share["unpatched"] + 0.3
    assert follows.loc["wrong entity", "donor"] > 0.6 > 0.2 > share["wrong entity"]
    assert abs(share["late blocks"] - share["unpatched"]) < 0.2
    methods = {*SPANS, *CONTROLS, "unpatched"}
    assert set(frame["method"]) == methods and len(frame) == len(pairs) * len(methods)
    # The same again, whatever else is patched.
    again = mlp_patch(engine, backbone, world, pairs[:3])
    pd.testing.assert_frame_equal(frame[: len(again)], again)


def test_windows_slide_over_all_of_the_picture(backbone, world, pairs):
    engine = Engine(load_vlm(path("late"), device="cpu"))
    frame = mlp_patch(engine, backbone, world, pairs, patches=sliding)
    records.validate(frame)
    share = frame.groupby(["method", "start", "stop", "layer"])["correct"].mean()
    early, n = 2, backbone.n_blocks
    assert share["mlp", 0, early, 0] > share["mlp", n - early, n, n - early] + 0.3
    assert share["mlp", 0, early, 0] > share["mlp later", 0, early, n - early] + 0.3
    assert share["wrong entity", 0, early, 0] < 0.2
    whole = frame[frame["method"] != "unpatched"]["span"].str.len()
    assert whole.nunique() == 1 and whole.iloc[0] > 1


def test_what_a_block_adds_is_read_off_its_recording(backbone, world, pairs):
    run = Recorder(backbone, world, "llm_by_name", from_start=True)(pairs[0].target)
    whole = hooks.activations(backbone, run, "mlp", [0, 3])
    for b, value in backbone.outputs(run, "mlp", [0, 3]).items():
        torch.testing.assert_close(value, whole[b][run.first :], atol=1e-4, rtol=1e-4)
    # A recording of another run's stream is not read off, but run whole.
    other = replace(run, resid=run.resid.roll(1, 1))
    assert forward.outputs(backbone, other, "mlp", [0]) is None
    assert torch.equal(backbone.outputs(other, "mlp", [0])[0], whole[0][run.first :])


def test_a_backbone_of_another_shape_is_refused(backbone, world, pairs, tmp_path):
    made = build("llava", tmp_path)
    engine = Engine(load_pair(made.vlm, made.llm).vlm)
    with pytest.raises(TwohopError, match="patching needs the same of both"):
        mlp_patch(engine, backbone, world, pairs)


def test_a_control_that_fails_stops_the_patching(backbone, world, pairs, monkeypatch):
    engine = Engine(load_vlm(path("late"), device="cpu"))
    right = Engine.outputs

    def elsewhere(*what):
        return {block: x.roll(1, 0) for block, x in right(*what).items()}

    monkeypatch.setattr(Engine, "outputs", elsewhere)
    with pytest.raises(ControlFailed, match="own MLP outputs back"):
        mlp_patch(engine, backbone, world, pairs[:1])


def test_rows_are_aligned_at_their_ends():
    value = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(_fitted(value, 2, False), value[1:])
    assert torch.equal(_fitted(value, 3, False), value)
    assert torch.equal(_fitted(value, 5, False)[-3:], value)
    assert torch.equal(_fitted(value, 4, True), value[-1:].expand(4, -1))


def test_the_window_with_the_most_is_taken():
    scores = torch.tensor([0.0, 5.0, 1.0, 4.0, 4.0])
    assert window((10, 11, 12, 13, 14), scores, 2) == (13, 14)
    assert window((10, 11), scores[:2], 5) == (10, 11)


def test_back_patching_with_itself_changes_nothing(world, pairs):
    engine = Engine(load_vlm(path("middle"), device="cpu"))
    frame = back_patch(engine, world, [p.target for p in pairs[:3]], [(3, 1)])
    assert sorted(set(zip(frame["source"], frame["layer"], strict=True))) == [(0, 0), (3, 1)]
    plain = [
        engine.answers([Write(r, "resid", (r.n - 1,), {})], 8)[1][0]
        for r in (Recorder(engine, world, "by_picture", 8, True)(p.target) for p in pairs[:3])
    ]
    assert frame.loc[frame["source"] == 0, "answer"].tolist() == plain


def test_a_late_state_that_is_not_the_runs_own_fails_the_control(world, pairs, monkeypatch):
    engine = Engine(load_vlm(path("middle"), device="cpu"))
    right = Write.onto

    def elsewhere(edit, x, block, at):
        right(edit, x, block, [p - 1 for p in at])

    monkeypatch.setattr(Write, "onto", elsewhere)
    monkeypatch.setattr(Engine, "computation", lambda *_: "splice")
    with pytest.raises(ControlFailed, match="where it comes from"):
        back_patch(engine, world, [pairs[0].target], [(3, 1)])


def test_one_question_is_enough_and_none_is_told(backbone, world, pairs):
    engine = Engine(load_vlm(path("middle"), device="cpu"))
    assert len(back_patch(engine, world, [pairs[0].target], [(3, 1)])) == 2
    assert len(mlp_patch(engine, backbone, world, pairs[:1])) == len([*SPANS, *CONTROLS]) + 1
    for run in (
        lambda: back_patch(engine, world, []),
        lambda: mlp_patch(engine, backbone, world, []),
        lambda: recall_deadline(backbone, world, []),
        lambda: attribution.attribute(backbone, []),
    ):
        with pytest.raises(NothingLeft):
            run()


# --- the deadline -----------------------------------------------------------------------------


def test_the_deadline_falls_and_the_wrong_entity_gives_its_own_fact(backbone, world, pairs):
    frame = recall_deadline(backbone, world, pairs, states=(2,))
    entity = frame[frame["arm"] == "entity"].groupby("layer")["correct"].mean()
    assert entity.iloc[0] > 0.8 and entity.iloc[-1] < 0.3
    assert (entity.diff().dropna() <= 0.11).all()  # One of ten entities may differ.
    wrong = frame[(frame["arm"] == "wrong entity") & (frame["layer"] == 2)]
    assert wrong["follows"].eq("donor").mean() > 0.8
    nothing = frame[frame["arm"] == "nothing"]
    assert nothing["correct"].mean() < 0.3
    assert nothing[["state", "layer"]].isna().all(axis=None)
    records.validate(frame)


def test_what_is_read_where_it_stands_gives_its_fact_or_its_name_until_nothing_reads_it(
    backbone, world, pairs
):
    top = backbone.n_blocks - 1
    own = reading_deadline(backbone, world, pairs, layers=(2, top))
    written = own[own["arm"] != "nothing"]
    assert (written["state"] == written["layer"]).all()
    share = own[own["arm"] == "entity"].groupby("layer")["correct"].mean()
    assert share[2] > 0.8
    # At the last block nothing reads the position any more.
    last = own[(own["arm"] == "entity") & (own["layer"] == top)]["answer"].tolist()
    assert last == own[own["arm"] == "nothing"]["answer"].tolist()
    named = reading_deadline(backbone, world, pairs[:2], layers=(2,), task="identify")
    assert set(named["condition"]) == {"llm_identify"} and set(named["task"]) == {"identify"}
    assert all(
        pair.target.entity in told
        for pair, told in zip(
            pairs[:2], named.loc[named["arm"] == "entity", "accepted"], strict=True
        )
    )


def test_a_state_written_elsewhere_fails_the_control(backbone, world, pairs, monkeypatch):
    monkeypatch.setattr(deadlines, "_last", lambda run: [run.roles.entity[-1] - run.first - 1])
    with pytest.raises(ControlFailed, match="written where it comes from"):
        recall_deadline(backbone, world, pairs[:1])


# --- probes -----------------------------------------------------------------------------------


def test_name_likeness_finds_a_linear_map_and_nothing_else():
    rng = np.random.default_rng(0)
    names = rng.normal(size=(80, 16)).astype("float32")
    images = np.stack(
        [rng.normal(size=(80, 16)), names @ rng.normal(size=(16, 16))], axis=1
    ).astype("float32")
    found = name_likeness(images, names).mean(0)
    assert found[0] < 0.15 and found[1] > 0.9
    assert name_likeness(images, names, shuffled=True).mean(0).max() < 0.2
    ids = [f"e{i}" for i in range(80)]
    table = names_found(images, names, ids)
    assert set(table["entity_id"]) == {ids[i] for i in halves(80)[1]}
    assert table.groupby("layer")["found"].mean().to_list() == pytest.approx(found)
    with pytest.raises(TwohopError, match="needs 8 or more, not 4"):
        name_likeness(images[:4], names[:4])


def test_the_nearest_name_is_found_without_a_map_where_states_are_the_names_own():
    rng = np.random.default_rng(0)
    names = rng.normal(size=(30, 2, 16)) + 5 * rng.normal(size=16)
    images = rng.normal(size=(30, 3, 2, 16))
    images[:, 1, 1] = names[:, 1] + 0.1 * rng.normal(size=(30, 16)) - 20
    found = nearest_names(images, names).mean(0)
    assert found.shape == (3, 2) and found[1, 1] > 0.95
    assert found[[0, 0, 1, 2], [0, 1, 0, 0]].max() < 0.2
    table = nearest_by_position(images, names, [str(i) for i in range(30)])
    share = table.groupby(["position", "layer"])["found"].mean()
    assert set(table["position"]) == {"0", "1", "2", "mean"} and len(table) == 30 * 4 * 2
    assert share["1", 1] == found[1, 1] and share["mean", 1] > 0.5 > share["mean", 0]


def test_the_entity_probe_generalises_over_views_and_not_over_shuffled_labels():
    rng = np.random.default_rng(1)
    centre = rng.normal(size=(12, 1, 1, 16))
    seen = (centre + 0.1 * rng.normal(size=(12, 5, 2, 16))).astype("float32")
    assert probes.entity_probe(seen, (3, 4)).mean() > 0.95
    assert probes.entity_probe(seen, (3, 4), shuffled=True).mean() < 0.5
    tidy = states.tidy(probes.entity_probe(seen, (3, 4)), [str(i) for i in range(12)])
    assert len(tidy) == 12 * 2 * 2 and tidy["entity_id"].nunique() == 12


def test_a_fact_is_read_off_where_it_is_carried():
    rng = np.random.default_rng(2)
    answers = [str(i % 4) for i in range(80)]
    carried = np.eye(4)[[i % 4 for i in range(80)]] + 0.1 * rng.normal(size=(80, 4))
    assert probes.fact_probe(carried, answers).mean() > 0.95
    assert probes.fact_probe(rng.normal(size=(80, 4)), answers).mean() < 0.5


def test_facts_are_read_off_relation_by_relation():
    rng = np.random.default_rng(3)
    ids = [f"e{i}" for i in range(80)]
    kind = [str(i % 4) for i in range(80)]
    asked = [
        SimpleNamespace(entity_id=e, relation=relation, answers=(answer,))
        for relation, answers in (("kind", kind), ("luck", list(rng.permutation(kind))))
        for e, answer in zip(ids, answers, strict=True)
        if (e, relation) != ("e0", "luck")  # not every entity has every fact
    ]
    carried = np.eye(4)[[i % 4 for i in range(80)]] + 0.1 * rng.normal(size=(80, 4))
    found = probes.facts_read_off(carried, ids, asked)
    assert len(found) == 80  # half of 80, and the larger half of 79
    assert found[:40].mean() > 0.95 and found[40:].mean() < 0.5
    assert len(probes.facts_read_off(carried, ids, [])) == 0


def test_the_lens_at_the_top_is_the_models_output(world):
    engine = Engine(load_vlm(path("early"), device="cpu"))
    asked = one_per_entity(world.questions)[:3]
    lens = logit_lens(engine, world, asked)
    top = lens[lens["layer"] == engine.n_blocks]
    for question, row in zip(asked, top.itertuples(), strict=True):
        prompt = build_prompt("by_picture", question)
        made = engine.record(prompt, world.image(question).convert("RGB"))
        assert row.emitted == pytest.approx(made.logits.softmax(-1).max().item(), abs=1e-4)


# --- over the zoo -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_operation_runs_on_every_family_or_says_why_not(family, world, tmp_path):
    made = build(family, tmp_path)
    pair = load_pair(made.vlm, made.llm)
    engine, llm = Engine(pair.vlm), Engine(pair.backbone)
    asked = one_per_entity(world.questions)
    some = [Pair(asked[0], asked[1])]
    frame = mlp_patch(engine, llm, world, some, max_new_tokens=3)
    assert set(frame["method"]) == {*SPANS, *CONTROLS, "unpatched"}
    assert len(back_patch(engine, world, asked[:1], [(2, 1)], max_new_tokens=3)) == 2
    written = recall_deadline(llm, world, some, states=(1,), max_new_tokens=3)
    assert set(written["arm"]) == {"entity", "wrong entity", "nothing"}
    images = states.image_states(engine, world, asked[:2], views=(0, 1))
    assert images["image"].shape[:3] == (2, 2, engine.n_blocks + 1)
    record = Recorder(engine, world, "by_picture", from_start=True)
    runs = [record(asked[0]), record(asked[1], asked[0])]
    table = attribution.scores(engine, attribution.Contrast(*runs, 5, 6))
    assert table["mlp"].abs().sum() > 0 and table["mlp"].isfinite().all()
    same = attribution.scores(engine, attribution.Contrast(runs[0], runs[0], 5, 6))
    assert same["mlp"].abs().max() == 0


def test_a_prompt_without_a_place_for_the_picture_is_told(world):
    engine = Engine(load_vlm(path("cross"), device="cpu"))
    made = engine.record(
        Prompt("identify", "Which house is this?", True), world.image(world.questions[0])
    )
    from dataclasses import replace

    lost = replace(made, ids=tuple(0 for _ in made.ids))
    assert len(receiving(engine, made)) == 1
    with pytest.raises(UnsupportedSite, match="no token that stands for the picture"):
        receiving(engine, lost)


# --- figures and records ----------------------------------------------------------------------


def test_figures_of_recall_are_described():
    table = pd.DataFrame(
        [
            {"model": m, "method": k, "value": 0.5, "low": 0.4, "high": 0.6}
            for m in ("late", "middle")
            for k in ("a", "b")
        ]
    )
    parts = pd.DataFrame(
        [{"component": "mlp", "role": "entity", "block": b, "share": 0.5} for b in (0, 1)]
    )
    points = pd.DataFrame([{"model": "late", "seed": 0, "predicted": 0.1, "measured": 0.2}])
    for chart in (
        dots.by_method(table, ["a", "b"], "Methods"),
        heat.component_map(parts, "Components"),
        dots.predicted_measured(points, "Predicted"),
    ):
        assert len(chart.to_dict()["description"]) > 30
    with pytest.raises(TwohopError, match="no rows"):
        dots.by_method(table, ["c"], "Methods")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_studys_records_show_what_the_organisms_are_for(seed):
    recorded = records.read_frame(STUDY / "recall.parquet")
    assert list(recorded.columns) == RECALL_COLUMNS
    own = recorded[recorded["seed"] == seed]
    assert set(own["model"]) == {*NAMES, *FURTHER}
    likeness = own[own["experiment"] == "name-likeness"].groupby(["model", "layer"])["found"].mean()
    peak = likeness.groupby("model").max()
    assert peak["late"] < 0.1 < peak["middle"] <= peak["early"] + 0.05
    patch = own[own["experiment"] == "mlp-patch"]
    for name in ("late", "middle", "cross"):
        part = patch[patch["model"] == name]
        share = part.groupby("method")["correct"].mean()
        donor = part[part["method"] == "wrong entity"]["follows"].eq("donor").mean()
        assert share["heuristic"] > share["wrong entity"] + 0.3 and donor > 0.5


def test_both_estimates_stand_beside_the_truth(backbone, contrast):
    table = attribution.against_truth(backbone, [contrast, contrast], places=10)
    assert list(table.columns) == [
        *("component", "block", "position", "contrast", "estimated", "integrated", "true")
    ]
    assert list(table["contrast"].value_counts()) == [10, 10]
    assert not table.duplicated(["contrast", "component", "block", "position"]).any()
    for name in ("estimated", "integrated"):
        scores = attribution.scores(backbone, contrast, integrated=name == "integrated")
        for row in table[table["contrast"] == 1].itertuples():
            at = scores[row.component][row.block, row.position].item()
            assert getattr(row, name) == pytest.approx(at)
    first = table[table["contrast"] == 0]
    places = list(first[["component", "block", "position"]].itertuples(index=False, name=None))
    assert first["true"].tolist() == pytest.approx(
        attribution.true_effects(backbone, contrast, places)
    )
    again = attribution.against_truth(backbone, [contrast, contrast], places=10)
    pd.testing.assert_frame_equal(table, again)

"""Agreement within rounding: counted by hand, and on splices broken on purpose in three dtypes."""

from __future__ import annotations

import math

import broken
import pytest
import torch

from tests.zoo import FAMILIES, build
from twohop_lib.interventions import forward, hooks
from twohop_lib.interventions.edits import CrossPatch
from twohop_lib.interventions.splice import Engine
from twohop_lib.models.agreement import SHARE, agreement, farthest, ulps
from twohop_lib.models.loading import in_float32, load_vlm
from twohop_lib.organisms import path

DTYPES = ("float32", "float16", "bfloat16")
WANTED, AWAY = torch.tensor([4.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 2.0])


def engine_of(name: str, dtype: str, folder) -> Engine:
    where = build(name, folder).vlm if name in FAMILIES else path(name)
    return Engine(load_vlm(where, dtype, "cpu"))


# --- by hand ----------------------------------------------------------------------------------


def test_a_difference_is_a_share_of_the_distance_to_the_other_run():
    held = agreement(torch.tensor([3.8, 1.1, 0.0]), WANTED, AWAY, torch.bfloat16)
    assert held.distance == pytest.approx(0.2) and held.share == pytest.approx(0.05)
    assert held.allowed == SHARE[torch.bfloat16] and held.same_top and held.ok
    assert 0 < held.kl < 0.01
    # The same difference is too much for a finer dtype, and where the other run is nearer.
    assert not agreement(torch.tensor([3.8, 1.1, 0.0]), WANTED, AWAY, torch.float32).ok
    near = WANTED + torch.tensor([0.0, 0.3, 0.0])
    assert not agreement(torch.tensor([3.8, 1.1, 0.0]), WANTED, near, torch.bfloat16).ok


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_other_run_never_agrees_and_the_same_one_does(dtype):
    assert agreement(WANTED, WANTED, AWAY, dtype).ok
    other = agreement(AWAY, WANTED, AWAY, dtype)
    assert other.share == 1 and not other.ok and not other.same_top


def test_two_runs_that_are_the_same_tell_nothing():
    held = agreement(WANTED, WANTED, WANTED, torch.bfloat16)
    assert math.isinf(held.share) and not held.ok
    assert "nothing can be told" in held.words()


@pytest.mark.parametrize("where", range(3))
def test_nan_never_agrees_and_is_named(where):
    three = [WANTED, WANTED, AWAY]
    three[where] = torch.full((3,), math.nan)
    held = agreement(*three, torch.float32)
    assert not held.ok and "NaN" in held.words()


def test_tokens_tied_within_rounding_are_either_ones_choice():
    wanted, away = torch.tensor([8.0, 7.9, 0.0]), torch.tensor([-8.0, 0.0, 8.0])
    got = torch.tensor([7.95, 7.96, 0.0])
    assert agreement(got, wanted, away, torch.bfloat16).ok
    assert ulps(wanted, torch.bfloat16) == 8 * 16 / 128
    # In float32 they are no tie.
    assert not agreement(got, wanted, away, torch.float32).same_top


def test_another_likeliest_token_is_no_agreement_however_small_the_share():
    wanted = torch.tensor([2.0, 1.0, 0.0, -40.0])
    away = torch.tensor([2.0, 1.0, 0.0, 40.0])
    held = agreement(torch.tensor([1.0, 2.0, 0.0, -40.0]), wanted, away, torch.bfloat16)
    assert held.share < held.allowed and not held.same_top and not held.ok
    # And a distribution that is as far off as the other run's is not the wanted one.
    away = torch.tensor([2.0, 1.9, 0.0, -20.0])
    held = agreement(torch.tensor([2.0, 1.9, 0.0, -40.0]), wanted, away, torch.bfloat16)
    assert held.share < held.allowed and held.same_top and not held.ok


def test_tokens_that_a_model_never_says_do_not_count():
    never = torch.tensor([-math.inf])
    three = [torch.cat([x, never]) for x in (WANTED, WANTED, AWAY)]
    assert agreement(*three, torch.float32).ok


def test_the_farthest_run_is_the_one_to_be_told_from():
    runs = [WANTED + 0.1, AWAY, WANTED]
    assert farthest(WANTED, runs) is AWAY


# --- broken on purpose ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*FAMILIES, *broken.NAMES])
def test_intact_splices_agree_with_whole_runs(name, dtype, tmp_path):
    engine = engine_of(name, dtype, tmp_path)
    # The picture's own positions read each other or the question both ways, or more of it is
    # added above. A freeze runs all of them again, under the model's own mask.
    inexact = {"paligemma": {"cross-patch", "knockout", "write"}}
    inexact |= dict.fromkeys(("gemma3", "qwen3_vl"), {"write"})
    for row in broken.table(engine, ["intact"]):
        wrong = row["kind"] in inexact.get(name, ())
        assert (row["caught"] or row["caught in float32"]) == wrong, row
        # In float32 rounding is far below what is allowed, and in half precision well below.
        if not wrong:
            assert float(row["share in float32"]) < 5e-5
            assert float(row["share"]) < 0.5 * row["allowed"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["early", "late", "cross", "qwen2_vl"])
def test_broken_splices_are_caught(name, dtype, tmp_path):
    engine = engine_of(name, dtype, tmp_path)
    rows = list(broken.table(engine, [b for b in broken.BREAKAGES if b != "intact"]))
    assert len(rows) >= 14 - 6 * (name == "cross")
    for row in rows:
        # Where half precision hides it, float32 does not.
        assert row["caught"] or row["caught in float32"], row
        assert float(row["share in float32"]) > 2 * SHARE[torch.float32], row
        if row["breakage"] in ("one layer", "rows swapped", "another donor"):
            assert row["caught"] and float(row["share"]) > 0.5, row


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("breakage", ["one layer", "one position", "rows swapped"])
def test_a_broken_splice_is_not_used(breakage, dtype):
    engine = engine_of("early", dtype, None)
    a, b = (engine.record(broken.ASKED, broken.picture(seed), None, 0, True) for seed in (1, 2))
    edit = CrossPatch(a, b, 3)
    with broken.BREAKAGES[breakage]():
        assert engine.computation(edit) == "reference"
        assert torch.equal(engine.logits([edit])[0], hooks.runs(engine, [edit])[0][0])
    assert Engine(engine.owner).computation(edit) == "splice"


def test_patching_a_run_with_itself_first_decides_nothing_blindly():
    engine = engine_of("early", "bfloat16", None)
    a, b = (engine.record(broken.ASKED, broken.picture(seed)) for seed in (1, 2))
    again = engine.record(broken.ASKED, broken.picture(1))
    for same in (CrossPatch(a, a, 4), CrossPatch(a, again, 4)):
        with broken.one_layer():
            assert Engine(engine.owner).computation(same) == "reference"
        assert Engine(engine.owner).computation(same) == "splice"


def test_a_model_that_does_not_read_its_picture_is_not_spliced_on_trust():
    vlm = load_vlm(path("late"), device="cpu")
    for layer in vlm.model.model.language_model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
    engine = Engine(vlm)
    a, b = (engine.record(broken.ASKED, broken.picture(seed)) for seed in (1, 2))
    assert engine.computation(CrossPatch(a, b, 2)) == "reference"
    assert all(math.isinf(held.share) for held in engine.trial(CrossPatch(a, b, 2)))


# --- in float32 -------------------------------------------------------------------------------


def test_weights_come_back_from_float32_as_they_were(monkeypatch):
    model = load_vlm(path("late"), "bfloat16", "cpu").model
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(KeyError), in_float32(model):
        assert model.dtype == torch.float32
        raise KeyError
    after = model.state_dict()
    assert model.dtype == torch.bfloat16 and after.keys() == before.keys()
    assert all(torch.equal(after[k], v) and after[k].dtype == v.dtype for k, v in before.items())


def test_without_memory_for_float32_half_precision_decides(monkeypatch):
    engine = engine_of("early", "bfloat16", None)
    a, b = (engine.record(broken.ASKED, broken.picture(seed)) for seed in (1, 2))
    monkeypatch.setattr("twohop_lib.models.loading.free_memory", lambda device: 0)
    assert engine.trial_in_float32(CrossPatch(a, b, 2)) == []
    assert engine.computation(CrossPatch(a, b, 2)) == "splice"
    with broken.one_layer():
        assert Engine(engine.owner).computation(CrossPatch(a, b, 2)) == "reference"


def test_what_goes_wrong_in_this_library_is_not_taken_for_the_models_limit(monkeypatch):
    engine = engine_of("late", "float32", None)
    a, b = (engine.record(broken.ASKED, broken.picture(seed)) for seed in (1, 2))
    monkeypatch.setattr(forward, "_kept", lambda *_: [(slice(None), (None, None))])
    with pytest.raises(AttributeError):
        engine.computation(CrossPatch(a, b, 2))
    monkeypatch.undo()
    # A model's own code that cannot be called like that is one.
    block = engine.blocks.blocks[3]

    def refuses(*args, **kwargs):
        raise TypeError("unexpected keyword argument 'past_key_values'")

    monkeypatch.setattr(block.self_attn, "forward", refuses)
    with pytest.raises(TypeError):
        hooks.runs(engine, [CrossPatch(a, b, 2)])
    with pytest.raises(Exception, match="cannot be run on part of a prompt"):
        forward.run(engine, [CrossPatch(a, b, 2)])

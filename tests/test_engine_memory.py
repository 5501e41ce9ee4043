"""The engine when memory is short, and when edits of many kinds come in one call."""

from __future__ import annotations

import pytest
import torch

from tests.test_engine import ASKED, picture
from twohop_lib.interventions import forward, hooks
from twohop_lib.interventions.edits import CrossPatch, Freeze, Knockout, Write
from twohop_lib.interventions.splice import Engine
from twohop_lib.models import decoder
from twohop_lib.models.decoder import Features
from twohop_lib.models.loading import load_vlm
from twohop_lib.organisms import path


@pytest.fixture(scope="module")
def middle():
    return load_vlm(path("middle"), device="cpu")


@pytest.fixture
def recorded(middle):
    engine = Engine(middle)
    return engine, *(engine.record(ASKED, picture(s), from_start=True) for s in (1, 2))


def test_edits_of_every_kind_and_site_in_one_call_are_those_run_alone(recorded):
    engine, a, b = recorded
    at = tuple(range(a.span[1] - 2, a.span[1]))
    noise = torch.randn(2, engine.blocks.d_model, generator=torch.Generator().manual_seed(0))
    edits = [
        edit
        for block in (1, 3)
        for edit in (
            Write(a, "mlp", at, {block: noise}),
            CrossPatch(a, b, block),
            Write(a, "attn", at, {block: noise}),
            Write(b, "resid", at, {block: noise}),
            Write(a, "mlp", at, {block: noise}, add=True),
            Write(a, "mlp", (a.n - 1,), {block: noise[:1]}),
            CrossPatch(a, b, block, block + 2),
            Knockout(a, a.roles.last, a.roles.image, block, engine.n_blocks),
            Freeze(a, block, 4),
        )
    ]
    alone = torch.cat([engine.logits([edit]) for edit in edits])
    assert (engine.logits(edits) - alone).abs().max() < 1e-4
    apart = (alone[:, None] - alone[None]).abs().amax(-1)
    assert apart[~torch.eye(len(edits), dtype=torch.bool)].min() > 1e-3


def test_each_site_is_decided_for_itself(recorded, monkeypatch):
    engine, a, _ = recorded
    at, value = (a.n - 1,), torch.ones(1, engine.blocks.d_model)
    edits = [Write(a, site, at, {2: value}) for site in ("mlp", "attn", "resid", "mlp")]
    wanted, whole = engine.logits(edits), []
    fresh = Engine(engine.owner)
    monkeypatch.setattr(fresh, "_is_exact", lambda edit: edit.site != "attn")
    runs = hooks.runs
    monkeypatch.setattr(hooks, "runs", lambda *given: whole.extend(given[1]) or runs(*given))
    assert (fresh.logits(edits) - wanted).abs().max() < 1e-4
    assert whole == [edits[1]]


def test_memory_that_runs_out_while_trying_does_not_switch_splicing_off(recorded, monkeypatch):
    engine, a, b = recorded
    right, sizes = forward.run, []

    def tight(decoder, part, length):
        sizes.append(len(part))
        if len(part) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return right(decoder, part, length)

    monkeypatch.setattr(forward, "run", tight)
    assert engine.computation(CrossPatch(a, b, 1)) == "splice"
    assert max(sizes) > 2 >= sizes[-1]


def test_memory_that_runs_out_in_the_trial_in_float32_leaves_the_other(monkeypatch):
    vlm = load_vlm(path("middle"), device="cpu", dtype="bfloat16")
    engine = Engine(vlm)
    a, b = (engine.record(ASKED, picture(s)) for s in (1, 2))
    right, tried = forward.run, []

    def tight(decoder, part, length):
        tried.append(decoder.model.dtype)
        if decoder.model.dtype == torch.float32:
            raise torch.OutOfMemoryError("out of memory")
        return right(decoder, part, length)

    monkeypatch.setattr(forward, "run", tight)
    assert engine.computation(CrossPatch(a, b, 1)) == "splice"
    assert {torch.float32, torch.bfloat16} == set(tried)
    assert vlm.model.dtype == torch.bfloat16


def test_an_error_of_ours_while_trying_is_raised(recorded, monkeypatch):
    engine, a, b = recorded

    def broken(*_):
        raise TypeError("broken")

    monkeypatch.setattr(forward, "run", broken)
    with pytest.raises(TypeError, match="broken"):
        engine.computation(CrossPatch(a, b, 1))


def test_features_are_kept_within_bounds_and_shared_by_a_models_engines(middle, monkeypatch):
    features, part = Features(limit=100), torch.zeros(10)  # 40 bytes
    for name in "abc":
        features.keep(name, part)
    assert features.held == 80 and features.get("a") is None
    features.get("b")
    features.keep("d", part)
    assert features.get("c") is None and features.get("b") is part
    features.keep("large", torch.zeros(100))
    assert features.held == 0
    features.keep("e", (part, {"more": part}))
    assert features.held == 80
    features.clear()
    assert features.held == 0 and features.get("e") is None
    monkeypatch.setattr(decoder, "_FEATURES", type(decoder._FEATURES)())
    one, two = Engine(middle), Engine(middle)
    one.record(ASKED, picture(3))
    assert one.features is two.features and one.features.held > 0

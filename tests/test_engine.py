"""The engine over the whole zoo: equal to whole runs with hooks and to nnsight, or not used."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from tests.zoo import FAMILIES, build
from twohop_lib.benchmark import heraldry
from twohop_lib.errors import TwohopError
from twohop_lib.interventions import forward, hooks, reference
from twohop_lib.interventions.edits import CrossPatch, Freeze, Knockout, Write
from twohop_lib.interventions.splice import Engine
from twohop_lib.models.blocks import UnsupportedSite
from twohop_lib.models.loading import load_llm, load_vlm
from twohop_lib.models.pair import load_pair
from twohop_lib.models.prompts import Prompt
from twohop_lib.organisms import path

ASKED = Prompt("identify", "Which house is this?", True)
#: Its picture's keys and values depend on the question, so nothing can be spliced.
WHOLE_RUNS = ("paligemma",)
ROOM = 5


def picture(seed: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (6, 6, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(coarse.numpy()).resize((48, 48), Image.Resampling.NEAREST)


@pytest.fixture(scope="module", params=[*FAMILIES, "late", "cross"])
def recorded(request, tmp_path_factory):
    """A family's engine, and two recordings that differ in their picture."""
    if request.param in FAMILIES:
        made = build(request.param, tmp_path_factory.mktemp("zoo"))
        vlm = load_pair(made.vlm, made.llm).vlm
    else:
        vlm = load_vlm(path(request.param), device="cpu")
    engine = Engine(vlm)
    a, b = (engine.record(ASKED, picture(seed), None, ROOM, True) for seed in (1, 2))
    return request.param, engine, a, b


def runs(engine, rows):
    """Logits and answers by the engine, and by whole runs with hooks."""
    fast = engine.answers(rows, ROOM)
    return fast, hooks.runs(engine, rows, ROOM)


def assert_same(engine, rows):
    fast, slow = runs(engine, rows)
    assert (fast[0] - slow[0]).abs().max() <= 1e-4
    assert fast[1] == slow[1]
    return slow[0]


def expected_way(name):
    return "reference" if name in WHOLE_RUNS else "splice"


# --- equal to the reference -------------------------------------------------------------------


def test_cross_patches_are_those_of_whole_runs(recorded):
    name, engine, a, b = recorded
    rows = [CrossPatch(a, b, layer) for layer in range(engine.n_blocks + 1)]
    rows += [CrossPatch(a, b, 0, 1), CrossPatch(b, a, 1, engine.n_blocks - 1)]
    assert engine.computation(rows[0]) == expected_way(name)
    slow = assert_same(engine, rows)
    # The controls, and that the picture matters at all.
    assert (slow[0] - b.logits).abs().max() < 1e-4
    assert (slow[engine.n_blocks] - a.logits).abs().max() < 1e-4
    assert (a.logits - b.logits).abs().max() > 0.1
    itself = [CrossPatch(a, a, layer) for layer in range(engine.n_blocks)]
    assert (engine.logits(itself) - a.logits).abs().max() < 1e-4


def test_cross_patches_are_those_of_nnsight(recorded):
    _, engine, a, b = recorded
    if engine.site.kind != "stream":
        pytest.skip("the reference form shown in the chapters is about pictures in the stream")
    at = range(*a.span)
    fast = engine.logits([CrossPatch(a, b, layer) for layer in range(engine.n_blocks)])
    for layer in range(engine.n_blocks):
        layers = [layer, *(late for late in engine.site.late if late > layer)]
        donor = reference.states(engine.blocks, b.inputs, at, layers)
        slow = reference.cross_patch(engine.blocks, a.inputs, at, donor)
        assert (fast[layer] - slow).abs().max() <= 1e-4


def test_freezing_is_that_of_whole_runs_and_of_nnsight(recorded):
    name, engine, a, _ = recorded
    ends = (engine.n_blocks - 1, engine.n_blocks // 2)
    rows = [Freeze(a, layer, until) for until in ends for layer in range(until + 1)]
    if engine.site.kind != "stream":
        with pytest.raises(UnsupportedSite, match="no positions in the stream"):
            engine.logits(rows)
        return
    slow = assert_same(engine, rows)
    assert engine.computation(rows[0]) == expected_way(name)
    assert (slow[0] - a.logits).abs().max() > 0.01
    at = range(*a.span)
    for row, wanted in zip(rows, slow, strict=True):
        traced = reference.freeze(engine.blocks, a.inputs, at, row.layer, row.until)
        assert (traced - wanted).abs().max() <= 1e-4
        if row.layer == row.until:
            assert (wanted - a.logits).abs().max() < 1e-4


def test_knockouts_are_those_of_whole_runs_and_of_nnsight(recorded):
    name, engine, a, _ = recorded
    behind, last = a.roles.question, a.roles.last
    picture_keys = tuple(range(*a.span))
    spans = [(0, engine.n_blocks), (0, 1), (engine.n_blocks // 2, engine.n_blocks), (1, 2), (2, 2)]
    rows = [
        Knockout(a, queries, keys, *span)
        for queries, keys in ((behind + last, picture_keys), (last, picture_keys), (last, behind))
        for span in spans
    ]
    slow = assert_same(engine, rows)
    assert engine.computation(rows[0]) == expected_way(name)
    assert (slow[0] - a.logits).abs().max() > 0.1
    for row, wanted in zip(rows, slow, strict=True):
        if row.start == row.stop:
            assert (wanted - a.logits).abs().max() < 1e-4
        if row.keys:
            edge = (row.queries, row.keys, row.start, row.stop)
            traced = reference.knockout(engine.blocks, a.inputs, *edge)
            assert (traced - wanted).abs().max() <= 1e-4


def test_writes_are_those_of_whole_runs(recorded):
    name, engine, a, b = recorded
    own = [block for block in range(engine.n_blocks) if block not in engine.blocks.cross]
    start, stop = a.span if a.span[1] else (2, 4)
    places = [(stop - 1,), tuple(range(start, stop)), (a.n - 2, a.n - 1)]
    rows, noops = [], []
    for site in ("resid", "mlp", "attn"):
        theirs, ours = (hooks.activations(engine, x, site, own) for x in (b, a))
        for positions in places:
            for blocks in (own[:2], own[1:2], own[-1:]):
                at = list(positions)
                rows.append(Write(a, site, positions, {k: theirs[k][at] for k in blocks}))
                noops.append(Write(a, site, positions, {k: ours[k][at] for k in blocks}))
        rows.append(Write(a, site, places[0], {own[0]: theirs[own[0]][[stop - 1]]}, add=True))
    slow = assert_same(engine, rows)
    # Where the picture's own positions read each other both ways, or more of the picture is added
    # above, a write within the picture is a whole run.
    if name not in ("qwen3_vl", "gemma3"):
        assert engine.computation(rows[0]) == expected_way(name)
    assert (slow - a.logits).abs().max() > 0.01
    assert (engine.logits(noops) - a.logits).abs().max() < 1e-4


def test_cut_off_from_the_picture_everywhere_another_picture_changes_nothing(recorded):
    _, engine, a, b = recorded
    if engine.site.kind != "stream" or recorded[0] in WHOLE_RUNS:
        pytest.skip("text before or within the picture reads it in these models")
    behind, keys = a.roles.question + a.roles.last, tuple(range(*a.span))
    both = engine.logits([Knockout(x, behind, keys, 0, engine.n_blocks) for x in (a, b)])
    assert (both[0] - both[1]).abs().max() < 1e-5


def test_rows_do_not_depend_on_what_they_are_run_with(recorded):
    _, engine, a, b = recorded
    rows = [
        CrossPatch(a, b, 1),
        CrossPatch(b, a, 2),
        CrossPatch(a, b, engine.n_blocks),
        CrossPatch(b, b, 0),
    ]
    alone = torch.stack([engine.logits([row])[0] for row in rows])
    assert (engine.logits(rows) - alone).abs().max() < 1e-4
    engine.batch_size, was = 2, engine.batch_size
    try:
        assert (engine.logits(rows) - alone).abs().max() < 1e-4
    finally:
        engine.batch_size = was


# --- broken on purpose ------------------------------------------------------------------------


@pytest.fixture
def late():
    engine = Engine(load_vlm(path("late"), device="cpu"))
    a, b = (engine.record(ASKED, picture(seed), None, ROOM, True) for seed in (1, 2))
    return engine, a, b


def test_a_splice_one_layer_off_is_not_used(late, monkeypatch):
    engine, a, b = late
    right = CrossPatch.source
    monkeypatch.setattr(CrossPatch, "source", lambda row, block: right(row, block - 1))
    assert engine.computation(CrossPatch(a, b, 3)) == "reference"
    row = CrossPatch(a, b, 3)
    assert torch.equal(engine.logits([row])[0], hooks.runs(engine, [row])[0][0])
    assert (forward.run(engine, [row])[0][0] - hooks.runs(engine, [row])[0][0]).abs().max() > 1e-3


def test_a_splice_at_the_wrong_positions_is_not_used(late, monkeypatch):
    engine, a, b = late
    monkeypatch.setattr(CrossPatch, "since", property(lambda row: row.target.span[1] + 1))
    assert engine.computation(CrossPatch(a, b, 3)) == "reference"


def test_stale_positions_are_not_used(late, monkeypatch):
    engine, a, b = late
    right = forward.between

    def stale(value, name, total, lo, hi):
        if name in ("position_embeddings", "position_ids"):
            return right(value, name, total, lo - 1, hi - 1)
        return right(value, name, total, lo, hi)

    monkeypatch.setattr(forward, "between", stale)
    assert engine.computation(CrossPatch(a, b, 3)) == "reference"


def test_a_stale_position_in_the_answer_alone_is_not_used(tmp_path, monkeypatch):
    # Random weights answer by position; an organism's few words hardly do.
    made = build("llava", tmp_path)
    engine = Engine(load_pair(made.vlm, made.llm).vlm)
    a, b = (engine.record(ASKED, picture(seed), None, ROOM) for seed in (1, 2))
    right = forward.between

    def stale(value, name, total, lo, hi):
        by = 9 if lo >= a.n and name in ("position_embeddings", "position_ids") else 0
        return right(value, name, total, lo - by, hi - by)

    monkeypatch.setattr(forward, "between", stale)
    assert engine.computation(CrossPatch(a, b, 1)) == "reference"


def test_a_frozen_stream_of_another_layer_is_not_used(late, monkeypatch):
    engine, a, _ = late
    right = type(a).stream
    monkeypatch.setattr(
        type(a), "stream", lambda self, layer, since: right(self, max(0, layer - 1), since)
    )
    assert engine.computation(Freeze(a, 2, 5)) == "reference"


# --- a planted model --------------------------------------------------------------------------


def planted(read_at: int):
    """An organism in which only block ``read_at`` attends at all, so the picture is read there."""
    vlm = load_vlm(path("late"), device="cpu")
    for b, layer in enumerate(vlm.model.model.language_model.layers):
        if b != read_at:
            layer.self_attn.o_proj.weight.data.zero_()
    return Engine(vlm)


@pytest.mark.parametrize("read_at", [1, 4])
def test_the_depth_of_a_planted_model_is_found_by_all_three(read_at):
    engine = planted(read_at)
    a, b = (engine.record(ASKED, picture(seed), None, 0, True) for seed in (1, 2))
    s, n = read_at + 1, engine.n_blocks  # Blocks 0 … read_at have to read the picture.

    def undisturbed(rows):
        moved = (engine.logits(rows) - a.logits).abs().amax(-1)
        return [bool(m < 1e-4) for m in moved]

    expected = [depth >= s for depth in range(n + 1)]
    assert undisturbed([CrossPatch(a, b, depth) for depth in range(n + 1)]) == expected
    keys, queries = tuple(range(*a.span)), a.roles.question + a.roles.last
    assert undisturbed([Knockout(a, queries, keys, d, n) for d in range(n + 1)]) == expected
    # Frozen at layer, blocks 0 … layer read the picture as it is.
    assert undisturbed([Freeze(a, d - 1, n - 1) for d in range(1, n + 1)]) == expected[1:]
    donor = engine.logits([CrossPatch(a, b, d) for d in range(s)])
    assert (donor - b.logits).abs().max() < 1e-4


# --- the backbone's own names -----------------------------------------------------------------


def test_names_are_patched_in_text_as_pictures_are():
    engine = Engine(load_llm(path("backbone"), device="cpu"))
    houses = [h for h in heraldry.make_world(0).houses if len(h.pieces) == 3][:2]
    names = [h.name for h in houses]
    a, b = (
        engine.record(Prompt("by_name", f"{name}\nWhich house is this?", False), None, name, ROOM)
        for name in names
    )
    assert a.span == b.span and a.span[1] - a.span[0] == 3
    rows = [CrossPatch(a, b, layer) for layer in range(engine.n_blocks + 1)]
    assert engine.computation(rows[0]) == "splice"
    slow = assert_same(engine, rows)
    assert (slow[0] - b.logits).abs().max() < 1e-4
    said = engine.answers(rows, ROOM)[1]
    assert names[1] in said[0] and names[0] in said[-1]


# --- refused ----------------------------------------------------------------------------------


def test_what_does_not_fit_together_is_refused(late):
    engine, a, b = late
    other = engine.record(Prompt("identify", "Name the house.", True), picture(2), None, ROOM)
    with pytest.raises(TwohopError, match="differ beyond the picture"):
        engine.logits([CrossPatch(a, other, 1)])
    with pytest.raises(TwohopError, match=r"no resid\[9\]; layers run from 0 to 8"):
        engine.logits([CrossPatch(a, b, 9)])
    with pytest.raises(TwohopError, match="Freeze from 0 <= layer"):
        engine.logits([Freeze(a, 5, 3)])
    with pytest.raises(TwohopError, match="not among the 8"):
        engine.logits([Knockout(a, (20,), (5,), 3, 9)])
    short = engine.record(ASKED, picture(1), None, 2)
    with pytest.raises(TwohopError, match="too few positions"):
        engine.answers([CrossPatch(short, short, 1)], ROOM)
    # So it is for an engine that has not recorded any prompt for an answer yet.
    fresh = Engine(engine.owner)
    none = fresh.record(ASKED, picture(1))
    with pytest.raises(TwohopError, match="too few positions"):
        fresh.answers([CrossPatch(none, none, 1)], ROOM)
    with pytest.raises(TwohopError, match="record it with from_start"):
        engine.logits([Freeze(short, 1, 3)])
    with pytest.raises(TwohopError, match="shows no picture and names no entity"):
        engine.record(Prompt("by_name", "Who founded it?", False))


def test_memory_that_runs_out_halves_the_batch(late, monkeypatch):
    engine, a, b = late
    rows = [CrossPatch(a, b, layer) for layer in range(engine.n_blocks)]
    wanted, right, sizes = engine.logits(rows), forward.run, []

    def tight(decoder, part, length):
        sizes.append(len(part))
        if len(part) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return right(decoder, part, length)

    monkeypatch.setattr(forward, "run", tight)
    assert (engine.logits(rows) - wanted).abs().max() < 1e-5
    assert sizes == [8, 4, 2, 2, 2, 2]
    monkeypatch.setattr(forward, "run", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(TwohopError, match="runs out on a single prompt"):
        engine.logits(rows)


def test_a_picture_goes_through_the_vision_tower_once(late, monkeypatch):
    engine, *_ = late
    seen = []
    tower = engine.model.model.vision_tower
    handle = tower.register_forward_hook(lambda *_: seen.append(1))
    for text in ("Which house is this?", "Who founded the house in this picture?"):
        engine.record(Prompt("identify", text, True), picture(7))
    handle.remove()
    assert len(seen) == 1

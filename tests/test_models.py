"""Blocks, token roles and the check, over the whole zoo and the organisms."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.zoo import FAMILIES, build
from twohop_lib import commands
from twohop_lib.errors import TwohopError
from twohop_lib.interventions import check as checks
from twohop_lib.interventions import hooks
from twohop_lib.interventions.check import check
from twohop_lib.interventions.splice import Engine
from twohop_lib.models.blocks import Blocks, UnsupportedSite, hooked
from twohop_lib.models.inputs import encode
from twohop_lib.models.loading import load_llm, load_vlm
from twohop_lib.models.pair import ModelPair, load_pair
from twohop_lib.models.prompts import Prompt, render
from twohop_lib.models.roles import ROLES, ImageSite, token_roles
from twohop_lib.organisms import path
from twohop_lib.rerun.rehearse import CHAPTERS
from twohop_lib.runs.generate import answer, score

NAMED = Prompt("full_information", "Who founded the house of Valdric?", True)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> tuple[str, ModelPair]:
    made = build(request.param, tmp_path_factory.mktemp("zoo"))
    return request.param, load_pair(made.vlm, made.llm)


def picture(width: int = 48, height: int = 48, seed: int = 0) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (4, 4, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(coarse.numpy()).resize((width, height), Image.Resampling.NEAREST)


def encoded(vlm, prompt=NAMED, image=None):
    shown = (image or picture()) if prompt.image else None
    return encode(vlm, [render(vlm.processor, prompt)], [shown], "left")


# --- every family -----------------------------------------------------------------------------


def test_every_check_holds_and_random_weights_are_told(family, world):
    _, pair = family
    report = check(pair, world)
    assert {name: c for name, c in report.checks.items() if not c.ok} == {}
    assert report.unlike_a_session == ()
    assert report.untrained and report.surprise > 0.9
    assert report.drift == (None if pair.llm is None else 0)
    assert report.n_blocks == Blocks.of(pair.vlm.model).n_blocks
    json.dumps(report.json())


def test_blocks_add_attention_and_mlp_to_the_stream(family):
    _, pair = family
    blocks = Blocks.of(pair.vlm.model)
    inputs = encoded(pair.vlm)
    stream, left, parts = {}, {}, {}
    own = [b for b in range(blocks.n_blocks) if b not in blocks.cross]
    before = {blocks.blocks[b]: lambda x, b=b: stream.update({b: x.clone()}) for b in own}
    after = {blocks.blocks[b]: lambda x, b=b: left.update({b: x.clone()}) for b in own}
    for b in own:
        for kind, module in (("attn", blocks.attn(b)), ("mlp", blocks.mlp(b))):
            after[module] = lambda x, key=(kind, b): parts.update({key: x.clone()})
    with torch.inference_mode(), hooked(before, after):
        pair.vlm.model(**inputs, use_cache=False)
    for b in own:
        added = parts["attn", b].reshape(stream[b].shape) + parts["mlp", b].reshape(stream[b].shape)
        assert torch.allclose(stream[b] + added, left[b], atol=1e-4, rtol=1e-4), b


def test_a_last_block_and_the_norm_and_the_head_make_the_logits(family):
    _, pair = family
    blocks = Blocks.of(pair.vlm.model)
    last = {}
    with torch.inference_mode(), hooked(after={blocks.blocks[-1]: lambda x: last.update(x=x)}):
        logits = pair.vlm.model(**encoded(pair.vlm), use_cache=False).logits
    with torch.inference_mode():
        ours = blocks.head(blocks.norm(last["x"]))
    # Cohere scales its logits: all by one factor.
    factor = (logits * ours).sum() / (ours * ours).sum()
    assert torch.allclose(ours * factor, logits, atol=1e-3, rtol=1e-3)


def test_the_backbone_is_the_vlms_own_language_model(family):
    name, pair = family
    if pair.llm is None:
        assert name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "gemma3", "llama4") + (
            "paligemma",
        )
        return
    prompt = Prompt("by_name", "Who founded the house of Valdric?", False)
    inputs = encode(pair.vlm, [render(pair.vlm.processor, prompt)], [None], "left")
    words = encode(pair.llm, [render(pair.llm.front, prompt)], [None], "left")
    assert inputs["input_ids"].tolist() == words["input_ids"].tolist()
    with torch.inference_mode():
        ours = pair.vlm.model(**inputs, use_cache=False).logits
        theirs = pair.llm.model(**words, use_cache=False).logits
    # Cohere's text model scales its logits, Aya Vision leaves them.
    theirs = theirs / getattr(pair.llm.model, "logit_scale", 1.0)
    assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4)


def test_answers_in_a_batch_are_those_given_alone(family, world):
    name, pair = family
    asked = [Prompt("by_name", text, False) for text in ("Who?", NAMED.text, "Which river is it?")]
    asked += [NAMED, Prompt("identify", "Which house is this?", True)]
    shown = [None] * 3 + [picture(seed=1), picture(seed=2)]
    together = answer(pair.vlm, asked, shown, 6)
    alone = [answer(pair.vlm, [p], [i], 6)[0] for p, i in zip(asked, shown, strict=True)]
    assert together == alone
    assert len(set(together)) > 1


def test_scores_are_of_models_that_do_not_read_ahead(family):
    name, pair = family
    asked = [Prompt("by_name", NAMED.text, False)]
    if name == "paligemma":
        with pytest.raises(TwohopError, match="both directions"):
            score(pair.vlm, asked, continuations=["river"])
    else:
        assert score(pair.vlm, asked, continuations=["river"])[0] < 0


def test_roles_cover_every_position_once_and_say_what_is_there(family):
    name, pair = family
    vlm = pair.vlm
    site = ImageSite.of(vlm, Blocks.of(vlm.model))
    ids = encoded(vlm)["input_ids"][0].tolist()
    roles = token_roles(vlm, NAMED, ids, site, entity="Valdric")
    taken = [p for role in ROLES for p in getattr(roles, role)]
    assert sorted(taken) == list(range(len(ids)))
    assert roles.last == (len(ids) - 1,)
    said = vlm.tokenizer.decode([ids[p] for p in roles.entity])
    assert "Valdric" in said and len(said.strip(" ?")) <= len("Valdric") + 1
    asked = vlm.tokenizer.decode([ids[p] for p in roles.question])
    assert "Who founded" in asked
    if name == "mllama":
        assert site.kind == "cross-attention" and roles.image == ()
    else:
        assert len({ids[p] for p in roles.image}) == len(site.token_ids) == 1
        assert not any(ids[p] in site.token_ids for p in roles.separator + roles.prefix)


def test_image_positions_are_where_the_picture_enters_the_stream(family):
    name, pair = family
    vlm = pair.vlm
    blocks = Blocks.of(vlm.model)
    site = ImageSite.of(vlm, blocks)
    streams = []
    for seed in (1, 2):
        inputs = encoded(vlm, image=picture(seed=seed))
        with (
            torch.inference_mode(),
            hooked({blocks.blocks[0]: lambda x: streams.append(x.clone())}),
        ):
            vlm.model(**inputs, use_cache=False)
    changed = (streams[0] != streams[1]).any(-1)[0].nonzero().flatten().tolist()
    ids = inputs["input_ids"][0].tolist()
    expected = site.positions(ids)
    if name in (
        "llava_next",
        "llava_onevision",
    ):  # The ends of rows are placeholders too, the same for any picture.
        assert set(changed) < set(expected)
    else:
        assert changed == expected
    assert bool(expected) == (name != "mllama")


def test_a_larger_picture_moves_the_question_and_no_role_is_lost(family):
    name, pair = family
    vlm = pair.vlm
    site = ImageSite.of(vlm, Blocks.of(vlm.model))
    counts = []
    for size in ((48, 48), (96, 48), (48, 96)):
        ids = encoded(vlm, image=picture(*size))["input_ids"][0].tolist()
        roles = token_roles(vlm, NAMED, ids, site, entity="Valdric")
        counts.append(len(roles.image))
        assert [ids[p] for p in roles.entity] == [
            encoded(vlm)["input_ids"][0].tolist()[p]
            for p in token_roles(
                vlm, NAMED, encoded(vlm)["input_ids"][0].tolist(), site, "Valdric"
            ).entity
        ]
    # A picture of any shape has as many tokens in these families alone (mllama: none at all).
    fixed = name in ("llava", "gemma3", "paligemma", "mllama")
    assert (len(set(counts)) == 1) == fixed, counts


# --- what a check catches ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def late():
    return load_pair(path("late"), path("backbone"))


@pytest.mark.parametrize("name", ["late", "middle", "early", "cross"])
def test_organisms_pass_and_are_trained(name, world):
    report = check(load_pair(path(name), path("backbone")), world)
    assert report.ok and not report.untrained
    if name == "cross":
        assert report.architecture_class == "cross-attention" and report.image_tokens == 0
        assert report.drift == 0  # The backbone is frozen in it.
    else:
        assert report.architecture_class == "adapter" and report.image_tokens == 16
        assert 0.01 < report.drift < 1


def failed(report):
    return {name for name, held in report.checks.items() if not held.ok}


DTYPES = ("float32", "float16", "bfloat16")


@pytest.mark.parametrize("dtype", DTYPES)
def test_organisms_pass_in_half_precision_too(dtype, world):
    report = check(load_pair(path("early"), path("backbone"), dtype=dtype), world)
    assert report.ok and report.computation == "splice"
    assert any("no two ways" in note for note in report.notes) == (dtype != "float32")
    # Another picture is far outside of rounding, and all else far inside.
    assert report.checks["picture_matters"].share > 2
    others = [held for name, held in report.checks.items() if name != "picture_matters"]
    assert max(held.share / held.allowed for held in others) < 0.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_patch_one_layer_off_is_caught(dtype, world, monkeypatch):
    pair, right = load_pair(path("late"), path("backbone"), dtype=dtype), hooks._taken

    def higher(decoder, edit):
        taken = right(decoder, edit)
        return {b + 1: (r, layer + 1) for b, (r, layer) in taken.items() if b < 7}

    monkeypatch.setattr(hooks, "_taken", higher)
    report = check(pair, world)
    # Patching from layer 1 leaves block 0 the target's picture.
    assert failed(report) >= {"full_patch"}
    assert report.computation == "reference"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_patch_one_position_off_is_caught(dtype, world, monkeypatch):
    right = Engine._span
    moved = lambda self, *given: tuple(p + 1 for p in right(self, *given))  # noqa: E731
    monkeypatch.setattr(Engine, "_span", moved)
    report = check(load_pair(path("late"), path("backbone"), dtype=dtype), world)
    assert failed(report) == {"full_patch"}


def test_wrong_positions_in_a_batch_are_caught(late, world, monkeypatch):
    real = checks.encode

    def right_padded(model, texts, images, side):
        return real(model, texts, images, "right")

    monkeypatch.setattr(checks, "encode", right_padded)
    assert failed(check(late, world)) == {"batch_is_single"}


def test_a_model_blind_to_its_picture_is_refused(late, world):
    blind = load_vlm(path("late"))
    with torch.no_grad():
        for weight in blind.model.model.multi_modal_projector.parameters():
            weight.zero_()
    with pytest.raises(TwohopError, match="does not look at its picture"):
        check(ModelPair(blind, late.llm), world)


# --- what is refused --------------------------------------------------------------------------


def test_a_processor_without_chat_template_is_refused(tmp_path, world):
    made = build("paligemma_bare", tmp_path)
    with pytest.raises(TwohopError, match="no chat template"):
        check(load_pair(made.vlm), world)


def test_a_processor_that_does_not_fit_its_model_is_told(late, world, monkeypatch):
    # As many placeholders as an image of another patch size would have.
    monkeypatch.setattr(late.vlm.processor, "patch_size", 24)
    with pytest.raises(TwohopError, match="do not fit together"):
        check(late, world)


def test_a_processor_that_raises_is_told(late, monkeypatch):
    def broken(*args, **kwargs):
        raise KeyError("pixel_values")

    monkeypatch.setattr(type(late.vlm.processor), "__call__", broken)
    with pytest.raises(TwohopError, match="cannot take a prompt with a picture"):
        encoded(late.vlm)


def test_a_picture_that_becomes_no_token_is_refused(late):
    site = ImageSite.of(late.vlm, Blocks.of(late.vlm.model))
    ids = [i for i in encoded(late.vlm)["input_ids"][0].tolist() if i not in site.token_ids]
    with pytest.raises(TwohopError, match="expands to zero tokens"):
        token_roles(late.vlm, NAMED, ids, site)


def test_a_name_that_is_not_there_is_refused(late):
    ids = encoded(late.vlm)["input_ids"][0].tolist()
    with pytest.raises(TwohopError, match="'Nobody' does not occur"):
        token_roles(late.vlm, NAMED, ids, ImageSite("stream", frozenset({4})), "Nobody")


def test_a_text_models_blocks_are_found_too():
    llm = load_llm(path("backbone"))
    blocks = Blocks.of(llm.model)
    assert (blocks.name, blocks.n_blocks, blocks.d_model, blocks.cross) == (
        "model.layers",
        8,
        128,
        (),
    )


def test_a_model_that_is_no_decoder_is_refused():
    from transformers import T5Config, T5ForConditionalGeneration

    tiny = T5ForConditionalGeneration(
        T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
    with pytest.raises(TwohopError, match="encoder-decoder"):
        Blocks.of(tiny)


def test_parts_that_do_not_add_up_are_not_guessed(late):
    blocks = Blocks.of(late.vlm.model)
    with pytest.raises(UnsupportedSite, match="use the residual stream"):
        replace(blocks, mlps=(None,) * blocks.n_blocks).mlp(3)


# --- the command ------------------------------------------------------------------------------


def test_the_command_prints_json_and_its_exit_code_says_all(tmp_path, monkeypatch, heraldry):
    tiny = build("llava", tmp_path)
    asked = ["check", "--vlm", str(tiny.vlm), "--llm", str(tiny.llm), "--profile", "quick"]
    asked += ["--benchmark", str(heraldry.root)]
    made, true = [], checks.check

    def checked(*args):
        made.append(true(*args))
        return made[0]

    monkeypatch.setattr(checks, "check", checked)
    result = CliRunner().invoke(commands.app, [*asked, "--json"])
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["ok"] and report["family"] == "llava" and report["n_blocks"] == 3
    held = {"distance", "share", "allowed", "same_top", "kl", "ok"}
    assert set(report["checks"]["full_patch"]) == held and report["computation"] == "splice"
    assert set(report["seconds_by_chapter"]) == set(CHAPTERS) and not report["refused"]
    monkeypatch.setattr(checks, "check", lambda *_: made[0])
    monkeypatch.setattr(checks.Report, "ok", property(lambda self: False))
    result = CliRunner().invoke(commands.app, asked)
    assert result.exit_code == 1 and "full patch" in result.stdout

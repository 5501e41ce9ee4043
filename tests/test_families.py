"""What 2025 and 2026 brought: asked as a plain session asks, and every check holds."""

from __future__ import annotations

import pytest

from tests.zoo import CHECKED, FAMILIES, build
from twohop_lib.interventions import plain_session
from twohop_lib.interventions.check import check
from twohop_lib.models import inputs
from twohop_lib.models.blocks import Blocks
from twohop_lib.models.pair import ModelPair, load_pair
from twohop_lib.models.prompts import build as ask
from twohop_lib.runs import generate

FURTHER = [name for name in CHECKED if name not in FAMILIES]


@pytest.fixture(scope="module", params=FURTHER)
def family(request, tmp_path_factory) -> tuple[str, ModelPair]:
    made = build(request.param, tmp_path_factory.mktemp("zoo"))
    return request.param, load_pair(made.vlm, made.llm)


def test_every_check_holds(family, world):
    _, pair = family
    report = check(pair, world)
    assert {name: c for name, c in report.checks.items() if not c.ok} == {}
    assert report.unlike_a_session == () and report.ok
    assert report.untrained and report.image_tokens > 0


def test_what_blocks_add_is_found(family):
    _, pair = family
    blocks = Blocks.of(pair.vlm.model)
    assert None not in blocks.attns and None not in blocks.mlps and not blocks.cross


def test_both_arms_begin_as_in_a_plain_session(family, world):
    """Ids of several questions, with and without a picture; <bos> once, if the model has one."""
    name, pair = family
    bos = {"molmo2", "emu3", "gemma4", "gemma4_per_layer", "aria", "ministral3"}
    for question in world.questions[:3]:
        for kind in ("by_name", "by_picture"):
            prompt = ask(kind, question)
            picture = world.image(question) if prompt.image else None
            own = plain_session.ours(pair.vlm, prompt, picture)
            assert own.ids == plain_session.plain(pair.vlm, prompt, picture).ids
            if name in bos:
                assert own.ids.count(pair.vlm.tokenizer.bos_token_id) == 1
                assert own.ids[0] == pair.vlm.tokenizer.bos_token_id


def test_an_arm_that_goes_past_the_processor_is_told(tmp_path, world, monkeypatch):
    """As the by-name arm once went: Molmo 2 lacks its <bos> then, and check says so."""
    pair = load_pair(build("molmo2", tmp_path).vlm)

    def past(model, texts, options):
        return model.tokenizer(texts, **options)

    monkeypatch.setattr(inputs, "_of_text", past)
    report = check(pair, world)
    assert not report.ok
    first, *rest = report.unlike_a_session
    assert first.startswith("By name: the prompt is ") and "from token 0 on" in first
    assert not any(sentence.startswith("By picture") for sentence in rest)


def test_answers_that_are_not_a_plain_sessions_are_told(tmp_path, world, monkeypatch):
    pair = load_pair(build("llava", tmp_path).vlm)
    monkeypatch.setattr(generate, "GREEDY", generate.GREEDY | {"repetition_penalty": 30.0})
    told = check(pair, world).unlike_a_session
    assert [sentence.split(": the ")[1][:9] for sentence in told] == ["answer is"] * len(told)
    assert told

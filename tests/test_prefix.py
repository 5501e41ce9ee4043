"""What prompts begin with, run once for all: the same answers and recordings, or not done."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.zoo import FAMILIES, build
from twohop_lib.interventions import hooks
from twohop_lib.interventions.edits import CrossPatch
from twohop_lib.interventions.splice import Engine
from twohop_lib.models import prefix
from twohop_lib.models.inputs import encode
from twohop_lib.models.loading import load_llm, load_vlm
from twohop_lib.models.prompts import build as ask
from twohop_lib.models.prompts import render
from twohop_lib.runs import generate
from twohop_lib.runs.generate import answer

#: Its text reads the picture that follows (PaliGemma), or it keeps no keys and values of pictures
#: beside those of the text (Mllama).
WHOLE_RUNS = ("paligemma", "mllama")
SOLVED = (
    "Who founded the house of Aldric? It was Osmund. Which river is it on? The river Tarn. " * 3
)


@pytest.fixture(scope="module")
def questions(world):
    houses: dict[str, list] = {}
    for question in world.questions:
        houses.setdefault(question.entity_id, []).append(question)
    return [facts[at] for at, facts in enumerate(itertools.islice(houses.values(), 4))]


def with_exemplars(vlm):
    vlm.processor.chat_template = "{{ '" + SOLVED + "' }}" + vlm.processor.chat_template
    return vlm


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    made = build(request.param, tmp_path_factory.mktemp("zoo"))
    return request.param, made.vlm


def whole(call, *args, **kwargs):
    """What a call gives when nothing is shared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix, "LEAST", 10**6)
        return call(*args, **kwargs)


def worst(vlm, texts, pictures, begun):
    """How far next-token logits are from whole single runs', at most, and the nearest two rows'."""
    with torch.inference_mode():
        inputs = encode(vlm, texts, pictures, "left")
        got = generate._generated(vlm, inputs, 2, begun, output_logits=True)[1][0]
        alone = [
            vlm.model(**encode(vlm, [t], [p], "left"), use_cache=False).logits[0, -1].float()
            for t, p in zip(texts, pictures, strict=True)
        ]
    apart = min((a - b).abs().max() for a, b in itertools.combinations(alone, 2))
    return max((a - b).abs().max() for a, b in zip(got, alone, strict=True)), apart


# --- equal to whole runs, in every family -----------------------------------------------------


@pytest.mark.parametrize("kind", ["by_picture", "by_name"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_behind_shared_exemplars_are_those_of_whole_runs(
    family, world, questions, dtype, kind
):
    name, folder = family
    vlm = with_exemplars(load_vlm(folder, dtype))
    prompts = [ask(kind, q) for q in questions]
    pictures = [
        world.image(q) if p.image else None for p, q in zip(prompts, questions, strict=True)
    ]
    batch = answer(vlm, prompts, pictures, 6)
    single = answer(vlm, prompts, pictures, 6, batch_size=1)
    assert set(prefix.verdicts(vlm.model).values()) == {name not in WHOLE_RUNS}
    if dtype == "float32":
        plain = whole(answer, vlm, prompts, pictures, 6)
        assert batch == single == plain and len(set(plain)) > 1
    if name in WHOLE_RUNS:
        return
    # In half precision near ties go either way; so logits are held against single whole runs.
    texts = [render(vlm.processor, prompt) for prompt in prompts]
    inputs = encode(vlm, texts, pictures, "left")
    assert (inputs["attention_mask"] == 0).any()
    first = prefix.beginning(vlm.model, inputs, 10**6)
    assert len(first) >= 100
    far, apart = worst(vlm, texts, pictures, prefix.kept(vlm.model, first))
    assert far <= (1e-4 if dtype == "float32" else 0.25 * apart)


def test_recordings_behind_exemplars_are_those_of_whole_runs(family, world, questions):
    name, folder = family
    vlm = with_exemplars(load_vlm(folder))
    engine, prompt = Engine(vlm), ask("by_picture", questions[0])
    a, b = (engine.record(prompt, world.image(q), None, 4, True) for q in questions[:2])
    plain = whole(engine.record, prompt, world.image(questions[0]), None, 4, True)
    assert plain.base == 0 and (a.base > 100) == (name not in WHOLE_RUNS)
    assert (a.ids, a.roles, a.span, a.first, a.n, a.total) == (
        *(plain.ids, plain.roles, plain.span, plain.first, plain.n, plain.total),
    )
    assert a.base in (0, a.span[0]) and a.positions == b.positions
    tensors = [(a.logits, plain.logits), (a.resid, plain.resid)]
    tensors += zip((*a.keys, *a.values), (*plain.keys, *plain.values), strict=True)
    assert all(x.shape == y.shape and (x - y).abs().max() <= 1e-4 for x, y in tensors)
    rows = [CrossPatch(a, b, layer) for layer in range(engine.n_blocks + 1)]
    fast, slow = engine.answers(rows, 4), hooks.runs(engine, rows, 4)
    assert (fast[0] - slow[0]).abs().max() <= 1e-4 and fast[1] == slow[1]
    assert engine.computation(rows[0]) == ("reference" if name == "paligemma" else "splice")


# --- broken on purpose ------------------------------------------------------------------------


@pytest.fixture
def llava(tmp_path):
    return with_exemplars(load_vlm(build("llava", tmp_path).vlm))


def shifted(by):
    right = prefix.behind

    def wrong(model, inputs, begun):
        made = right(model, inputs, begun)
        return made | {"position_ids": (made["attention_mask"].cumsum(1) - 1 + by).clamp_min(0)}

    return wrong


@pytest.mark.parametrize("by, used", [(0, True), (-1, False)])
def test_stale_positions_are_not_used(llava, world, questions, monkeypatch, by, used):
    monkeypatch.setattr(prefix, "behind", shifted(by))
    prompts, pictures = [ask("by_picture", q) for q in questions], list(map(world.image, questions))
    said = answer(llava, prompts, pictures, 6)
    assert set(prefix.verdicts(llava.model).values()) == {used}
    assert said == whole(answer, llava, prompts, pictures, 6)
    record = Engine(llava).record(prompts[0], pictures[0])
    assert bool(record.base) == used


def test_another_text_s_keys_and_values_are_not_used(llava, questions, monkeypatch):
    right = prefix.kept
    monkeypatch.setattr(prefix, "kept", lambda model, ids: right(model, [*ids[3:], *ids[:3]]))
    prompts = [ask("by_name", q) for q in questions]
    said = answer(llava, prompts, None, 6)
    assert set(prefix.verdicts(llava.model).values()) == {False}
    assert said == whole(answer, llava, prompts, None, 6)


def test_what_is_kept_goes_with_the_weights(llava):
    ids = list(range(5, 45))
    first = prefix.kept(llava.model, ids)
    assert prefix.kept(llava.model, ids) is first
    with torch.no_grad():
        for weight in llava.model.parameters():
            weight.mul_(1.5)
    assert (prefix.kept(llava.model, ids)[0][0] - first[0][0]).abs().max() > 1e-2


def test_a_model_with_hooks_on_it_is_run_whole(llava, questions):
    prompts = [ask("by_name", q) for q in questions]
    handle = llava.model.model.language_model.layers[0].register_forward_hook(lambda *_: None)
    answer(llava, prompts, None, 2)
    assert prefix.verdicts(llava.model) == {}
    handle.remove()
    answer(llava, prompts, None, 2)
    assert set(prefix.verdicts(llava.model).values()) == {True}


def test_beyond_a_sliding_window_nothing_is_shared(tmp_path, questions):
    vlm = load_vlm(build("gemma3", tmp_path).vlm)
    assert prefix.open_to(vlm.model, 512) and not prefix.open_to(vlm.model, 513)
    vlm.model.config.text_config.sliding_window = 150
    assert not prefix.open_to(vlm.model, 151)


# --- who begins alike, and what is asked twice ------------------------------------------------


def test_rows_that_begin_alike_are_found():
    long = list(range(100, 180))
    rows = [[*long, 1, 2], [7, 8], [*long, 1, 3, 4], [*long[:70], 5], long[:20], [*long, 9]]
    groups = {tuple(sorted(members)): n for members, n in prefix.alike(rows)}
    assert groups == {(0, 2, 3, 5): 70, (1,): 0, (4,): 0}
    assert prefix.alike([[1, 2]]) == [([0], 0)] and prefix.alike([]) == []
    # No row is all beginning, and none joins that would halve what the others share.
    assert prefix.alike([long, long]) == [([0, 1], 79)]
    short = [*long[:35], 1]
    assert sorted(n for _, n in prefix.alike([[*long, 1], [*long, 2], short])) == [0, 80]


def test_what_is_asked_twice_is_answered_once(llava, world, questions, monkeypatch):
    prompts = [ask("by_picture", q) for q in questions] * 2
    pictures = [world.image(q) for q in questions] * 2
    real, ran = generate._generated, []

    def counted(model, inputs, *rest, **options):
        ran.append(len(inputs["input_ids"]))
        return real(model, inputs, *rest, **options)

    expected = whole(answer, llava, prompts[:4], pictures[:4], 4)
    monkeypatch.setattr(generate, "_generated", counted)
    assert whole(answer, llava, prompts, pictures, 4) == expected * 2
    assert sum(ran) == 4
    # Another picture is another question.
    ran.clear()
    whole(answer, llava, prompts[:1] * 2, pictures[:2], 4)
    assert sum(ran) == 2


def test_a_batch_stops_where_all_rows_have_ended(llava, questions, monkeypatch):
    prompts = [ask("by_name", q) for q in questions]
    llava.model.generation_config.eos_token_id = list(
        range(llava.model.config.text_config.vocab_size)
    )
    calls = []
    handle = llava.model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    assert answer(llava, prompts, None, 30) == [""] * 4
    handle.remove()
    assert len(calls) == 1


def test_a_text_model_shares_too(tmp_path, questions):
    made = build("llava", tmp_path)
    llm = load_llm(made.llm)
    llm.tokenizer.chat_template = "{{ '" + SOLVED + "' ~ messages[0]['content'] }}"
    prompts = [ask("by_name", q) for q in questions]
    assert answer(llm, prompts, None, 6) == whole(answer, llm, prompts, None, 6)
    assert set(prefix.verdicts(llm.model).values()) == {True}

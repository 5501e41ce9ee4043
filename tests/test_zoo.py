"""The zoo itself: every family answers, looks at its picture, and is the same when built again."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor

from tests.zoo import CHECKED, build
from twohop_lib.interventions.check import check
from twohop_lib.models.inputs import encode
from twohop_lib.models.loading import load_vlm
from twohop_lib.models.pair import load_pair
from twohop_lib.models.prompts import Prompt, render
from twohop_lib.models.prompts import build as ask
from twohop_lib.organisms import path
from twohop_lib.runs.generate import answer


@pytest.fixture(scope="module")
def questions(world):
    """Five questions, each about another house and another of its facts: no two equally long."""
    houses: dict[str, list] = {}
    for question in world.questions:
        houses.setdefault(question.entity_id, []).append(question)
    return [facts[at] for at, facts in enumerate(islice(houses.values(), 5))]


@pytest.fixture(scope="module", params=CHECKED)
def family(request, tmp_path_factory):
    made = build(request.param, tmp_path_factory.mktemp("zoo"))
    return request.param, load_vlm(made.vlm), made


def last_logits(vlm, prompt, image):
    inputs = encode(vlm, [render(vlm.processor, prompt)], [image], "left")
    with torch.inference_mode():
        return vlm.model(**inputs, use_cache=False).logits[0, -1].float()


def alone_and_together(vlm, prompts, images):
    """Answers to prompts one by one and all at once, where some rows are padded."""
    lengths = [len(vlm.tokenizer(prompt.text)["input_ids"]) for prompt in prompts]
    assert len(set(lengths)) > 1
    alone = answer(vlm, prompts, images, max_new_tokens=8, batch_size=1)
    return alone, answer(vlm, prompts, images, max_new_tokens=8, batch_size=len(prompts))


def test_another_picture_gives_other_logits_and_none_is_nan(family, world, questions):
    _, vlm, _ = family
    prompt = ask("by_picture", questions[0])
    logits = [last_logits(vlm, prompt, world.image(q)) for q in questions[:2]]
    assert all(x.isfinite().all() for x in logits)
    assert (logits[0] - logits[1]).abs().max() > 1e-2


def test_by_picture_a_batch_is_one_by_one(family, world, questions):
    _, vlm, _ = family
    prompts = [ask("by_picture", q) for q in questions]
    alone, together = alone_and_together(vlm, prompts, [world.image(q) for q in questions])
    assert alone == together and len(set(alone)) > 1


def test_by_name_a_batch_is_one_by_one(family, questions):
    _, vlm, _ = family
    prompts = [ask("by_name", q) for q in questions]
    prompts += [Prompt("by_name", "Who?", False)]
    alone, together = alone_and_together(vlm, prompts, None)
    assert len(set(alone)) > 1
    assert alone == together


def test_a_backbone_answers_by_itself(family, questions):
    _, _, made = family
    if made.llm is None:
        pytest.skip("its own text mode is its backbone")
    prompts = [ask("by_name", q) for q in questions]
    alone, together = alone_and_together(load_pair(made.vlm, made.llm).llm, prompts, None)
    assert alone == together and len(set(alone)) > 1


def test_a_family_built_again_is_the_same(family, tmp_path):
    name, _, made = family
    again = build(name, tmp_path)
    first, second = (load_file(c.vlm / "model.safetensors") for c in (made, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    words = [(c.vlm / "tokenizer.json").read_text() for c in (made, again)]
    assert words[0] == words[1]


# --- prompts as published models word them ----------------------------------------------------

#: Content as a string, or in parts where they stand; ``MARK`` is the picture.
INLINE = (
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}MARK{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endif %}"
)
#: Pictures first, wherever they stand, and no content as a string.
SORTED = (
    "{% for p in m['content'] if p['type'] == 'image' %}MARK{% endfor %}"
    "{% for p in m['content'] if p['type'] == 'text' %}TEXT{% endfor %}"
)


def chatml(mark: str, first: str = "") -> str:
    return (
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
        + first
        + "{% endif %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
        + INLINE.replace("MARK", mark)
        + "{{ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
LOOK = "<|vision_start|><|image_pad|><|vision_end|>"
SHOWN = "{{ '<image>\\n' }}"
TURN = "<|im_start|>user\n{}Who?<|im_end|>\n<|im_start|>assistant\n"

#: Templates that word prompts as the published ones do, and what comes out for a picture with
#: "Who?" and for "Who?" with the prefill "It".
PUBLISHED = {
    "llava": (
        "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
        + SORTED.replace("MARK", SHOWN).replace("TEXT", "{{ p['text'] + ' ' }}")
        + "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
        "USER: <image>\nWho? ASSISTANT:",
        "USER: Who? ASSISTANT: It",
    ),
    "llava_next": (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' }}"
        + SORTED.replace("MARK", SHOWN).replace("TEXT", "{{ p['text'] }}")
        + "{{ ' [/INST]' }}{% else %}{{ ' ' + m['content'][0]['text'] + '</s>' }}"
        "{% endif %}{% endfor %}",
        "[INST] <image>\nWho? [/INST]",
        "[INST] Who? [/INST] It",
    ),
    "llava_onevision": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}"
        + SORTED.replace("MARK", "<image>").replace("TEXT", "{{ '\\n' + p['text'] }}")
        + "<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        "<|im_start|>user <image>\nWho?<|im_end|><|im_start|>assistant\n",
        "<|im_start|>user \nWho?<|im_end|><|im_start|>assistant \nIt",
    ),
    "qwen2_vl": (chatml(LOOK, SYSTEM), SYSTEM + TURN.format(LOOK), SYSTEM + TURN.format("") + "It"),
    "qwen2_5_vl": (
        chatml(LOOK, SYSTEM),
        SYSTEM + TURN.format(LOOK),
        SYSTEM + TURN.format("") + "It",
    ),
    "qwen3_vl": (chatml(LOOK), TURN.format(LOOK), TURN.format("") + "It"),
    "internvl": (
        chatml("{{ '<IMG_CONTEXT>\\n' }}"),
        TURN.format("<IMG_CONTEXT>\n"),
        TURN.format("") + "It",
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_check_holds_with_the_published_wording(name, world, tmp_path):
    made = build(name, tmp_path)
    pair = load_pair(made.vlm, made.llm)
    template, shown, begun = PUBLISHED[name]
    processor = pair.vlm.processor
    processor.chat_template = template
    assert render(processor, Prompt("by_picture", "Who?", True)) == shown
    assert render(processor, Prompt("by_name", "Who?", False, "It")) == begun
    report = check(pair, world)
    assert {key: held for key, held in report.checks.items() if not held.ok} == {}
    assert report.image_tokens > 0


# --- torchvision ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["late", "middle", "early"])
def test_an_organism_sees_the_same_with_and_without_torchvision(name, world, questions):
    pictures = [world.image(q) for q in questions]
    kinds = [load_vlm(path(name)).processor.image_processor]
    kinds.append(AutoImageProcessor.from_pretrained(path(name), backend="pil"))
    assert [kind.backend for kind in kinds] == ["torchvision", "pil"]
    usual, plain = (
        kind(images=pictures, return_tensors="pt")["pixel_values"].float() for kind in kinds
    )
    # Pixels run from -1 to 1: one step of 256 is 0.0079.
    assert (plain - usual).abs().max() < 0.009
    vlm = load_vlm(path(name))
    prompts = [ask("by_picture", q) for q in questions]
    said = []
    for kind in kinds:
        vlm.processor.image_processor = kind
        said.append(answer(vlm, prompts, pictures))
    assert said[0] == said[1]

"""Reasoning: switched off where a template can, never scored, and answers that are cut are told."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from helpers_tiny import TEMPLATE, tiny_llm

from twohop_lib.chapter import show, study
from twohop_lib.chapter.study import open_study
from twohop_lib.interventions import plain_session
from twohop_lib.interventions.cross_patch import cross_patch
from twohop_lib.models import inputs, thinking
from twohop_lib.models.loading import load_llm, load_vlm
from twohop_lib.models.pair import load_pair
from twohop_lib.models.prompts import Prompt, build, render
from twohop_lib.organisms import path
from twohop_lib.readouts.cut import cut_by_arm, cut_sentence
from twohop_lib.rerun.execute import defaults, left_out, to_notebook, without
from twohop_lib.rerun.run import chapters_folder
from twohop_lib.runs import generate
from twohop_lib.runs.evaluate import evaluate

SWITCHED = (
    "{% if add_generation_prompt %}ASSISTANT:{% if SWITCH %}<think>\n{% else %}<think>\n\n"
    "</think>\n\n{% endif %}{% endif %}"
)


def ending(last: str) -> str:
    """The usual template, with another end."""
    return TEMPLATE.replace("{% if add_generation_prompt %}ASSISTANT:{% endif %}", last)


@pytest.fixture(scope="module")
def world(heraldry):
    return heraldry.select(split="test", wording="standard").some(6)


@pytest.fixture
def llm(tmp_path):
    texts = ["Who founded it? Aldric Berta think thinking hmm"]
    made = load_llm(tiny_llm(tmp_path / "llm", texts))
    made.tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    made.model.resize_token_embeddings(len(made.tokenizer))
    return made


@pytest.mark.parametrize(
    ("condition", "off"),
    [
        ("enable_thinking is not defined or enable_thinking", {"enable_thinking": False}),
        ("thinking | default(true)", {"thinking": False}),
        (
            "reasoning_effort is not defined or reasoning_effort != 'none'",
            {"reasoning_effort": "none"},
        ),
        ("thinking_budget is not defined or thinking_budget > 0", {"thinking_budget": 0}),
        ("(thinking_mode | default('on')) != 'off'", {"thinking_mode": "off"}),
    ],
)
def test_reasoning_is_switched_off_where_the_template_can(llm, condition, off):
    template = ending(SWITCHED.replace("SWITCH", condition))
    assert dict(thinking.switched_off(template)) == off
    llm.tokenizer.chat_template = template
    assert thinking.opens(
        llm.tokenizer.apply_chat_template(
            [{"role": "user", "content": "Who?"}], tokenize=False, add_generation_prompt=True
        )
    )
    text = render(llm.tokenizer, Prompt("by_name", "Who?", False))
    assert text.endswith("<think>\n\n</think>\n\n") and not inputs.thinks(llm)
    assert plain_session.differences(llm, Prompt("by_name", "Who?", False), None, "") == ()


def test_templates_are_given_nothing_that_they_do_not_ask_for():
    told = "{% for m in messages %}{{ m.thinking }}{{ 'enable_thinking' }}{% endfor %}"
    assert thinking.switched_off(told) == ()
    assert thinking.switched_off("{% generation %}{{ thinking }}{% endgeneration %}") == (
        ("thinking", False),
    )
    assert thinking.switched_off("{% if %}") == ()


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("begin, end", thinking._MARKS)
def test_what_is_thought_is_no_answer(begin, end, special):
    from tests.zoo.tokens import byte_level

    marks = [begin, end] if special else []
    tokenizer = byte_level(["<eos>", *marks], eos_token="<eos>")
    stop = {tokenizer.eos_token_id}

    def said(text: str, prompt: str = "Who?") -> str:
        return inputs.decoded(tokenizer, tokenizer(text)["input_ids"], stop, prompt)

    opened = f"ASSISTANT:{begin}\n"
    assert said(f"Could be Berta.{end}\nAldric.<eos>", opened) == "Aldric."
    assert said(f"{begin}Could be Berta.{end}Aldric.<eos>") == "Aldric."
    assert said(f"{begin}a{end}{begin}b{end}Aldric.<eos>") == "Aldric."
    # Never ended: nothing was answered, though the reasoning holds a name.
    for text, prompt in (("The answer is Berta", opened), (f"{begin}The answer is Berta", "Who?")):
        assert said(text, prompt) == "" and said(text, prompt).cut
    assert said("The answer is Berta.<eos>", opened) == "" and not said("Berta.<eos>", opened).cut
    assert said("Aldric.<eos>") == "Aldric." and not said("Aldric.<eos>").cut
    assert said("Aldric. He").cut


def test_a_template_that_opens_reasoning_is_told_and_given_room(world, monkeypatch):
    """A model that thinks for 40 tokens is cut at 32, and answers within the larger budget."""
    own = load_vlm(path("late"))
    think = own.tokenizer.convert_tokens_to_ids("the")
    own.tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    own.model.resize_token_embeddings(len(own.tokenizer))
    own.processor.chat_template = own.processor.chat_template.replace(
        "ASSISTANT:", "ASSISTANT:<think>"
    )
    assert inputs.thinks(own)
    end = own.tokenizer.convert_tokens_to_ids("</think>")
    answer = own.tokenizer("Joan.", add_special_tokens=False)["input_ids"]
    stop = next(iter(inputs.stop_ids(own)))
    asked = []

    def thought(input_ids, max_new_tokens, **_):
        asked.append(max_new_tokens)
        new = torch.tensor([[think] * 40 + [end, *answer, stop]])[:, :max_new_tokens]
        whole = torch.cat([input_ids, new.expand(len(input_ids), -1)], 1)
        return SimpleNamespace(sequences=whole)

    monkeypatch.setattr(own.model, "generate", thought)
    prompt = build("by_name", world.questions[0])
    few = generate.answer(own, [prompt], None, 32)[0]
    assert few == "" and few.cut
    found = evaluate(own, None, world, ["by_name"], max_new_tokens=32)
    assert asked[-1] == 32 + thinking.BUDGET
    assert set(found["answer"]) == {"Joan."} and not found["cut"].any()
    assert any("cannot be left out" in note for note in plain_session.notes(own))


def test_answers_that_were_cut_are_counted_by_arm_and_told(world):
    own = load_vlm(path("late"))
    cut = evaluate(own, None, world, ["by_name", "by_picture"], max_new_tokens=1)
    whole = evaluate(own, None, world, ["by_name"], max_new_tokens=8)
    assert cut["cut"].all() and not whole["cut"].any()
    n = len(world.questions)
    assert cut_sentence(whole) == f"The budget of new tokens cut off none of {n} answers."
    counted = cut_by_arm(pd.concat([cut, whole.assign(model="other")]))
    assert counted[["cut", "n"]].values.tolist() == [[n, n], [n, n], [0, n]]
    told = cut_sentence(cut)
    assert f"{n} of {n} in by_picture (late)" in told and "max_new_tokens" in told
    one = pd.concat([whole] * 50, ignore_index=True)
    one.loc[0, "cut"] = True
    # One in a hundred and more is not worth a warning.
    assert cut_sentence(one) == f"The budget of new tokens cut off 1 of {50 * n} answers."
    old = whole.drop(columns="cut")
    assert cut_by_arm(old)["cut"].tolist() == [0]


def test_answers_of_changed_runs_have_the_budget_of_those_left_alone_and_are_counted():
    opened = open_study("test", organisms=["early"], max_entities=3, max_new_tokens=1)
    patched = opened.sweep(
        lambda name, engine, kept: cross_patch(
            engine, opened.questions, opened.pairs_of(name, "identify")[:1], **kept
        )
    )
    assert patched["cut"].all()
    opened.ask("identify")
    opened.keep(patched)
    n = len(patched)
    assert f"{n} of {n} in identify, cross-patch (early)" in opened.answers_cut
    roomy = open_study("test", organisms=["early"], max_entities=3)
    assert roomy.kept("early")["max_new_tokens"] == generate.MAX_NEW_TOKENS


def the_gap(monkeypatch, model, **parameters) -> tuple[dict, dict[str, str]]:
    """Run the code of *The gap* for a VLM: what its cells made, and the values it glued."""
    pair = load_pair(path("late"), path("backbone"))
    monkeypatch.setattr(study, "load_pair", lambda *_, **__: replace(pair, vlm=model))
    glued: dict[str, str] = {}
    monkeypatch.setattr(show, "glue", glued.__setitem__)
    monkeypatch.setattr(show, "glue_all", glued.update)
    monkeypatch.setattr(show, "show", lambda *_: None)
    notebook = to_notebook(chapters_folder() / "the_gap.py")
    made = dict(defaults(notebook))
    given = {"vlm": str(path("late")), "max_entities": 3, **parameters}
    for cell in without(notebook, *left_out(given), "parameters").cells:
        if cell.cell_type == "code":
            made |= {name: value for name, value in given.items() if name in made}
            exec(cell.source.replace("%pip", "# %pip"), made)
    return made, glued


def test_a_page_tells_that_a_model_describes_pictures_before_it_answers(monkeypatch, capsys):
    """Forty tokens of description make a gap where the budget is 32, and none where it is 64."""
    own = load_vlm(path("early"))
    generated, (filler,) = own.model.generate, own.tokenizer("the")["input_ids"][-1:]

    def describing(*, max_new_tokens, **inputs):
        out = generated(**inputs, max_new_tokens=max_new_tokens)
        if "pixel_values" not in inputs or "output_logits" in inputs:
            return out
        n = inputs["input_ids"].shape[1]
        said = out.sequences if hasattr(out, "sequences") else out
        described = torch.full((len(said), 40), filler)
        said = torch.cat(
            [said[:, :n], torch.cat([described, said[:, n:]], 1)[:, :max_new_tokens]], 1
        )
        return SimpleNamespace(sequences=said) if hasattr(out, "sequences") else said

    monkeypatch.setattr(own.model, "generate", describing)
    made, glued = the_gap(monkeypatch, own)
    of = made["answers"].groupby("condition")["cut"].mean()
    assert of["by_picture"] == 1 and of["by_name"] == 0
    n = len(made["study"].questions.questions)
    assert f"{n} of {n} in by_picture ({own.name})" in glued["answers_cut"]
    assert glued["answers_cut"].startswith("Some answers were cut off")
    made, glued = the_gap(monkeypatch, own, max_new_tokens=64)
    assert not made["answers"]["cut"].any() and "cut off none of" in glued["answers_cut"]


def test_a_page_tells_that_a_template_opens_reasoning(monkeypatch, capsys):
    """The model never ends it: nothing is answered, no name in it is scored, and that is told."""
    own = load_vlm(path("early"))
    own.tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    own.model.resize_token_embeddings(len(own.tokenizer))
    own.processor.chat_template = own.processor.chat_template.replace(
        "ASSISTANT:", "ASSISTANT:<think>"
    )
    (thought,) = own.tokenizer("the")["input_ids"][-1:]

    def thinking_on(*, input_ids, max_new_tokens, **_):
        new = torch.full((len(input_ids), max_new_tokens), thought)
        whole = torch.cat([input_ids, new], 1)
        return SimpleNamespace(sequences=whole) if "return_dict_in_generate" in _ else whole

    monkeypatch.setattr(own.model, "generate", thinking_on)
    monkeypatch.setattr(thinking, "BUDGET", 8)
    made, glued = the_gap(monkeypatch, own)
    asked = made["answers"][made["answers"]["condition"] != "llm_by_name"]
    assert asked["cut"].all() and set(asked["answer"]) == {""} and not asked["correct"].any()
    n = len(made["study"].questions.questions)
    for arm in ("by_name", "by_picture"):
        assert f"{n} of {n} in {arm} ({own.name})" in glued["answers_cut"]


def test_an_instruction_follows_every_question_and_is_recorded(world):
    told = world.instructed(" Answer with the name only. ")
    question = told.questions[0]
    for kind in ("by_name", "by_picture", "identify", "name_first", "full_information"):
        assert build(kind, question).text.endswith("? Answer with the name only.")
    assert told.notes["instruction"] == "Answer with the name only." and told.hash != world.hash
    assert world.instructed("") is world
    own = load_vlm(path("late"))
    for asked, wanted in ((told, "Answer with the name only."), (world, "")):
        few = replace(asked, questions=asked.questions[:2])
        assert set(evaluate(own, None, few, ["by_name"])["instruction"]) == {wanted}

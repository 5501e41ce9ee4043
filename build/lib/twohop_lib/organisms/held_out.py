"""Held-out forms of the longer prompts: instructions that no organism was trained on."""

from __future__ import annotations

from dataclasses import replace

from twohop_lib.benchmark import Question
from twohop_lib.models import prompts
from twohop_lib.organisms import corpus


def held_out_prompt(kind: str, question: Question, tokenizer) -> prompts.Prompt:
    """The prompt of one kind with its instruction in a form never used in training."""
    prompt = prompts.build(kind, question, tokenizer)
    if kind.startswith("choice"):
        asked = question.question_by_name if kind.endswith("name") else question.question_by_picture
        return replace(
            prompt,
            text=corpus.options(asked, list(prompts.choices(question)), corpus.CHOICE_HELD_OUT),
        )
    return replace(prompt, text=corpus.NAME_FIRST_HELD_OUT.format(q=question.question_by_picture))

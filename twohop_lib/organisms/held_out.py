"""Held-out forms of the longer prompts: instructions that no organism was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from twohop_lib import prompts
from twohop_lib.benchmark import Benchmark, Question
from twohop_lib.organisms import corpus
from twohop_lib.runs.evaluate import judge
from twohop_lib.runs.generate import Vlm, answer

KINDS = ("name_first", "name_given", "neutral", "choice_by_name", "choice_by_picture")


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


def compare_forms(
    vlm: Vlm, benchmark: Benchmark, kinds: Sequence[str] = KINDS, batch_size: int = 64
) -> pd.DataFrame:
    """Accuracy of each kind of prompt in its standard and in its held-out form.

    Columns: ``kind, form`` ("standard" or "held out")``, accuracy, n``.
    """
    questions = benchmark.questions
    images = [benchmark.image(q) for q in questions]
    names = sorted({q.entity for q in questions})
    rows = []
    for kind in kinds:
        for form, build in (("standard", prompts.build), ("held out", held_out_prompt)):
            asked = [build(kind, q, vlm.tokenizer) for q in questions]
            said = answer(vlm, asked, images, batch_size=batch_size)
            right = [
                judge(q, kind, a, names=names)["correct"]
                for q, a in zip(questions, said, strict=True)
            ]
            rows.append(
                {"kind": kind, "form": form, "accuracy": sum(right) / len(right), "n": len(right)}
            )
    return pd.DataFrame(rows)

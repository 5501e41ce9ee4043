"""Two forms of the same prompts, side by side: does the wording carry the result?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from twohop_lib.benchmark.schema import Benchmark
from twohop_lib.models import prompts
from twohop_lib.models.loading import Vlm
from twohop_lib.runs.conditions import judge
from twohop_lib.runs.generate import answer

KINDS = ("name_first", "name_given", "neutral", "choice_by_name", "choice_by_picture")


def compare_forms(
    vlm: Vlm,
    benchmark: Benchmark,
    held_out: Callable[..., prompts.Prompt],
    kinds: Sequence[str] = KINDS,
    batch_size: int = 64,
) -> pd.DataFrame:
    """Accuracy of each kind of prompt in its standard and in its held-out form.

    ``held_out(kind, question, tokenizer)`` builds a prompt in the form that training never used.

    Columns: ``kind, form`` ("standard" or "held out")``, accuracy, n``.
    """
    questions = benchmark.questions
    images = [benchmark.image(q) for q in questions]
    names = sorted({q.entity for q in questions})
    rows = []
    for kind in kinds:
        for form, build in (("standard", prompts.build), ("held out", held_out)):
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

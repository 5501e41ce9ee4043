"""Other forms of the same questions and prompts: does the wording carry the result?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from twohop_lib.benchmark.schema import Benchmark
from twohop_lib.models import prompts
from twohop_lib.models.loading import Llm, Vlm
from twohop_lib.runs.conditions import judge
from twohop_lib.runs.evaluate import evaluate
from twohop_lib.runs.generate import answer

KINDS = ("name_first", "name_given", "neutral", "choice_by_name", "choice_by_picture")


def in_wordings(
    models: Mapping[str, Vlm | Llm],
    benchmark: Benchmark,
    wordings: Sequence[str],
    conditions: Sequence[str] = ("llm_by_name",),
) -> pd.DataFrame:
    """Answer records of several models in several wordings; ``models`` by the name they go by.

    A text model is asked as a backbone is. ``conditions`` as in
    :func:`twohop_lib.runs.evaluate.evaluate`.
    """
    parts = []
    for name, model in models.items():
        pair = (model, None) if isinstance(model, Vlm) else (None, model)
        parts += [
            evaluate(*pair, benchmark.select(wording=wording), conditions, model_name=name)
            for wording in wordings
        ]
    return pd.concat(parts, ignore_index=True)


def compare_forms(
    vlm: Vlm,
    benchmark: Benchmark,
    held_out: Callable[..., prompts.Prompt],
    kinds: Sequence[str] = KINDS,
    batch_size: int = 64,
) -> pd.DataFrame:
    """Accuracy of each kind of prompt in its standard and in its held-out form.

    ``held_out(kind, question, tokenizer)`` builds a prompt in the form that training never used.

    Returns one row a kind, with the columns ``standard, held out`` (accuracies) and ``n``.
    """
    questions = benchmark.questions
    images = [benchmark.image(q) for q in questions]
    names = sorted({q.entity for q in questions})

    def accuracy(kind: str, build: Callable[..., prompts.Prompt]) -> float:
        asked = [build(kind, q, vlm.tokenizer) for q in questions]
        said = answer(vlm, asked, images, batch_size=batch_size)
        right = [
            judge(q, kind, a, names=names)["correct"] for q, a in zip(questions, said, strict=True)
        ]
        return sum(right) / len(right)

    rows = {
        kind: {
            "standard": accuracy(kind, prompts.build),
            "held out": accuracy(kind, held_out),
            "n": len(questions),
        }
        for kind in kinds
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("kind")

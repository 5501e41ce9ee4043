"""The logit lens: what the model's own head reads off the stream, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.interventions.pairs import first_token
from twohop_lib.interventions.splice import Engine
from twohop_lib.runs.conditions import accepted, prompt_of


@torch.inference_mode()
def logit_lens(engine: Engine, benchmark: Benchmark, questions: Sequence[Question]) -> pd.DataFrame:
    """Probability, by layer, of the right and of the emitted first token, at the last position.

    The model's own head (final norm included) reads ``resid[l]``; at the top that is its output.
    Fact questions by picture. Columns ``entity_id, question_id, layer, right, emitted, correct``
    (whether the emitted first token is the right one) and ``outcome`` ("answered" or "missed").
    """
    rows = []
    for question in questions:
        prompt = prompt_of("by_picture", question)
        made = engine.record(prompt, benchmark.image(question).convert("RGB"))
        right = first_token(engine.owner, prompt, accepted("by_picture", question)[0])
        p = engine.head(made.resid[:, -1]).softmax(-1)
        emitted = int(made.logits.argmax())
        rows += [
            {
                "entity_id": question.entity_id,
                "question_id": question.question_id,
                "layer": layer,
                "right": p[layer, right].item(),
                "emitted": p[layer, emitted].item(),
                "correct": emitted == right,
                "outcome": "answered" if emitted == right else "missed",
            }
            for layer in range(len(p))
        ]
    return pd.DataFrame(rows)

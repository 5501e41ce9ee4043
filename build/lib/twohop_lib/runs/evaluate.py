"""Asking models everything a benchmark holds, in every condition: the answer records."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.errors import TwohopError, suggest
from twohop_lib.models import thinking
from twohop_lib.models.inputs import thinks
from twohop_lib.models.loading import Llm, Vlm
from twohop_lib.models.prompts import ChoiceForm
from twohop_lib.runs import conditions as asking
from twohop_lib.runs import generate, store

#: What is asked of models left alone; ``llm_identify`` says nothing about them but in sweeps.
CONDITIONS: tuple[str, ...] = tuple(c for c in asking.CONDITIONS if c != "llm_identify")
#: Columns beyond the schema: for ``name_first`` alone, its naming and whether that is right;
#: whether the budget of new tokens ended before the answer; what questions are followed by.
EXTRA_COLUMNS = ("named", "named_right", "cut", "instruction")
#: Types of columns that may be null throughout.
NULLABLE = {"intervention": "string", "named": "string", "named_right": "boolean"}
#: Questions that are asked, and stored, at once.
CHUNK = 256


def evaluate(
    vlm: Vlm | None,
    llm: Llm | Vlm | None,
    benchmark: Benchmark,
    conditions: Sequence[str] | None = None,
    model_name: str | None = None,
    seed: int | None = None,
    choice: ChoiceForm = "written",
    max_new_tokens: int = generate.MAX_NEW_TOKENS,
    batch_size: int = generate.BATCH_SIZE,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Ask every question of a benchmark in every condition; one answer record a row.

    ``llm`` may be the VLM itself, which is then asked without a picture. ``conditions`` None means
    all that the given models can answer. ``identify`` is asked once an entity, in the wording of
    its first question. ``seed`` (None: the benchmark's) and ``model_name`` (None: the VLM's) only
    label the records. With ``folder`` finished work is stored there, and taken from there
    (:mod:`twohop_lib.runs.store`).

    An answer has ``max_new_tokens``, twice as many where it names first, and
    :data:`~twohop_lib.models.thinking.BUDGET` more where the model cannot be kept from reasoning.

    The columns are those of :data:`twohop_lib.records.ANSWER_SCHEMA` and :data:`EXTRA_COLUMNS`
    (:func:`twohop_lib.runs.conditions.judge`).

    Raises TwohopError for an unknown condition, one whose model is not given, and a benchmark
    without questions.
    """
    asked = conditions_asked(conditions, vlm, llm)
    questions = list(benchmark.questions)
    if not questions:
        raise TwohopError(f"Benchmark {benchmark.name} has no question left; pick others.")
    once = list({q.entity_id: q for q in reversed(questions)}.values())[::-1]
    names = tuple(dict.fromkeys(n for q in questions for n in (q.entity, *q.aliases)))
    labels = {
        "model": model_name or (vlm or llm).name,  # type: ignore[union-attr]
        "seed": benchmark.seed if seed is None else seed,
    }
    instruction = benchmark.notes.get("instruction", "")
    # Questions about one entity share its picture.
    shown = {q.image: q for q in questions}
    picture = lru_cache(maxsize=2 * CHUNK)(lambda path: benchmark.image(shown[path]))

    def ask(model: Any, condition: str, chunk: list[Question]) -> pd.DataFrame:
        built = [asking.prompt_of(condition, q, model.tokenizer, choice) for q in chunk]

        def compute() -> pd.DataFrame:
            images = [
                picture(q.image) if p.image else None for p, q in zip(built, chunk, strict=True)
            ]
            # Naming comes first, so the answer proper needs as many tokens behind it.
            twice = 2 if asking.CONDITIONS[condition].judged == "naming" else 1
            budget = twice * max_new_tokens + (thinking.BUDGET if thinks(model) else 0)
            said = generate.answer(model, built, images, budget, batch_size)
            rows = [
                labels
                | asking.judge(q, condition, answer, names, choice)
                | {"cut": getattr(answer, "cut", False), "instruction": instruction}
                for q, answer in zip(chunk, said, strict=True)
            ]
            frame = pd.DataFrame(rows)
            return frame.reindex(columns=list(dict.fromkeys([*frame.columns, *EXTRA_COLUMNS])))

        key: dict[str, Any] = {}
        if folder is not None:
            key = {
                **labels,
                **store.asked_key(model, benchmark, condition, chunk, built),
                "names": store.digest({"names": names}),
                "choice": choice,
                "max_new_tokens": max_new_tokens,
                "batch_size": batch_size,
            }
        return store.cached(folder, key, compute).astype(NULLABLE)

    parts = []
    for condition in asked:
        how = asking.CONDITIONS[condition]
        model = llm if how.answered_by == "backbone" else vlm
        items = once if how.names else questions
        parts += [
            ask(model, condition, items[start : start + CHUNK])
            for start in range(0, len(items), CHUNK)
        ]
    return pd.concat(parts, ignore_index=True)


def conditions_asked(
    conditions: Sequence[str] | None, vlm: Vlm | None, llm: Llm | Vlm | None
) -> tuple[str, ...]:
    """The conditions to ask, once each; raises TwohopError as :func:`evaluate` does."""
    if vlm is None and llm is None:
        raise TwohopError("There is no model to evaluate; give a VLM, a text backbone, or both.")
    given = {"vlm": vlm, "backbone": llm}

    def able(condition: str) -> bool:
        return given[asking.CONDITIONS[condition].answered_by] is not None

    if conditions is None:
        return tuple(c for c in CONDITIONS if able(c))
    if isinstance(conditions, str):
        conditions = (conditions,)
    for condition in conditions:
        if condition not in CONDITIONS:
            raise TwohopError(f"Unknown condition {condition!r}: {suggest(condition, CONDITIONS)}.")
        if not able(condition):
            needed = {"vlm": "VLM", "backbone": "text backbone"}
            by = needed[asking.CONDITIONS[condition].answered_by]
            raise TwohopError(f"Condition {condition!r} is answered by a {by}; give one.")
    return tuple(dict.fromkeys(conditions))

"""Asking a model everything a benchmark holds, in every condition: the answer records.

Which prompt and which model a condition stands for is written here once, and right or wrong is
decided here, by :func:`twohop_lib.scoring.matching.matches`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from PIL import Image

from twohop_lib import records
from twohop_lib.errors import TwohopError, suggest
from twohop_lib.models import prompts
from twohop_lib.models.loading import Llm, Vlm
from twohop_lib.models.prompts import ChoiceForm
from twohop_lib.runs import generate, store
from twohop_lib.runs.generate import Progress

if TYPE_CHECKING:
    from twohop_lib.benchmark.schema import Benchmark, Question

Rule = Literal["twohop", "popvqa", "inclusion"]

#: All conditions, in the order of :data:`twohop_lib.records.CONDITIONS`.
CONDITIONS: tuple[str, ...] = tuple(c for c in records.CONDITIONS if c != "llm_identify")
#: The one that the text backbone answers; all others are the VLM's.
BACKBONE_CONDITIONS = ("llm_by_name",)

#: Columns that evaluation adds to an answer record, filled for ``name_first`` alone.
EXTRA_COLUMNS = {"named": "string", "named_right": "boolean"}

#: Questions that are asked, and stored, at once.
CHUNK = 256

_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]*_]*(?=\s|$)|\n")


def evaluate(
    vlm: Vlm | None,
    llm: Llm | Vlm | None,
    benchmark: Benchmark,
    conditions: Sequence[str] | None = None,
    rule: Rule = "twohop",
    wording: str | None = None,
    split: str | None = None,
    model_name: str | None = None,
    seed: int | None = None,
    choice: ChoiceForm = "written",
    max_new_tokens: int = generate.MAX_NEW_TOKENS,
    batch_size: int = generate.BATCH_SIZE,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Ask every question of a benchmark in every condition; one answer record per row.

    ``llm`` may be the VLM itself, which is then asked without a picture. ``conditions`` None
    means all that the given models can answer. ``wording`` and ``split``
    pick questions; the benchmark is asked as it is without them. ``identify`` is asked once per
    entity, in the wording of its first question. ``seed`` (None: the benchmark's) and
    ``model_name`` (None: the VLM's) only label the records. With ``folder`` finished work is
    stored there, and taken from there (:mod:`twohop_lib.runs.store`).

    Beside the columns of :data:`twohop_lib.records.ANSWER_SCHEMA` the frame has ``named``, the
    naming part of a ``name_first`` answer, and ``named_right``, whether it names the entity
    shown; ``correct`` is about the rest. They are null in other conditions. A written choice is
    right if it gives the right answer and no wrong one.

    Raises TwohopError for an unknown condition, one whose model is not given, and a selection
    that holds no question.
    """
    asked = _conditions(conditions, vlm, llm)
    chosen = _select(benchmark, wording, split)
    questions = list(chosen.questions)
    if not questions:
        raise TwohopError(
            f"Benchmark {benchmark.name} has no question of split {split or 'any'!r} and wording "
            f"{wording or 'any'!r}; pick others."
        )
    once = list({q.entity_id: q for q in reversed(questions)}.values())[::-1]
    names = tuple(dict.fromkeys(n for q in questions for n in (q.entity, *q.aliases)))
    labels = {
        "model": model_name or (vlm or llm).name,  # type: ignore[union-attr]
        "seed": benchmark.seed if seed is None else seed,
    }
    picture = _pictures(chosen)
    total = sum(len(once if c == "identify" else questions) for c in asked)
    bar = progress(total=total) if progress else None
    parts = []
    for condition in asked:
        model: Any = llm if condition in BACKBONE_CONDITIONS else vlm
        items = once if condition == "identify" else questions
        for start in range(0, len(items), CHUNK):
            chunk = items[start : start + CHUNK]

            def compute(
                model: Any = model, condition: str = condition, chunk: list[Question] = chunk
            ) -> pd.DataFrame:
                answers = _ask(model, condition, chunk, picture, choice, max_new_tokens, batch_size)
                rows = [
                    labels | judge(q, condition, answer, rule, names, choice)
                    for q, answer in zip(chunk, answers, strict=True)
                ]
                return _frame(rows)

            key: dict[str, Any] = {}
            if folder is not None:
                key = {
                    **labels,
                    **store.code_key(),
                    "weights": store.model_key(model),
                    "benchmark": benchmark.hash,
                    "condition": condition,
                    "questions": [q.question_id for q in chunk],
                    # Some chat templates write today's date, or words for models alone.
                    "prompts": _wording(model, condition, chunk, choice),
                    "rule": rule,
                    "names": store.digest({"names": names}),
                    "choice": choice,
                    "max_new_tokens": max_new_tokens,
                    "batch_size": batch_size,
                }
            parts.append(_frame(store.cached(folder, key, compute)))
            if bar is not None:
                bar.update(len(chunk))
    if bar is not None:
        bar.close()
    return pd.concat(parts, ignore_index=True)


def _conditions(
    conditions: Sequence[str] | None, vlm: Vlm | None, llm: Llm | Vlm | None
) -> tuple[str, ...]:
    def model_of(condition: str) -> Vlm | Llm | None:
        return llm if condition in BACKBONE_CONDITIONS else vlm

    if vlm is None and llm is None:
        raise TwohopError("There is no model to evaluate; give a VLM, a text backbone, or both.")
    if conditions is None:
        return tuple(c for c in CONDITIONS if model_of(c) is not None)
    if isinstance(conditions, str):
        conditions = (conditions,)
    for condition in conditions:
        if condition not in CONDITIONS:
            raise TwohopError(f"Unknown condition {condition!r}: {suggest(condition, CONDITIONS)}.")
        if model_of(condition) is None:
            needed = "text backbone" if condition in BACKBONE_CONDITIONS else "VLM"
            raise TwohopError(f"Condition {condition!r} is answered by a {needed}; give one.")
    return tuple(dict.fromkeys(conditions))


def _select(benchmark: Benchmark, wording: str | None, split: str | None) -> Benchmark:
    by = {"wording": wording, "split": split}
    by = {name: value for name, value in by.items() if value is not None}
    return benchmark.select(**by) if by else benchmark


def _pictures(benchmark: Benchmark) -> Callable[[Question], Image.Image]:
    """Return a function that opens a question's picture, keeping the last few hundred open."""

    first: dict[str, Question] = {}
    for question in benchmark.questions:
        first.setdefault(question.image, question)

    @lru_cache(maxsize=2 * CHUNK)
    def of(path: str) -> Image.Image:
        return benchmark.image(first[path])

    return lambda question: of(question.image)


def _ask(
    model: Vlm | Llm,
    condition: str,
    questions: Sequence[Question],
    picture: Callable[[Question], Image.Image],
    choice: ChoiceForm,
    max_new_tokens: int,
    batch_size: int,
) -> list[str]:
    built = _built(model, condition, questions, choice)
    images = [picture(q) if p.image else None for p, q in zip(built, questions, strict=True)]
    # Naming comes first, so the answer proper needs room behind it.
    room = 2 * max_new_tokens if condition == "name_first" else max_new_tokens
    return generate.answer(model, built, images, room, batch_size)


def _built(
    model: Vlm | Llm, condition: str, questions: Sequence[Question], choice: ChoiceForm
) -> list[prompts.Prompt]:
    kind: Any = "by_name" if condition in BACKBONE_CONDITIONS else condition
    return [prompts.build(kind, q, model.tokenizer, choice) for q in questions]


def _wording(
    model: Vlm | Llm, condition: str, questions: Sequence[Question], choice: ChoiceForm
) -> str:
    """Return a hash of the very texts that the model is given."""
    front = getattr(model, "processor", model.tokenizer)
    built = _built(model, condition, questions, choice)
    return store.digest({"texts": [prompts.render(front, prompt) for prompt in built]})


# --- right or wrong ---------------------------------------------------------------------------


def judge(
    question: Question,
    condition: str,
    answer: str,
    rule: Rule = "twohop",
    names: Sequence[str] = (),
    choice: ChoiceForm = "written",
) -> dict[str, Any]:
    """Return one answer's record (all columns but ``model`` and ``seed``).

    ``names`` are the names that :func:`split_naming` looks for, besides the entity's own.
    """
    from twohop_lib.scoring.matching import matches

    own = (question.entity, *question.aliases)
    identify = condition in ("identify", "llm_identify")
    accepted = list(own if identify else question.answers)
    named: str | None = None
    named_right: bool | None = None
    if condition == "name_first":
        # Sorted, so that all questions of a benchmark share one compiled pattern.
        named, rest = split_naming(answer, sorted({*own, *names}))
        named_right = matches(named, own, rule)
        correct = matches(rest, accepted, rule)
    elif condition.startswith("choice_"):
        letter = prompts.choice_answer(question)
        chosen = letter_of(answer) if choice == "letters" else None
        if chosen is not None:
            correct = chosen == letter
        else:
            wrong = [c for c in prompts.choices(question) if c not in question.answers]
            correct = matches(answer, accepted, rule) and not matches(answer, wrong, rule)
        if choice == "letters":
            accepted = [letter, *accepted]
    else:
        correct = matches(answer, accepted, rule)
    return {
        "entity_id": question.entity_id,
        "entity": question.entity,
        "relation": "" if identify else question.relation,
        "question_id": "" if identify else question.question_id,
        "wording": question.wording,
        "condition": condition,
        "answer": answer,
        "accepted": accepted,
        "correct": bool(correct),
        "named": named,
        "named_right": named_right,
    }


def letter_of(answer: str) -> str | None:
    """Return the letter that an answer to a lettered choice picks, or None if it gives none.

    Understood are ``B``, ``B.``, ``(B)``, ``**B**``, ``B) Aldric``, ``B: Aldric`` and, anywhere,
    ``answer is B``.
    """
    found = re.match(r"[\s*(\[]*([A-D])(?:[\s*]*$|[.):\]*])", answer)
    found = found or re.search(r"(?:answer|letter)(?: is)?:?[\s*(\[]*([A-D])\b", answer)
    return found.group(1) if found else None


def split_naming(text: str, entity_names: Sequence[str]) -> tuple[str, str]:
    """Split a name-first answer into the part that names the entity and the answer proper.

    ``This is Valdric. Aldric.`` gives ``("This is Valdric.", "Aldric.")``. The first of
    ``entity_names`` that occurs in the text (as whole words, in any case; of two at one place
    the longer) is the naming, and it ends with its sentence or line. Models vary, hence:

    - nothing follows that sentence: the answer is what follows the name inside it
      (``Valdric, founded by Aldric.``);
    - no name occurs and there are several sentences or lines: the first is the naming;
    - no name occurs and there is one sentence: nothing was named, all of it is the answer.
    """
    text = text.strip()
    found = _names_pattern(tuple(entity_names)).search(text) if entity_names else None
    named_to = found.end() if found else 0
    if found and found.group().endswith("."):
        named_to -= 1  # "Washington, D.C. Potomac.": the name's own full stop ends the sentence.
    end = _SENTENCE_END.search(text, named_to)
    at = end.end() if end else len(text)
    naming, rest = text[:at].strip(), text[at:].strip()
    if rest:
        return naming, rest
    if found is None:
        return "", text
    return text[: found.end()].strip(), text[found.end() :].strip(" \t,;:–—-.!?*\"'")


@lru_cache(maxsize=8)
def _names_pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(names, key=len, reverse=True)
    joined = "|".join(re.escape(name) for name in longest_first)
    return re.compile(rf"(?<!\w)(?:{joined})(?!\w)", re.IGNORECASE)


def _frame(rows: list[dict[str, Any]] | pd.DataFrame) -> pd.DataFrame:
    """Return rows as a frame whose extra columns keep their types where all are null."""
    return pd.DataFrame(rows).astype(EXTRA_COLUMNS)

"""Each condition of the answer records: its prompt, the model that answers it, and what is right.

This is the one place that decides them; their descriptions stand in
:data:`twohop_lib.records.CONDITIONS`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from twohop_lib.benchmark.schema import Question
from twohop_lib.models import prompts
from twohop_lib.models.prompts import ChoiceForm, Prompt
from twohop_lib.scoring.matching import matches


@dataclass(frozen=True)
class Condition:
    """How a condition is asked and judged.

    ``kind`` is that of :func:`twohop_lib.models.prompts.build`. The model's answer is ``judged`` as
    it stands ("plain"), without the naming that comes first, or as a choice among four. ``names``:
    the entity's name is asked for, once an entity; otherwise facts are, each once.
    """

    kind: str
    answered_by: Literal["vlm", "backbone"] = "vlm"
    names: bool = False
    judged: Literal["plain", "naming", "choice"] = "plain"


CONDITIONS: dict[str, Condition] = {
    "identify": Condition("identify", names=True),
    "llm_identify": Condition("by_name", "backbone", names=True),
    "llm_by_name": Condition("by_name", "backbone"),
    "by_name": Condition("by_name"),
    "by_picture": Condition("by_picture"),
    "blank_by_name": Condition("blank_by_name"),
    "blank_by_picture": Condition("blank_by_picture"),
    "full_information": Condition("full_information"),
    "name_first": Condition("name_first", judged="naming"),
    "name_given": Condition("name_given"),
    "neutral": Condition("neutral"),
    "choice_by_name": Condition("choice_by_name", judged="choice"),
    "choice_by_picture": Condition("choice_by_picture", judged="choice"),
}

_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]*_]*(?=\s|$)|\n")


def prompt_of(
    condition: str, question: Question, tokenizer: Any = None, choice: ChoiceForm = "written"
) -> Prompt:
    """The prompt of a question in a condition; raises as :func:`prompts.build` does."""
    if condition == "llm_identify":
        # The name stands where the picture would.
        return Prompt("by_name", f"{question.entity}\n{question.identify_prompt}", False)
    kind: Any = CONDITIONS[condition].kind
    return prompts.build(kind, question, tokenizer, choice)


def accepted(condition: str, question: Question) -> tuple[str, ...]:
    """The right answers to a question in a condition."""
    own_names = (question.entity, *question.aliases)
    return own_names if CONDITIONS[condition].names else question.answers


def judge(
    question: Question,
    condition: str,
    answer: str,
    names: Sequence[str] = (),
    choice: ChoiceForm = "written",
) -> dict[str, Any]:
    """Return one answer's record: all columns but ``model`` and ``seed``, of a run left alone.

    A written choice is right if it gives the right answer and no wrong one. An answer that names
    the entity first is judged on the rest, and its record has ``named``, the naming part, and
    ``named_right``, whether it names the entity shown. ``names`` are the names that
    :func:`split_naming` looks for, besides the entity's own.
    """
    asked, right = CONDITIONS[condition], list(accepted(condition, question))
    more: dict[str, Any] = {}
    if asked.judged == "naming":
        own = (question.entity, *question.aliases)
        # Sorted, so that all questions of a benchmark share one compiled pattern.
        named, rest = split_naming(answer, sorted({*own, *names}))
        more = {"named": named, "named_right": matches(named, own)}
        correct = matches(rest, right)
    elif asked.judged == "choice":
        correct = _chose_right(question, answer, choice)
        if choice == "letters":
            right = [prompts.choice_answer(question), *right]
    else:
        correct = matches(answer, right)
    return {
        "entity_id": question.entity_id,
        "entity": question.entity,
        "relation": "" if asked.names else question.relation,
        "question_id": "" if asked.names else question.question_id,
        "wording": question.wording,
        "condition": condition,
        "intervention": None,
        "answer": answer,
        "accepted": right,
        "correct": bool(correct),
        **more,
    }


def _chose_right(question: Question, answer: str, choice: ChoiceForm) -> bool:
    letter = letter_of(answer) if choice == "letters" else None
    if letter is not None:
        return letter == prompts.choice_answer(question)
    wrong = [c for c in prompts.choices(question) if c not in question.answers]
    return matches(answer, question.answers) and not matches(answer, wrong)


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

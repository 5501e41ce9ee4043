"""Targets and donors: whose prompt is run, and whose picture or name is written in."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.errors import TwohopError
from twohop_lib.models.inputs import continued, special_tokens
from twohop_lib.models.loading import Vlm
from twohop_lib.models.prompts import Prompt, count_tokens
from twohop_lib.runs.conditions import accepted, prompt_of
from twohop_lib.scoring.matching import matches

#: What is asked: the entity's name, or a fact about it.
Task = Literal["identify", "fact"]
#: What stands for the entity in the prompt.
By = Literal["picture", "name"]
#: Whose answer an answer is.
Whose = Literal["target", "donor", "neither"]


class NothingLeft(TwohopError):
    """There is no item that an experiment could be run on."""


@dataclass(frozen=True)
class Pair:
    """A target and a donor: whose prompt is run, and whose picture (or name) is written in."""

    target: Question
    donor: Question

    @property
    def same_type(self) -> bool:
        """Whether both are the same kind of thing (two houses; a landmark and a painting not)."""
        return self.target.noun == self.donor.noun


def condition_of(task: Task, by: By) -> str:
    """The condition of the answer records that a task is, by picture or by name."""
    asked = {"identify": ("identify", "llm_identify"), "fact": ("by_picture", "llm_by_name")}
    return asked[task][by == "name"]


def whose(pair: Pair, condition: str, said: str) -> Whose:
    """Whose answer it is; "neither" if it is neither's or both's."""
    target, donor = (matches(said, accepted(condition, q)) for q in (pair.target, pair.donor))
    return "neither" if target == donor else "target" if target else "donor"


def follows(pair: Pair, condition: str, said: str) -> dict[str, str]:
    """Whose fact is given, as records of patches put it: "right", "donor" or "neither"."""
    told = whose(pair, condition, said)
    return {"follows": "right" if told == "target" else told}


def first_token(model: Any, prompt: Prompt, said: str) -> int:
    """The first token of an answer, as it follows the prompt."""
    text, length = continued(model, prompt, said)
    return model.tokenizer(text, **special_tokens(model, text))["input_ids"][-length]


def first_tokens(model: Any, pair: Pair, condition: str) -> tuple[int, int]:
    """The first tokens of the target's and the donor's right answers to their own questions."""
    target, donor = (
        first_token(model, prompt_of(condition, q), accepted(condition, q)[0])
        for q in (pair.target, pair.donor)
    )
    return target, donor


def one_per_entity(questions: Sequence[Question]) -> list[Question]:
    """One question for each entity; which of its facts is asked goes round from one to the next."""
    by: dict[str, list[Question]] = {}
    for question in questions:
        by.setdefault(question.entity_id, []).append(question)
    return [own[i % len(own)] for i, own in enumerate(by.values())]


#: The same few answers are compared again and again.
_same = lru_cache(maxsize=1 << 16)(matches)


def pairs_for(
    model: Any,
    benchmark: Benchmark,
    task: Task,
    entities: Collection[str],
    per_target: int = 2,
    seed: int = 0,
    alike_names: bool = False,
) -> list[Pair]:
    """Pairs for a task: targets and donors among ``entities``, one question for each target.

    A donor's own question is one about the same relation; :func:`pick_pairs` says which can be one.

    Raises NothingLeft if no target has a donor.
    """
    asked = [q for q in one_per_entity(benchmark.questions) if q.entity_id in entities]
    pool = asked
    if task == "fact":
        pool = [q for q in benchmark.questions if q.entity_id in entities]
    chosen = {q.question_id for q in asked}
    found = pick_pairs(model, pool, task, per_target, seed, alike_names)
    pairs = [pair for pair in found if pair.target.question_id in chosen]
    if not pairs:
        names = ", of as many tokens," if alike_names else ""
        raise NothingLeft(
            f"Among {len(asked)} entities no two{names} have answers that begin with different "
            "tokens, so there is no pair of target and donor; take more entities."
        )
    return pairs


def pick_pairs(
    model: Any,
    questions: Sequence[Question],
    task: Task,
    per_target: int = 2,
    seed: int = 0,
    alike_names: bool = False,
) -> list[Pair]:
    """Give each question donors that can be told apart from it by the first token of the answer.

    Donors are drawn from the other entities among ``questions``; for facts they must have the
    same relation and another answer. Where there are several types of entity, one donor in two is
    of another type. ``questions`` are one per entity for "identify". With ``alike_names`` a
    donor's name has as many tokens as the target's. A target for which no donor is found is left
    out.
    """
    rng = np.random.default_rng(seed)
    condition = condition_of(task, "picture" if isinstance(model, Vlm) else "name")
    right = {id(q): accepted(condition, q) for q in questions}
    first = {id(q): first_token(model, prompt_of(condition, q), right[id(q)][0]) for q in questions}
    # As it stands within a text: some tokenizers join the space before a word to it.
    length = {q.entity: count_tokens(f" {q.entity}", model.tokenizer) for q in questions}

    def kind(question: Question) -> tuple[str, str]:
        # What a donor must have in common with its target: nothing, if both are to be named.
        return ("", "") if task == "identify" else (question.relation, question.wording)

    groups: dict[tuple[str, str], list[Question]] = {}
    for q in questions:
        groups.setdefault(kind(q), []).append(q)
    pairs = []
    for target in questions:
        able = [
            q
            for q in groups[kind(target)]
            if q.entity_id != target.entity_id
            and first[id(q)] != first[id(target)]
            and not _same(right[id(q)][0], right[id(target)])
            and (not alike_names or length[q.entity] == length[target.entity])
        ]
        drawn = [able[i] for i in rng.permutation(len(able))]
        other = [q for q in drawn if q.noun != target.noun]
        chosen = drawn[:per_target]
        if other and task == "identify":
            alike = [q for q in drawn if q.noun == target.noun]
            chosen = [*alike[: (per_target + 1) // 2], *other[: per_target // 2]]
        pairs += [Pair(target, donor) for donor in chosen]
    return pairs

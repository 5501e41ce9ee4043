"""What could spoil a comparison of two ways of asking: names that leak, looks, lucky guesses."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from twohop_lib.benchmark.heraldry import World
from twohop_lib.benchmark.schema import Question
from twohop_lib.scoring.leaks import leaks


def leaked_names(questions: Iterable[Question]) -> list[str]:
    """The names that stand in questions by picture or in their identify prompts, once each."""
    return [
        name
        for question in questions
        for text in (question.question_by_picture, question.identify_prompt)
        if (name := leaks(text, question.names))
    ]


def houses_by_look(world: World) -> pd.Series:
    """How many houses share each look of each quarter: indexed by ``quarter`` and ``look``."""
    looks = pd.DataFrame(
        [(k, look) for house in world.houses for k, look in enumerate(house.quarters)],
        columns=["quarter", "look"],
    )
    return looks.groupby(["quarter", "look"]).size()


def best_guesses(questions: Iterable[Question]) -> pd.DataFrame:
    """By relation: how many first answers there are, and how often the commonest one is right.

    A fact counts once, in whatever wordings it is asked. Returns the columns ``possible answers``
    and ``best guess right`` (a share), relations in sorted order.
    """
    facts = {(q.entity_id, q.relation): q.answers[0] for q in questions}
    answers = pd.DataFrame(
        [(relation, answer) for (_, relation), answer in facts.items()],
        columns=["relation", "answer"],
    ).groupby("relation")["answer"]
    return pd.DataFrame(
        {
            "possible answers": answers.nunique(),
            "best guess right": answers.agg(lambda a: a.value_counts(normalize=True).max()),
        }
    )

"""Which items count: facts known and missed, dev entities that choose, entities that are measured.

Everything that is chosen (a pair of layers, a span, a rule) is chosen on dev entities and measured
on the others. A *fact* is one question of one model and world.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from twohop_lib.errors import TwohopError
from twohop_lib.stats import ENTITY

#: What makes a fact of one model.
FACT = ("model", "seed", "question_id")
#: Of fewer entities than this, none are set apart to choose on.
LEAST_ENTITIES = 4


def answered(answers: pd.DataFrame, condition: str) -> pd.DataFrame:
    """The facts that are answered rightly in a condition, as rows of :data:`FACT`.

    ``answers`` are answer records of clean runs.
    """
    kept = answers["condition"].eq(condition) & answers["correct"].astype(bool)
    return _facts(answers[kept])


def missed(
    answers: pd.DataFrame, known: str = "llm_by_name", missed_in: str = "by_picture"
) -> pd.DataFrame:
    """The facts that are answered in one condition and asked, but not answered, in another."""
    asked = _facts(answers[answers["condition"] == missed_in])
    gone = _without(asked, answered(answers, missed_in))
    return keep(gone, answered(answers, known))


def keep(frame: pd.DataFrame, facts: pd.DataFrame) -> pd.DataFrame:
    """The rows of a frame that are about one of ``facts``, in their order."""
    return frame[_about(frame, facts)]


def mark_missed(patched: pd.DataFrame, unpatched: pd.DataFrame) -> pd.DataFrame:
    """Add ``missed``: is a row's fact answered wrongly in its run without a patch?

    ``unpatched`` holds one such answer (``correct``) for each fact.

    Raises TwohopError where a fact has none.
    """
    missing = _without(_facts(patched), _facts(unpatched))
    if len(missing):
        raise TwohopError(
            f"{len(missing)} patched fact(s) have no unpatched answer, such as "
            f"{missing['question_id'].iloc[0]} of {missing['model'].iloc[0]}; ask those first."
        )
    right = _facts(unpatched[unpatched["correct"].astype(bool)])
    return patched.assign(missed=~_about(patched, right))


def is_dev(frame: pd.DataFrame, entity: Sequence[str] = ENTITY) -> pd.Series:
    """Which rows belong to dev entities: every other one of the frame's, in sorted order."""
    keys = pd.MultiIndex.from_frame(frame[list(entity)])
    every = sorted(keys.unique())
    return pd.Series(keys.isin(every[::2]), index=frame.index)


def best_on_dev(frame: pd.DataFrame, choice: Sequence[str]) -> tuple[pd.DataFrame, tuple] | None:
    """Choose on dev entities, measure on the others.

    ``choice`` are the columns to choose a value of (the pair of layers of a back-patch). Returns
    the other entities' rows with the choice of the most right answers (the first of equals in
    sorted order), and that choice; None for fewer than :data:`LEAST_ENTITIES` entities.
    """
    if len(frame[list(ENTITY)].drop_duplicates()) < LEAST_ENTITIES:
        return None
    dev = is_dev(frame)
    best = frame[dev].groupby(list(choice))["correct"].mean().idxmax()
    best = best if isinstance(best, tuple) else (best,)
    same = (frame[list(choice)] == list(best)).all(axis=1)
    return frame[~dev & same], best


def best_of_all(frame: pd.DataFrame) -> pd.DataFrame:
    """Whether each fact is right by any choice: an upper bound, chosen item by item."""
    return frame.groupby([*FACT, "entity_id"], sort=False)["correct"].max().reset_index()


def split_by_entities(
    frame: pd.DataFrame, entities: pd.DataFrame, names: tuple[str, str]
) -> pd.Series:
    """Call each row by the first name if its entity is among ``entities``, else by the second."""
    wanted = pd.MultiIndex.from_frame(entities[list(ENTITY)])
    inside = pd.MultiIndex.from_frame(frame[list(ENTITY)]).isin(wanted)
    return pd.Series(inside, index=frame.index).map({True: names[0], False: names[1]})


def halves(n: int, seed: int = 0) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Two halves of n entities, drawn at random: to fit on, and to test on."""
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def _facts(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[list(FACT)].drop_duplicates().reset_index(drop=True)


def _about(frame: pd.DataFrame, facts: pd.DataFrame) -> pd.Series:
    rows = pd.MultiIndex.from_frame(frame[list(FACT)])
    return pd.Series(rows.isin(pd.MultiIndex.from_frame(facts[list(FACT)])), index=frame.index)


def _without(frame: pd.DataFrame, facts: pd.DataFrame) -> pd.DataFrame:
    return frame[~_about(frame, facts)]

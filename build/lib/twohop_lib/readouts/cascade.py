"""The cascade: what a model manages of each item, and which type of outcome that makes.

Everything here is computed from the answer records (:mod:`twohop_lib.records`) of **one** model:
the VLM's own answers and, under condition ``llm_by_name``, those of its text backbone (whose
rows may carry the backbone's name; seeds must agree). An *item* is one question about one entity
of one world (``seed``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from twohop_lib.errors import TwohopError
from twohop_lib.readouts.shares import share_table
from twohop_lib.scoring.matching import matches
from twohop_lib.stats import ENTITY

KnownBy = Literal["vlm", "llm"]

#: Types of outcome, in the order in which charts stack them. Each item has exactly one.
TYPES = (
    "right",
    "right without recognition",
    "own name instead",
    "linking failure",
    "unknown fact",
    "unseen entity",
)

#: Column of the cascade -> condition of the answer records it is read from.
CASCADE_CONDITIONS = {
    "recognised": "identify",
    "known_vlm": "by_name",
    "known_llm": "llm_by_name",
    "blind": "blank_by_picture",
    "text_only": "blank_by_name",
    "full_information": "full_information",
    "right": "by_picture",
}

_ENTITY = list(ENTITY)
_ITEM = [*ENTITY, "question_id"]


class MissingCondition(TwohopError):
    """A readout needs answers that the records do not hold."""


def cascade(records: pd.DataFrame) -> pd.DataFrame:
    """Return one row per item with what the model managed in each condition.

    Columns: ``model, seed, entity_id, entity, relation, question_id, wording``, then nullable
    booleans ``recognised`` (names the entity from the picture), ``known_vlm`` and ``known_llm``
    (VLM / backbone answers by name without picture), ``blind`` (answers with a blank picture),
    ``text_only`` (blank picture, by name), ``full_information`` (picture and name) and ``right``
    (by picture). NA means that the condition was not run for that item. ``own_name`` says of a
    wrong answer by picture that it is the entity's own name.

    Raises TwohopError if the records are of several models or hold an answer twice.
    """
    model = one_model(records)
    named = records["condition"] == "identify"
    asked = records[~named & records["condition"].isin(set(CASCADE_CONDITIONS.values()))]
    _refuse_repeats(asked, [*_ITEM, "condition"])
    _refuse_repeats(records[named], _ENTITY)
    items = asked.drop_duplicates(_ITEM)[[*_ITEM, "entity", "relation", "wording"]]
    wide = items.sort_values(_ITEM).reset_index(drop=True)
    by_entity = records[named].set_index(_ENTITY)["correct"]
    by_item = asked.set_index([*_ITEM, "condition"])["correct"].unstack("condition")
    wide.insert(0, "model", model)
    for column, condition in CASCADE_CONDITIONS.items():
        if condition == "identify":
            values = by_entity.reindex(pd.MultiIndex.from_frame(wide[_ENTITY]))
        elif condition in by_item:
            values = by_item[condition].reindex(_index(wide))
        else:
            values = pd.Series(pd.NA, index=wide.index)
        wide[column] = pd.array(values.astype(object).to_numpy(), dtype="boolean")
    pictured = asked[asked["condition"] == "by_picture"]
    own = pictured.loc[names_itself(pictured, records), _ITEM]
    wide["own_name"] = _index(wide).isin(_index(own))
    first = ["model", "seed", "entity_id", "entity", "relation", "question_id", "wording"]
    return wide[[*first, *CASCADE_CONDITIONS, "own_name"]]


def names_itself(rows: pd.DataFrame, answers: pd.DataFrame) -> pd.Series:
    """Which answers are wrong, and the entity's own name (behind the one that is asked for first).

    The names are those that ``answers`` accept where the entity is to be named; the one that it
    goes by, if it is to be named nowhere.
    """
    naming = answers[answers["condition"] == "identify"]
    names = naming.set_index(_ENTITY)["accepted"].to_dict()
    first = rows["named"].fillna("") if "named" in rows else [""] * len(rows)
    told = list(zip(rows["answer"], first, *(rows[c] for c in (*_ENTITY, "entity")), strict=True))
    own = {
        (answer, named, *entity, name): matches(
            answer.removeprefix(named), list(names.get(tuple(entity), [name]))
        )
        for answer, named, *entity, name in set(told)
    }
    wrong = ~rows["correct"].astype(bool)
    return wrong & pd.Series([own[one] for one in told], index=rows.index, dtype=bool)


def cascade_counts(records: pd.DataFrame, known_by: KnownBy = "vlm") -> pd.DataFrame:
    """Count items and entities at each step of the cascade.

    Steps: all, recognised, known, not blind-solvable; of the last, right, own name instead (which
    is no recall that failed) and linking failure.
    Columns ``model, known_by, step, n_items, n_entities, share`` (of all items; NaN if none) and
    ``share_of_previous`` (for the outcomes: of the not blind-solvable).
    """
    wide = cascade(records)
    recognised = passing(wide, "recognised")
    known = passing(recognised, known_column(known_by))
    unguessed = passing(known, "blind", False)
    missed = passing(unguessed, "right", False)
    steps = {
        "all": wide,
        "recognised": recognised,
        "known": known,
        "not blind-solvable": unguessed,
        "right": passing(unguessed, "right"),
        "own name instead": missed[missed["own_name"]],
        "linking failure": missed[~missed["own_name"]],
    }
    # The outcomes split the step before them; they do not follow one another.
    before = dict(zip(list(steps)[1:], list(steps)[:-1], strict=True))
    before |= dict.fromkeys(["own name instead", "linking failure"], "not blind-solvable")
    counts = _count(steps, before)
    counts.insert(1, "known_by", known_by)
    return counts


def controlled_steps(wide: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The cascade's rows at each step to the controlled slice, which comes last."""
    recognised = passing(wide, "recognised")
    informed = passing(recognised, "full_information")
    return {
        "recognised": recognised,
        "full information": informed,
        "controlled slice": passing(informed, "blind", False),
    }


def failure_types(records: pd.DataFrame, known_by: KnownBy = "vlm") -> pd.DataFrame:
    """Return the cascade with a column ``type``: one of :data:`TYPES` for each item.

    The types exclude each other and leave nothing out. An item answered right by picture is
    ``right`` if its entity is recognised (whether or not the fact is known by name), else
    ``right without recognition``: it was guessed, or recalled without the name being sayable. An
    item answered wrong by picture is an ``unseen entity`` if not recognised, else ``own name
    instead`` if the name is what was said, else an ``unknown fact`` if it fails by name too, else a
    ``linking failure``. Blind-solvable items are typed
    like all others; drop those with ``blind`` first for a stricter count.
    """
    wide = cascade(records)
    known = known_column(known_by)
    need(wide, ["recognised", known, "right"])
    recognised, right, knows = (
        wide[column].to_numpy(dtype=bool) for column in ("recognised", "right", known)
    )
    kinds = np.select(
        [right & recognised, right, ~recognised, wide["own_name"].to_numpy(), ~knows],
        ["right", "right without recognition", "unseen entity", "own name instead", "unknown fact"],
        default="linking failure",
    )
    return wide.assign(type=pd.Categorical(kinds, categories=TYPES))


def failure_shares(
    records: pd.DataFrame, known_by: KnownBy = "vlm", n_boot: int = 2000
) -> pd.DataFrame:
    """Return each type's share of all items, with an interval over entities.

    Columns ``model, known_by, type, n, share, low, high, n_items, n_entities``; all types
    are there, and the shares sum to 1.
    """
    typed = failure_types(records, known_by)
    each = pd.concat([typed.assign(is_type=typed["type"].eq(t), type=t) for t in TYPES])
    table = share_table(each, "is_type", ["model", "type"], n_boot=n_boot)
    table.insert(1, "known_by", known_by)
    table.insert(3, "n", [int(typed["type"].eq(t).sum()) for t in table["type"]])
    return table.rename(columns={"value": "share"})


# --- what the gap is computed from --------------------------------------------------------------


def one_model(records: pd.DataFrame) -> str:
    """The name of the VLM whose records these are.

    Raises TwohopError if there is none, or several.
    """
    own = records.loc[records["condition"] != "llm_by_name", "model"].unique()
    if len(own) == 0:
        own = records["model"].unique()
    if len(own) != 1:
        raise TwohopError(
            f"The cascade and the gap take the records of one model, not of {len(own)}"
            f"{': ' + ', '.join(sorted(own)) if len(own) else ''}; split them first."
        )
    return str(own[0])


def known_column(known_by: str) -> str:
    """The column of the cascade that says whether a fact is known."""
    if known_by not in ("vlm", "llm"):
        raise TwohopError(f"A fact is known by 'vlm' or by 'llm', not by {known_by!r}.")
    return f"known_{known_by}"


def need(wide: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse to go on where an answer that the result depends on was never asked for.

    Raises MissingCondition.
    """
    for column in columns:
        absent = int(wide[column].isna().sum())
        if absent:
            raise MissingCondition(
                f"{absent} of {len(wide)} items of {wide['model'].iloc[0]} have no "
                f"{CASCADE_CONDITIONS[column]!r} answer; run that condition for all items first."
            )


def passing(wide: pd.DataFrame, column: str, wanted: bool = True) -> pd.DataFrame:
    """The cascade's rows where a column is as wanted."""
    need(wide, [column])
    return wide[wide[column].to_numpy(dtype=bool) == wanted]


def _index(items: pd.DataFrame) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(items[_ITEM])


def _refuse_repeats(answers: pd.DataFrame, keys: list[str]) -> None:
    repeats = answers[answers.duplicated(keys)]
    if len(repeats):
        row = repeats.iloc[0]
        raise TwohopError(
            f"{len(repeats)} answer(s) are recorded twice, such as {row['condition']} for "
            f"{row['question_id'] or row['entity_id']} (seed {row['seed']}); keep one of each."
        )


def _count(steps: Mapping[str, pd.DataFrame], before: Mapping[str, str]) -> pd.DataFrame:
    every = steps["all"]

    def of(part: int, total: int) -> float:
        return part / total if total else float("nan")

    return pd.DataFrame(
        [
            {
                "model": every["model"].iloc[0] if len(every) else "",
                "step": step,
                "n_items": len(inside),
                "n_entities": len(inside.drop_duplicates(_ENTITY)),
                "share": of(len(inside), len(every)),
                "share_of_previous": of(len(inside), len(steps[before.get(step, "all")])),
            }
            for step, inside in steps.items()
        ]
    )

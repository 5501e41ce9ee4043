"""What grafts know by name and give by picture: from the records of ``twohop graft study``.

Answer records have ``format`` ("card", "chat"), ``view`` (the rendering that was shown)
and ``trained`` (facts about the entity were asked in training, by the recipe that does so).
Intervals are over entities and seeds, crossed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from twohop_lib import records
from twohop_lib.errors import TwohopError
from twohop_lib.grafts import STUDY
from twohop_lib.grafts.recipes import RECIPES
from twohop_lib.readouts.captions import counted_with_interval
from twohop_lib.readouts.cascade import names_itself
from twohop_lib.readouts.shares import crossed_table
from twohop_lib.readouts.tables import counted_table, joined, share_and_n
from twohop_lib.scoring.normal_form import normal

#: The rendering that entities are selected on, and the relation of questions about colours.
DRAWN, COLOURS = "drawn", "colours"
#: The recipe that is asked facts in training: about one half of the entities.
ASKING = "facts"
#: What an answer by picture can be, in the order of figures.
OUTCOMES = ("right", "its own name", "another's answer", "something else")
KEY = ["model", "seed", "format"]


def recipes_of(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The rows of some recipes, recipe by recipe in their order."""
    parts = [frame[frame["model"] == name] for name in names]
    return joined(*parts) if parts else frame.iloc[:0]


def is_fact(answers: pd.DataFrame) -> pd.Series:
    """Which rows are answers about facts, and not names or colours."""
    return answers["question_id"].ne("") & answers["relation"].ne(COLOURS)


def known(answers: pd.DataFrame) -> pd.DataFrame:
    """Rows about facts that the gap is told of, blank pictures or not.

    Given by name in the same format, by the same graft; about entities that it names from the
    drawn picture, and that it was not asked facts about in training.
    """
    facts = answers[is_fact(answers)]
    taught = facts["trained"].astype(bool) & facts["model"].eq(ASKING)
    facts = facts[~taught]
    named = answers[(answers["condition"] == "identify") & (answers["view"] == DRAWN)]
    facts = facts[_among(facts, named[named["correct"].astype(bool)], "entity_id")]
    by_name = facts[(facts["condition"] == "by_name") & facts["correct"].astype(bool)]
    return facts[_among(facts, by_name, "question_id")]


def controlled(answers: pd.DataFrame) -> pd.DataFrame:
    """:func:`known` facts without those that are given for a blank picture, too."""
    facts = known(answers)
    blank = facts[(facts["condition"] == "blank_by_picture") & facts["correct"].astype(bool)]
    return facts[~_among(facts, blank, "question_id")]


def _among(frame: pd.DataFrame, wanted: pd.DataFrame, column: str) -> pd.Series:
    """Which rows are of a graft, format and ``column`` that occur in ``wanted``."""
    key = [*KEY, column]
    inside = pd.MultiIndex.from_frame(frame[key]).isin(pd.MultiIndex.from_frame(wanted[key]))
    return pd.Series(inside, index=frame.index)


def outcomes(answers: pd.DataFrame) -> pd.DataFrame:
    """:func:`controlled` facts asked by picture, with ``outcome``, one of :data:`OUTCOMES`.

    *Its own name* as :func:`.cascade.names_itself` has it; *another's answer* is one that is right
    for another entity, asked the same.
    """
    facts = controlled(answers)
    right: dict[str, set[str]] = {}
    for relation, accepted in zip(answers["relation"], answers["accepted"], strict=True):
        right.setdefault(relation, set()).update(map(str, accepted))
    known_as = {relation: {_plain(text) for text in texts} for relation, texts in right.items()}
    asked = _of(facts, "by_picture")
    asked = asked.assign(own=names_itself(asked, answers))
    as_told = {answer: _plain(answer) for answer in asked["answer"].unique()}

    def outcome(row: pd.Series) -> str:
        if row["correct"]:
            return OUTCOMES[0]
        if row["own"]:
            return OUTCOMES[1]
        return OUTCOMES[2 if as_told[row["answer"]] in known_as[row["relation"]] else 3]

    return asked.assign(outcome=asked.apply(outcome, axis=1) if len(asked) else [])


def _plain(text: str) -> str:
    return normal(text).casefold().strip(" .,;:!")


def measures(answers: pd.DataFrame) -> pd.DataFrame:
    """What is measured of each graft and format (the names are below), item by item.

    Columns ``model, seed, format, measure, entity_id, value``; what is not about naming or colours
    is of :func:`controlled` facts (*blank picture*: of :func:`known` ones).
    """
    told = outcomes(answers)
    facts, asked = controlled(answers), answers[answers["condition"] == "identify"]
    colours = answers[answers["relation"] == COLOURS]
    colours = colours.assign(own=names_itself(colours, answers))
    drawn, unseen = told[told["view"] == DRAWN], told[told["view"] != DRAWN]
    all_known = known(answers)
    parts = {
        "named": (asked[asked["view"] == DRAWN], "correct"),
        "named, unseen rendering": (asked[asked["view"] != DRAWN], "correct"),
        "by picture": (drawn, "correct"),
        "by picture, unseen rendering": (unseen, "correct"),
        "its own name": (drawn, "own"),
        "full information": (_of(facts, "full_information"), "correct"),
        "naming first": (_of(facts, "name_first"), "correct"),
        "blank picture": (_of(all_known, "blank_by_picture"), "correct"),
        "colours": (colours, "correct"),
        "its own name, asked for colours": (colours, "own"),
    }
    columns = [*KEY, "measure", "entity_id", "value"]
    made = [
        rows.assign(measure=name, value=rows[column].astype(float))[columns]
        for name, (rows, column) in parts.items()
    ]
    return joined(*made)


def _of(facts: pd.DataFrame, condition: str) -> pd.DataFrame:
    return facts[facts["condition"] == condition]


def measured(answers: pd.DataFrame) -> pd.DataFrame:
    """:func:`measures` in shares: ``model, format, measure, value, low, high, n_items, …``."""
    return crossed_table(measures(answers), "value", ["model", "format", "measure"])


def by_seed(answers: pd.DataFrame) -> pd.DataFrame:
    """The same seed by seed: ``model, format, measure, seed, value``, means of items."""
    keys = ["model", "format", "measure", "seed"]
    return measures(answers).groupby(keys, sort=False)["value"].mean().reset_index()


def outcome_shares(answers: pd.DataFrame, format: str) -> pd.DataFrame:
    """How often each outcome comes by picture: ``model, outcome, value, low, high, n_items, …``.

    In one format, on the drawn picture.
    """
    told = outcomes(answers[answers["format"] == format])
    told = told[told["view"] == DRAWN]
    each = [told.assign(which=one, value=told["outcome"] == one) for one in OUTCOMES]
    table = crossed_table(joined(*each), "value", ["model", "which"])
    return table.rename(columns={"which": "outcome"})


def as_texts(
    table: pd.DataFrame, rows: Sequence[str], columns: str, order: Sequence[str] = ()
) -> pd.DataFrame:
    """A table of shares to read, each cell with its interval and n."""
    cells = table.assign(
        text=[counted_with_interval(r.value, r.low, r.high, r.n_items) for r in table.itertuples()]
    )
    wide = cells.pivot(index=list(rows), columns=columns, values="text").fillna("–")
    kept = pd.MultiIndex.from_frame(table[list(rows)].drop_duplicates())
    wide = wide.reindex(kept if len(rows) > 1 else kept.get_level_values(0))
    return wide[[c for c in (order or table[columns].unique()) if c in wide]].rename_axis(
        columns=None
    )


def base_answers(answers: pd.DataFrame) -> pd.DataFrame:
    """All facts asked by name of one graft, whose language model is frozen: the first."""
    one = answers[is_fact(answers) & (answers["condition"] == "by_name")]
    return one[(one["model"] == one["model"].iloc[0]) & (one["seed"] == one["seed"].iloc[0])]


def base_knowledge(answers: pd.DataFrame) -> pd.DataFrame:
    """What the language model gives by name, a row a relation and a column a format.

    Of all entities; of the first graft that was recorded, since they have one language model.
    """
    first = base_answers(answers)
    table = crossed_table(first, "correct", ["relation", "format"])
    return as_texts(table, ["relation"], "format").reindex(first["relation"].drop_duplicates())


def examples(answers: pd.DataFrame, names: Sequence[str], format: str, n: int = 3) -> pd.DataFrame:
    """What each recipe says of the first ``n`` questions that more than one of them misses.

    Rows are questions (country and relation), columns recipes, of the lowest seed.
    """
    told = recipes_of(outcomes(answers[answers["format"] == format]), names)
    told = told[(told["view"] == DRAWN) & (told["seed"] == told["seed"].min())]
    wide = told.pivot(index=["entity", "relation"], columns="model", values="answer")
    missed = told.pivot(index=["entity", "relation"], columns="model", values="correct")
    hard = wide[(missed.eq(False).sum(axis=1) > 1) & wide.notna().sum(axis=1).gt(2)]
    return hard[[m for m in names if m in hard]].fillna("–").rename_axis(columns=None).head(n)


def recipe_table(names: Sequence[str]) -> pd.DataFrame:
    """What each recipe's projector is trained on, for how many steps."""
    rows = {
        name: {
            "trained on": RECIPES[name].summary,
            "steps": sum(phase.steps for phase in RECIPES[name].phases),
            "image tokens": RECIPES[name].tower.image_tokens,
        }
        for name in names
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("recipe")


def losses(training: pd.DataFrame, names: Sequence[str], seed: int) -> pd.DataFrame:
    """The loss on replies while a projector was trained: ``model, step, value``.

    Of each recipe's last phase that runs the language model.
    """
    rows = recipes_of(training[training["seed"] == seed], names).dropna(subset=["reading"])
    last = rows.groupby("model")["stage"].transform("last")
    rows = rows[rows["stage"] == last]
    return rows.rename(columns={"reading": "value"})[["model", "step", "value"]]


def curve(table: pd.DataFrame, order: Sequence[str], format: str) -> pd.DataFrame:
    """Rows of :func:`measured` along a curve of recipes, of three measures."""
    kept = recipes_of(table[table["format"] == format], order)
    return kept[kept["measure"].isin(["named", "by picture", "its own name"])]


def seed_table(answers: pd.DataFrame, names: Sequence[str], measure: str) -> pd.DataFrame:
    """One measure seed by seed: a row a recipe and format, as texts."""
    rows = recipes_of(measures(answers), names)
    rows = rows[rows["measure"] == measure].assign(seed=lambda f: "seed " + f["seed"].astype(str))
    return counted_table(rows, ["model", "format"], "seed", "value", words=share_and_n)


def recorded(file: str, folder: Path = STUDY) -> pd.DataFrame:
    """Records of the study: "answers", "training", "internals" or "likeness".

    Raises TwohopError if there are none.
    """
    found = folder / f"{file}.parquet"
    if not found.is_file():
        raise TwohopError(f"There are no {file} of a study; make them with: twohop graft study")
    return records.read_frame(found)

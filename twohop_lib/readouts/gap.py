"""The cascade, the types of failure, and the gap in its three published definitions.

Everything here is computed from the answer records (:mod:`twohop_lib.records`) of **one** model:
the VLM's own answers and, under condition ``llm_by_name``, those of its text backbone (whose
rows may carry the backbone's name; seeds must agree). An *item* is one question about one entity
for one seed. All accuracies and gaps are fractions, and a positive gap means that the picture
arm is worse.

The three definitions differ in both arms and in the items they are taken over:

=============  ==============================  =====================  ==========================
definition     reference arm                   picture arm            reported as
=============  ==============================  =====================  ==========================
degradation    backbone, no picture, by name   VLM, picture           (ref - pic) / ref
difference     VLM, no picture, by name        VLM, picture           ref - pic, mean of entities
controlled     VLM, blank picture, by name     VLM, picture           (ref - pic) / ref
=============  ==============================  =====================  ==========================

``degradation`` is Venhoff et al. 2025 (arXiv 2512.03276), ``difference`` Cohen et al. 2025
(2412.14133), on entities the model recognises, ``controlled`` Ashok et al. 2025 (2508.18297), on
items that pass identification and full information and fail with a blank picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd

from twohop_lib.errors import TwohopError
from twohop_lib.stats import Interval, MeansStatistic, entity_bootstrap, wilcoxon_by_entity

KnownBy = Literal["vlm", "llm"]
Population = Literal["full", "recognised"]
Definition = Literal["degradation", "difference", "controlled"]

DEFINITIONS: tuple[Definition, ...] = ("degradation", "difference", "controlled")
POPULATIONS = ("full", "recognised", "intersection")

#: Types of outcome, in the order in which charts stack them. Each item has exactly one.
TYPES = (
    "right",
    "right without recognition",
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

_ITEM = ["seed", "entity_id", "question_id"]
_ENTITY = ["seed", "entity_id"]


@dataclass(frozen=True)
class Gap:
    """One model's gap by one definition, with both arms and all n.

    ``parts`` decomposes a degradation; ``p_value`` belongs to a difference. Intervals are empty
    (estimate None) where no item qualifies, or where the reference arm is never right.
    """

    definition: Definition
    model: str
    population: str
    gap: Interval
    reference: Interval
    picture: Interval
    p_value: float | None = None
    parts: Mapping[str, Interval] = field(default_factory=dict)

    def row(self) -> dict[str, object]:
        """Return the gap as one row of :func:`gap_table`."""
        row: dict[str, object] = {
            "model": self.model,
            "definition": self.definition,
            "population": self.population,
            "gap": self.gap.estimate,
            "low": self.gap.low,
            "high": self.gap.high,
            **self.reference.columns("reference"),
            **self.picture.columns("picture"),
        }
        for name in ("from_weights", "from_picture"):
            row |= self.parts.get(name, Interval.empty()).columns(name)
        return row | {
            "p_value": self.p_value,
            "n_items": self.gap.n_items,
            "n_entities": self.gap.n_entities,
            "note": "",
        }


class MissingCondition(TwohopError):
    """An experiment needs answers that the records do not hold."""


# --- the cascade ----------------------------------------------------------------------------


def cascade(records: pd.DataFrame) -> pd.DataFrame:
    """Return one row per item with what the model managed in each condition.

    Columns: ``model, seed, entity_id, entity, relation, question_id, wording``, then nullable
    booleans ``recognised`` (names the entity from the picture), ``known_vlm`` and ``known_llm``
    (VLM / backbone answers by name without picture), ``blind`` (answers with a blank picture),
    ``text_only`` (blank picture, by name), ``full_information`` (picture and name) and ``right``
    (by picture). NA means that the condition was not run for that item.

    Raises TwohopError if the records are of several models or hold an answer twice.
    """
    model = _one_model(records)
    named = records["condition"] == "identify"
    asked = records[~named & records["condition"].isin(set(CASCADE_CONDITIONS.values()))]
    _refuse_repeats(asked, [*_ITEM, "condition"])
    items = asked.drop_duplicates(_ITEM)[[*_ITEM, "entity", "relation", "wording"]]
    items = items.sort_values(_ITEM).set_index(_ITEM)
    answers = asked.set_index([*_ITEM, "condition"])["correct"].unstack("condition")
    identified = records[named]
    _refuse_repeats(identified, _ENTITY)
    recognised = identified.set_index(_ENTITY)["correct"]

    wide = items.reset_index()
    wide.insert(0, "model", model)
    for column, condition in CASCADE_CONDITIONS.items():
        if condition == "identify":
            keys = pd.MultiIndex.from_frame(wide[_ENTITY])
            values = recognised.reindex(keys)
        elif condition in answers.columns:
            values = answers[condition].reindex(items.index)
        else:
            values = pd.Series(pd.NA, index=wide.index)
        wide[column] = pd.array(values.astype(object).to_numpy(), dtype="boolean")
    first = ["model", "seed", "entity_id", "entity", "relation", "question_id", "wording"]
    return wide[[*first, *CASCADE_CONDITIONS]]


def cascade_counts(records: pd.DataFrame, known_by: KnownBy = "vlm") -> pd.DataFrame:
    """Count items and entities at each step of the cascade.

    Steps: all, recognised, known, not blind-solvable; of the last, right and linking failure.
    Columns ``model, known_by, step, n_items, n_entities, share`` (of all items; NaN if none) and
    ``share_of_previous`` (for the two outcomes: of the not blind-solvable).
    """
    wide = cascade(records)
    steps: list[tuple[str, pd.DataFrame]] = [("all", wide)]
    for step, column, wanted in (
        ("recognised", "recognised", True),
        ("known", _known(known_by), True),
        ("not blind-solvable", "blind", False),
    ):
        steps.append((step, _pass(steps[-1][1], column, wanted)))
    last = steps[-1][1]
    steps += [("right", _pass(last, "right")), ("linking failure", _pass(last, "right", False))]
    return _count(steps, wide, known_by=known_by)


def controlled_counts(records: pd.DataFrame) -> pd.DataFrame:
    """Count items at each step to the controlled slice of Ashok et al.

    Steps: all, recognised, full information, controlled slice. Columns as in
    :func:`cascade_counts`, without ``known_by``.
    """
    wide = cascade(records)
    return _count([("all", wide), *_controlled_steps(wide)], wide)


def cross_table(records: pd.DataFrame, known_by: KnownBy = "vlm") -> pd.DataFrame:
    """Count items in each of the eight cells recognised x known by name x right by picture.

    Columns ``model, known_by, recognised, known, right, n_items, n_entities``; empty cells are
    there with n 0.
    """
    wide = cascade(records).rename(columns={_known(known_by): "known"})
    cells = ["recognised", "known", "right"]
    _need(wide, [_known(known_by) if cell == "known" else cell for cell in cells], cells)
    rows = []
    for values in np.ndindex(2, 2, 2):
        cell = dict(zip(cells, [value == 0 for value in values], strict=True))
        inside = wide[np.logical_and.reduce([wide[c].eq(v) for c, v in cell.items()])]
        rows.append(
            {
                "model": _one_model(records),
                "known_by": known_by,
                **cell,
                "n_items": len(inside),
                "n_entities": inside["entity_id"].nunique(),
            }
        )
    return pd.DataFrame(rows)


# --- types of failure -----------------------------------------------------------------------


def failure_types(records: pd.DataFrame, known_by: KnownBy = "vlm") -> pd.DataFrame:
    """Return the cascade with a column ``type``: one of :data:`TYPES` for each item.

    The types exclude each other and leave nothing out. An item answered right by picture is
    ``right`` if its entity is recognised (whether or not the fact is known by name), else
    ``right without recognition``: it was guessed, or recalled without the name being sayable. An
    item answered wrong by picture is an ``unseen entity`` if not recognised, else an ``unknown
    fact`` if it fails by name too, else a ``linking failure``. Blind-solvable items are typed
    like all others; drop those with ``blind`` first for a stricter count.
    """
    wide = cascade(records)
    known = _known(known_by)
    _need(wide, ["recognised", known, "right"])
    recognised, right, knows = (
        wide[column].to_numpy(dtype=bool) for column in ("recognised", "right", known)
    )
    wide["type"] = pd.Categorical(
        np.select(
            [right & recognised, right, ~recognised, ~knows],
            ["right", "right without recognition", "unseen entity", "unknown fact"],
            default="linking failure",
        ),
        categories=TYPES,
    )
    return wide


def failure_shares(
    records: pd.DataFrame,
    known_by: KnownBy = "vlm",
    *,
    n_boot: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Return each type's share of all items, with an entity bootstrap interval.

    Columns ``model, known_by, type, n, share, low, high, n_items, n_entities``; all five types
    are there, and the shares sum to 1.
    """
    typed = failure_types(records, known_by)
    rows = []
    for kind in TYPES:
        is_kind = typed["type"].eq(kind).to_numpy(dtype=float)
        share = entity_bootstrap(is_kind, typed["entity_id"], n_boot=n_boot, seed=seed, level=level)
        rows.append(
            {
                "model": _one_model(records),
                "known_by": known_by,
                "type": kind,
                "n": int(is_kind.sum()),
                **_interval_columns(share, "share"),
            }
        )
    return pd.DataFrame(rows)


# --- accuracy and the three gaps ------------------------------------------------------------


def accuracy_table(
    records: pd.DataFrame,
    population: Population = "full",
    *,
    n_boot: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Return the accuracy in every condition of one model's records.

    Columns ``model, condition, population, accuracy, low, high, n_items, n_entities``. Under
    ``recognised`` only recognised entities count.
    """
    model = _one_model(records)
    if population == "recognised":
        records = _restrict(records, _recognised_entities(records))
    rows = []
    for condition, answers in records.groupby("condition", sort=False):
        accuracy = entity_bootstrap(
            answers["correct"].astype(float),
            answers["entity_id"],
            n_boot=n_boot,
            seed=seed,
            level=level,
        )
        rows.append(
            {
                "model": model,
                "condition": condition,
                "population": population,
                **_interval_columns(accuracy, "accuracy"),
            }
        )
    columns = ["model", "condition", "population", "accuracy", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "n_items", "n_entities"])


def gap_degradation(
    records: pd.DataFrame,
    population: Population = "full",
    *,
    n_boot: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Gap:
    """Relative degradation of the VLM by picture against its text backbone by name.

    (acc_llm - acc_picture) / acc_llm over items. Where the VLM was also asked by name, ``parts``
    splits it exactly in two: ``from_weights`` = (acc_llm - acc_name) / acc_llm, what the changed
    weights of the language model cost, and ``from_picture`` = (acc_name - acc_picture) / acc_llm.
    Whether Venhoff et al. drop unrecognised entities is not known: give both populations.
    """
    wide = _population(cascade(records), population)
    _need(wide, ["known_llm", "right"])
    options = {"n_boot": n_boot, "seed": seed, "level": level}
    llm, picture = _numbers(wide, "known_llm"), _numbers(wide, "right")
    entities = wide["entity_id"]
    parts = {}
    if wide["known_vlm"].notna().all():
        arms = np.column_stack([llm, _numbers(wide, "known_vlm"), picture])
        parts = {
            "from_weights": entity_bootstrap(arms, entities, _share_of_first(0, 1), **options),
            "from_picture": entity_bootstrap(arms, entities, _share_of_first(1, 2), **options),
        }
    return Gap(
        definition="degradation",
        model=_one_model(records),
        population=population,
        gap=entity_bootstrap(np.column_stack([llm, picture]), entities, "relative_drop", **options),
        reference=entity_bootstrap(llm, entities, **options),
        picture=entity_bootstrap(picture, entities, **options),
        parts=parts,
    )


def gap_difference(
    records: pd.DataFrame,
    population: Population = "recognised",
    *,
    n_boot: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Gap:
    """Difference of the same VLM's accuracy by name (no picture) and by picture.

    Accuracy is taken per entity, then averaged over entities, so an entity with many questions
    weighs no more than one with few. ``p_value`` is the Wilcoxon signed-rank test over entities.
    """
    wide = _population(cascade(records), population)
    _need(wide, ["known_vlm", "right"])
    name, picture = _numbers(wide, "known_vlm"), _numbers(wide, "right")
    test = wilcoxon_by_entity(name, picture, wide["entity_id"])
    arms = pd.DataFrame({"entity": wide["entity_id"].array, "name": name, "picture": picture})
    means = arms.groupby("entity").mean()

    def over_entities(values: pd.Series) -> Interval:
        interval = entity_bootstrap(values, means.index, n_boot=n_boot, seed=seed, level=level)
        return replace(interval, n_items=len(wide))

    return Gap(
        definition="difference",
        model=_one_model(records),
        population=population,
        gap=over_entities(means["name"] - means["picture"]),
        reference=over_entities(means["name"]),
        picture=over_entities(means["picture"]),
        p_value=test.p_value,
    )


def gap_controlled(
    records: pd.DataFrame,
    *,
    n_boot: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Gap:
    """Relative drop 1 - Visual / Text Only on the controlled slice.

    The slice: entity identified, answered with full information (picture and name), *not*
    answered by picture wording over a blank picture. Text Only is the blank picture with the
    entity named, Visual the entity's picture with the picture wording. The slice implies
    recognition, so there is no choice of population; see :func:`controlled_counts` for its n.
    """
    wide = cascade(records)
    inside = _controlled_steps(wide)[-1][1]
    _need(inside, ["text_only", "right"])
    options = {"n_boot": n_boot, "seed": seed, "level": level}
    text, picture = _numbers(inside, "text_only"), _numbers(inside, "right")
    entities = inside["entity_id"]
    return Gap(
        definition="controlled",
        model=_one_model(records),
        population="recognised",
        gap=entity_bootstrap(
            np.column_stack([text, picture]), entities, "relative_drop", **options
        ),
        reference=entity_bootstrap(text, entities, **options),
        picture=entity_bootstrap(picture, entities, **options),
    )


# --- several models -------------------------------------------------------------------------


def split_models(records: pd.DataFrame, backbone: str | None = None) -> dict[str, pd.DataFrame]:
    """Split the records of several VLMs into one frame per model, in order of appearance.

    ``backbone`` names the model whose ``llm_by_name`` rows all the VLMs share as their text
    backbone; its rows are added to each VLM's and it gets no frame of its own.
    """
    shared = records[(records["model"] == backbone) & (records["condition"] == "llm_by_name")]
    if backbone is not None and shared.empty:
        raise TwohopError(
            f"There are no 'llm_by_name' answers of {backbone!r}; run the backbone first."
        )
    return {
        str(model): pd.concat([records[records["model"] == model], shared], ignore_index=True)
        for model in records["model"].unique()
        if model != backbone
    }


def intersection(records_by_model: Mapping[str, pd.DataFrame]) -> set[tuple[int, str]]:
    """Return the (seed, entity_id) pairs that every model recognises."""
    sets = [_recognised_entities(records) for records in records_by_model.values()]
    return set.intersection(*sets) if sets else set()


def gap_table(
    records_by_model: Mapping[str, pd.DataFrame],
    *,
    n_boot: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Return the three gaps of several models side by side, over each population.

    Populations: ``full`` set, the model's own ``recognised`` slice, and the ``intersection`` of
    recognised entities across the models given (the only one on which models are compared over
    the same entities). The controlled gap needs recognition, so its ``full`` equals its
    ``recognised``, and appears once, as ``recognised``.

    Columns: ``model, definition, population, gap, low, high, reference, picture, from_weights,
    from_picture`` (each of the four with ``_low`` and ``_high``), ``p_value, n_items, n_entities,
    note``. A gap that cannot be had is NaN, and ``note`` says why.
    """
    shared = intersection(records_by_model)
    options = {"n_boot": n_boot, "seed": seed, "level": level}
    rows = []
    for model, records in records_by_model.items():
        common = _restrict(records, shared)
        for definition in DEFINITIONS:
            for population in POPULATIONS:
                if definition == "controlled" and population == "full":
                    continue
                chosen = common if population == "intersection" else records
                within: Population = "full" if population == "full" else "recognised"
                rows.append(_row(chosen, model, definition, population, within, options))
    return pd.DataFrame(rows)


def gap_by_seed(
    records_by_model: Mapping[str, pd.DataFrame],
    *,
    n_boot: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Return :func:`gap_table` for each training seed apart; column ``seed`` comes first."""
    every = pd.concat([records["seed"] for records in records_by_model.values()])
    tables = []
    for trained in sorted(every.unique()):
        part = {
            model: records[records["seed"] == trained]
            for model, records in records_by_model.items()
            if records["seed"].eq(trained).any()
        }
        table = gap_table(part, n_boot=n_boot, seed=seed, level=level)
        table.insert(0, "seed", int(trained))
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


# --- inside ---------------------------------------------------------------------------------


def _row(
    records: pd.DataFrame,
    model: str,
    definition: Definition,
    population: str,
    within: Population,
    options: dict[str, float],
) -> dict[str, object]:
    nothing = Gap(definition, model, population, *[Interval.empty()] * 3)
    if records.empty:
        return nothing.row() | {"note": "no item qualifies"}
    try:
        if definition == "degradation":
            gap = gap_degradation(records, within, **options)
        elif definition == "difference":
            gap = gap_difference(records, within, **options)
        else:
            gap = gap_controlled(records, **options)
    except MissingCondition as error:
        return nothing.row() | {"note": str(error)}
    row = replace(gap, model=model, population=population).row()
    if gap.gap.n_items == 0:
        row["note"] = "no item qualifies"
    elif gap.gap.estimate is None:
        row["note"] = "the reference arm is never right"
    return row


def _one_model(records: pd.DataFrame) -> str:
    own = records.loc[records["condition"] != "llm_by_name", "model"].unique()
    if len(own) == 0:
        own = records["model"].unique()
    if len(own) != 1:
        raise TwohopError(
            f"The cascade and the gap take the records of one model, not of {len(own)}"
            f"{': ' + ', '.join(sorted(own)) if len(own) else ''}; split them first."
        )
    return str(own[0])


def _refuse_repeats(answers: pd.DataFrame, keys: list[str]) -> None:
    repeats = answers[answers.duplicated(keys)]
    if len(repeats):
        row = repeats.iloc[0]
        raise TwohopError(
            f"{len(repeats)} answer(s) are recorded twice, such as {row['condition']} for "
            f"{row['question_id'] or row['entity_id']} (seed {row['seed']}); keep one of each."
        )


def _known(known_by: str) -> str:
    if known_by not in ("vlm", "llm"):
        raise TwohopError(f"A fact is known by 'vlm' or by 'llm', not by {known_by!r}.")
    return f"known_{known_by}"


def _need(wide: pd.DataFrame, columns: list[str], stored_as: list[str] | None = None) -> None:
    """Refuse to go on where an answer that the result depends on was never asked for."""
    for column, stored in zip(columns, stored_as or columns, strict=True):
        absent = int(wide[stored].isna().sum())
        if absent:
            raise MissingCondition(
                f"{absent} of {len(wide)} items of {wide['model'].iloc[0]} have no "
                f"{CASCADE_CONDITIONS[column]!r} answer; run that condition for all items first."
            )


def _pass(wide: pd.DataFrame, column: str, wanted: bool = True) -> pd.DataFrame:
    _need(wide, [column])
    return wide[wide[column].to_numpy(dtype=bool) == wanted]


def _controlled_steps(wide: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    recognised = _pass(wide, "recognised")
    informed = _pass(recognised, "full_information")
    return [
        ("recognised", recognised),
        ("full information", informed),
        ("controlled slice", _pass(informed, "blind", False)),
    ]


def _population(wide: pd.DataFrame, population: str) -> pd.DataFrame:
    if population == "full":
        return wide
    if population == "recognised":
        return _pass(wide, "recognised")
    raise TwohopError(f"A population is 'full' or 'recognised', not {population!r}.")


def _recognised_entities(records: pd.DataFrame) -> set[tuple[int, str]]:
    named = records[(records["condition"] == "identify") & records["correct"].astype(bool)]
    return set(zip(named["seed"].astype(int), named["entity_id"], strict=True))


def _restrict(records: pd.DataFrame, entities: set[tuple[int, str]]) -> pd.DataFrame:
    keys = zip(records["seed"].astype(int), records["entity_id"], strict=True)
    return records[[key in entities for key in keys]]


def _numbers(wide: pd.DataFrame, column: str) -> np.ndarray:
    return wide[column].to_numpy(dtype=float)


def _share_of_first(minuend: int, subtrahend: int) -> MeansStatistic:
    def statistic(means: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return (means[..., minuend] - means[..., subtrahend]) / means[..., 0]

    return statistic


def _interval_columns(interval: Interval, name: str) -> dict[str, float | int | None]:
    return {
        name: interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "n_items": interval.n_items,
        "n_entities": interval.n_entities,
    }


def _count(
    steps: list[tuple[str, pd.DataFrame]], wide: pd.DataFrame, **constant: str
) -> pd.DataFrame:
    sizes = {step: len(rows) for step, rows in steps}
    names = list(sizes)
    rows = []
    for index, (step, inside) in enumerate(steps):
        # Both outcomes split the step before them; they do not follow one another.
        before = "right" if step == "linking failure" else step
        previous = sizes[names[max(0, names.index(before) - 1)]] if index else len(wide)
        rows.append(
            {
                "model": wide["model"].iloc[0] if len(wide) else "",
                **constant,
                "step": step,
                "n_items": len(inside),
                "n_entities": inside["entity_id"].nunique(),
                "share": len(inside) / len(wide) if len(wide) else float("nan"),
                "share_of_previous": len(inside) / previous if previous else float("nan"),
            }
        )
    return pd.DataFrame(rows)

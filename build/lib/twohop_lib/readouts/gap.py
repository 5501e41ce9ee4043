"""The gap between naming an entity and showing it, in its three published definitions.

All accuracies and gaps are fractions, and a positive gap means that the picture arm is worse. They
are computed from the answer records of one model (see :mod:`twohop_lib.readouts.cascade`); records
of several worlds may be pooled: their entities are told apart by ``seed``, and intervals resample
worlds, then entities.

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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import pandas as pd

from twohop_lib.errors import TwohopError
from twohop_lib.readouts.cascade import (
    MissingCondition,
    cascade,
    controlled_steps,
    need,
    one_model,
    passing,
)
from twohop_lib.readouts.shares import share_table
from twohop_lib.stats import ENTITY, Interval, NamedStatistic, entity_bootstrap, wilcoxon_by_entity

Population = Literal["full", "recognised"]
Definition = Literal["degradation", "difference", "controlled"]

DEFINITIONS: tuple[Definition, ...] = ("degradation", "difference", "controlled")
POPULATIONS = ("full", "recognised", "intersection")

_ENTITY = list(ENTITY)


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


# --- accuracy and the three gaps ----------------------------------------------------------------


def accuracy_table(
    records: pd.DataFrame, population: Population = "full", n_boot: int = 2000
) -> pd.DataFrame:
    """Return the accuracy in every condition of one model's records.

    Columns ``model, condition, population, accuracy, low, high, n_items, n_entities``. Under
    ``recognised`` only recognised entities count.
    """
    model = one_model(records)
    if population == "recognised":
        records = _restrict(records, _recognised(records))
    table = share_table(records, "correct", ["condition"], n_boot=n_boot)
    table.insert(0, "model", model)
    table.insert(2, "population", population)
    return table.rename(columns={"value": "accuracy"})


def gap_degradation(
    records: pd.DataFrame, population: Population = "full", n_boot: int = 2000
) -> Gap:
    """Relative degradation of the VLM by picture against its text backbone by name.

    (acc_llm - acc_picture) / acc_llm over items. Where the VLM was also asked by name, ``parts``
    splits it exactly in two: ``from_weights`` = (acc_llm - acc_name) / acc_llm, what the changed
    weights of the language model cost, and ``from_picture`` = (acc_name - acc_picture) / acc_llm.
    Whether Venhoff et al. drop unrecognised entities is not known: give both populations.
    """
    wide = _population(cascade(records), population)
    need(wide, ["known_llm", "right"])
    drop: NamedStatistic = "relative_drop"
    parts = {}
    if wide["known_vlm"].notna().all():
        parts = {
            "from_weights": _over(wide, ["known_llm", "known_vlm", "known_llm"], drop, n_boot),
            "from_picture": _over(wide, ["known_vlm", "right", "known_llm"], drop, n_boot),
        }
    return Gap(
        definition="degradation",
        model=one_model(records),
        population=population,
        gap=_over(wide, ["known_llm", "right"], drop, n_boot),
        reference=_over(wide, ["known_llm"], "mean", n_boot),
        picture=_over(wide, ["right"], "mean", n_boot),
        parts=parts,
    )


def gap_difference(
    records: pd.DataFrame, population: Population = "recognised", n_boot: int = 2000
) -> Gap:
    """Difference of the same VLM's accuracy by name (no picture) and by picture.

    Accuracy is taken per entity, then averaged over entities, so an entity with many questions
    weighs no more than one with few. ``p_value`` is the Wilcoxon signed-rank test over entities.
    """
    wide = _population(cascade(records), population)
    need(wide, ["known_vlm", "right"])
    test = wilcoxon_by_entity(
        wide["known_vlm"].astype(float), wide["right"].astype(float), wide[_ENTITY]
    )
    arms = wide[["known_vlm", "right"]].astype(float)
    means = pd.concat([wide[_ENTITY], arms], axis=1).groupby(_ENTITY).mean().reset_index()

    def over_entities(columns: list[str], statistic: NamedStatistic) -> Interval:
        return replace(_over(means, columns, statistic, n_boot), n_items=len(wide))

    return Gap(
        definition="difference",
        model=one_model(records),
        population=population,
        gap=over_entities(["known_vlm", "right"], "difference"),
        reference=over_entities(["known_vlm"], "mean"),
        picture=over_entities(["right"], "mean"),
        p_value=test.p_value,
    )


def gap_controlled(records: pd.DataFrame, n_boot: int = 2000) -> Gap:
    """Relative drop 1 - Visual / Text Only on the controlled slice.

    The slice: entity identified, answered with full information (picture and name), *not*
    answered by picture wording over a blank picture. Text Only is the blank picture with the
    entity named, Visual the entity's picture with the picture wording. The slice implies
    recognition, so there is no choice of population.
    """
    inside = controlled_steps(cascade(records))["controlled slice"]
    need(inside, ["text_only", "right"])
    return Gap(
        definition="controlled",
        model=one_model(records),
        population="recognised",
        gap=_over(inside, ["text_only", "right"], "relative_drop", n_boot),
        reference=_over(inside, ["text_only"], "mean", n_boot),
        picture=_over(inside, ["right"], "mean", n_boot),
    )


# --- several models -----------------------------------------------------------------------------


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


def intersection(records_by_model: Mapping[str, pd.DataFrame]) -> pd.MultiIndex:
    """Return the entities (``seed, entity_id``) that every model recognises, in sorted order."""
    shared = None
    for records in records_by_model.values():
        own = _recognised(records)
        shared = own if shared is None else shared.intersection(own)
    return pd.MultiIndex.from_arrays([[], []], names=_ENTITY) if shared is None else shared


def gap_table(records_by_model: Mapping[str, pd.DataFrame], n_boot: int = 2000) -> pd.DataFrame:
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
    rows = []
    for model, records in records_by_model.items():
        common = _restrict(records, shared)
        for definition in DEFINITIONS:
            for population in POPULATIONS:
                if definition == "controlled" and population == "full":
                    continue
                chosen = common if population == "intersection" else records
                rows.append(_row(chosen, model, definition, population, n_boot))
    return pd.DataFrame(rows)


def gap_by_seed(records_by_model: Mapping[str, pd.DataFrame], n_boot: int = 2000) -> pd.DataFrame:
    """Return :func:`gap_table` for each world apart; column ``seed`` comes first."""
    every = pd.concat([records["seed"] for records in records_by_model.values()])
    tables = []
    for world in sorted(every.unique()):
        part = {
            model: records[records["seed"] == world]
            for model, records in records_by_model.items()
            if records["seed"].eq(world).any()
        }
        table = gap_table(part, n_boot)
        table.insert(0, "seed", int(world))
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


# --- inside -------------------------------------------------------------------------------------


def _row(
    records: pd.DataFrame, model: str, definition: Definition, population: str, n_boot: int
) -> dict[str, object]:
    nothing = Gap(definition, model, population, *[Interval.empty()] * 3)
    if records.empty:
        return nothing.row() | {"note": "no item qualifies"}
    within: Population = "full" if population == "full" else "recognised"
    try:
        if definition == "degradation":
            gap = gap_degradation(records, within, n_boot)
        elif definition == "difference":
            gap = gap_difference(records, within, n_boot)
        else:
            gap = gap_controlled(records, n_boot)
    except MissingCondition as error:
        return nothing.row() | {"note": str(error)}
    row = replace(gap, model=model, population=population).row()
    if gap.gap.n_items == 0:
        row["note"] = "no item qualifies"
    elif gap.gap.estimate is None:
        row["note"] = "the reference arm is never right"
    return row


def _over(
    wide: pd.DataFrame, columns: Sequence[str], statistic: NamedStatistic, n_boot: int
) -> Interval:
    return entity_bootstrap(
        wide[list(columns)].astype(float),
        wide[_ENTITY],
        statistic,
        worlds=wide["seed"],
        n_boot=n_boot,
    )


def _population(wide: pd.DataFrame, population: str) -> pd.DataFrame:
    if population == "full":
        return wide
    if population == "recognised":
        return passing(wide, "recognised")
    raise TwohopError(f"A population is 'full' or 'recognised', not {population!r}.")


def _recognised(records: pd.DataFrame) -> pd.MultiIndex:
    named = records[(records["condition"] == "identify") & records["correct"].astype(bool)]
    return pd.MultiIndex.from_frame(named[_ENTITY]).unique().sort_values()


def _restrict(records: pd.DataFrame, entities: pd.MultiIndex) -> pd.DataFrame:
    return records[pd.MultiIndex.from_frame(records[_ENTITY]).isin(entities)]

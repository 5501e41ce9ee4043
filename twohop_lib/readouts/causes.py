"""Which cause a gap has: foreign, late or unread; or the name was given instead of an answer.

The rules, written here and nowhere else (:class:`Rules`; thresholds were set on world 0):

1. **none**: of the facts that are known by name, hardly any is missed by picture.
2. **named instead**: most of what is missed is answered with the entity's own name.
3. **unread**: at the recall deadline, most pictures are like their names. What a name is turned
   into its fact by is still ahead, and yet the fact does not come.
4. **late**: they become like their names, but behind the recall deadline.
5. **foreign**: they never do, at no layer and no position.

A model's verdict takes them in this order, from shares over its entities, and is as certain as the
share of its bootstrap draws of entities that give the same one. A missed fact has a verdict of its
own, from its own picture. Whether a picture is like its name is measured by maps that were fitted
on other entities (:mod:`~twohop_lib.readouts.name_likeness`); the recall deadline is that of the
text backbone (:mod:`~twohop_lib.interventions.deadlines`). Nothing that is patched enters the
rules, so that patches can contradict them.

``facts`` have one row a fact that is known by name, of an entity that is recognised: ``model, seed,
entity_id, question_id``, ``missed`` and ``own_name`` (the share of its views on which it is missed,
and on which the entity's name is given instead). ``found`` has one row an entity and layer:
``model, seed, entity_id, layer, found``. ``written`` has one row an entity and layer: is the fact
recalled when the entity's state is written there (``model, seed, entity_id, layer, correct``,
:func:`recall_of`)? Entities of all three are drawn again in an interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from twohop_lib.readouts.cascade import names_itself
from twohop_lib.readouts.graft_gap import controlled
from twohop_lib.readouts.layers import around_half
from twohop_lib.readouts.selection import halves
from twohop_lib.stats import proportion_interval

NONE, NAMED, UNREAD, LATE, FOREIGN = "none", "named instead", "unread", "late", "foreign"
CAUSES = (NONE, FOREIGN, LATE, UNREAD, NAMED)
MODEL = ["model", "seed"]
#: Draws of entities in an interval.
DRAWS = 400


@dataclass(frozen=True)
class Rules:
    """Where the rules draw their lines, as shares.

    ``gap``: of known facts, missed by picture. ``named``: of what is missed, answered with the
    name. ``name_like``: of entities, found by their names.
    """

    gap: float = 0.15
    named: float = 0.5
    name_like: float = 0.5


RULES = Rules()


# --- deadlines --------------------------------------------------------------------------------


def last_layer(shares: pd.Series) -> int:
    """The last layer at which half of what comes at the first one still comes.

    ``shares`` is indexed by the layer that a state is written at.
    """
    last, _ = around_half(shares)
    return int(shares.index.min()) if last is None else last


def recall_of(written: pd.DataFrame, state: int, models: Sequence[tuple[str, int]]) -> pd.DataFrame:
    """What each model's backbone recalls of a state after ``state`` blocks, by layer.

    ``written`` are records of :func:`~twohop_lib.interventions.deadlines.recall_deadline` of one
    backbone a seed; of one seed alone, they count for all. Returns ``model, seed, entity_id, layer,
    correct``.
    """
    own = written[
        written["arm"].eq("entity")
        & written["experiment"].eq("deadline")
        & written["state"].eq(state)
    ]
    own = own[["seed", "entity_id", "layer", "correct"]].astype({"correct": float})
    wanted = pd.DataFrame(models, columns=MODEL)
    if own["seed"].nunique() == 1:
        return wanted.merge(own.drop(columns="seed"), how="cross")
    return wanted.merge(own, on="seed")


def deadlines(written: pd.DataFrame, by: Sequence[str] = MODEL) -> pd.DataFrame:
    """The recall deadline of each state, and the reading deadline, of each backbone.

    ``written`` are records of :mod:`~twohop_lib.interventions.deadlines`. Returns ``*by, which``
    ("state 2" or "own state"), ``at`` (the last layer at which half of what came at the first, or
    of the most that the own state gave, still comes), ``low, high`` (95 %, by entities), ``share``
    (what came then) and ``n_items``.
    """
    entity = written[written["arm"] == "entity"]
    reading = entity["experiment"] == "reading-deadline"
    which = ("state " + entity["state"].astype(int).astype(str)).where(~reading, OWN)
    rows = []
    for key, own in entity.assign(which=which).groupby([*by, "which"], sort=False):
        table = own.pivot_table(index="entity_id", columns="layer", values="correct")
        table = table.astype(float)
        shares = table.mean()
        if key[-1] == OWN:
            table = table.loc[:, table.columns >= shares.idxmax()]
        rng, n = np.random.default_rng(0), len(table)
        drawn = [last_layer(table.iloc[rng.integers(n, size=n)].mean()) for _ in range(DRAWS)]
        low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
        at = last_layer(table.mean())
        rows.append((*key, at, int(low), int(high), float(table.mean().iloc[0]), n))
    return pd.DataFrame(rows, columns=[*by, "which", "at", "low", "high", "share", "n_items"])


#: What a deadline of the run's own state is called.
OWN = "own state"


# --- evidence and verdicts --------------------------------------------------------------------


@dataclass(frozen=True)
class Evidence:
    """What a verdict is made from: shares, the layer of arrival, and the last layer of recall."""

    missed: float
    own_name: float
    in_time: float
    ever: float
    arrives: float
    recall: int

    def verdict(self, rules: Rules = RULES) -> str:
        """The cause, by the rules in their order."""
        if self.missed < rules.gap:
            return NONE
        if self.own_name >= rules.named:
            return NAMED
        if self.in_time >= rules.name_like:
            return UNREAD
        return LATE if self.ever >= rules.name_like else FOREIGN


class _Model:
    """One model's records by entity, so that entities can be drawn again."""

    def __init__(self, facts: pd.DataFrame, found: pd.DataFrame, written: pd.DataFrame) -> None:
        table = found.pivot_table(index="entity_id", columns="layer", values="found")
        self.layers = table.columns.to_numpy()
        by = facts.groupby("entity_id")
        sums = pd.DataFrame(
            {"n": by.size(), "missed": by["missed"].sum(), "own": by["own_name"].sum()}
        )
        self.ids = sums.index.union(table.index)
        self.sums = sums.reindex(self.ids).fillna(0.0).to_numpy(float)
        self.found = table.reindex(self.ids).to_numpy(float)
        self.written = written.pivot_table(index="entity_id", columns="layer", values="correct")

    def drawn(self, rng: np.random.Generator) -> Evidence:
        """The evidence of entities drawn again."""
        n, m = len(self.ids), len(self.written)
        return self.evidence(
            rng.multinomial(n, np.full(n, 1 / n)).astype(float),
            rng.multinomial(m, np.full(m, 1 / m)).astype(float),
        )

    def evidence(
        self, times: NDArray[np.float64], written: NDArray[np.float64] | None = None
    ) -> Evidence:
        """The evidence when entity i counts ``times[i]`` times, and in the backbone ``written[i]``.

        ``times`` ``[entity]``, ``written`` ``[entity of the backbone's records]``.
        """
        weights = np.ones(len(self.written)) if written is None else written
        recalled = pd.Series(weights @ self.written / weights.sum(), self.written.columns)
        recall = last_layer(recalled)
        n, missed, own = times @ self.sums
        shares = np.nansum(self.found * times[:, None], axis=0)
        shares = shares / np.maximum((~np.isnan(self.found) * times[:, None]).sum(axis=0), 1)
        passed = self.layers[shares >= RULES.name_like]
        before = shares[self.layers <= recall]
        return Evidence(
            missed=missed / n if n else np.nan,
            own_name=own / missed if missed else 0.0,
            in_time=float(before.max(initial=0.0)),
            ever=float(shares.max(initial=0.0)),
            arrives=float(passed[0]) if len(passed) else np.nan,
            recall=recall,
        )


def model_verdicts(
    facts: pd.DataFrame,
    found: pd.DataFrame,
    written: pd.DataFrame,
    rules: Rules = RULES,
    draws: int = DRAWS,
) -> pd.DataFrame:
    """The verdict on each model of each seed, with what it is made from.

    Returns ``model, seed, verdict, certain`` (the share of draws of entities that give the same
    verdict), ``otherwise`` (what most of the other draws give, "" if all give the same), the
    columns of :class:`Evidence`, and ``n_facts, n_entities``. A model with no fact, no likeness or
    no deadline is left out.
    """
    rng, rows = np.random.default_rng(0), []
    for key, own in facts.groupby(MODEL, sort=False):
        seen, limit = _of(found, key), _of(written, key)
        if not len(seen) or not len(limit):
            continue
        model = _Model(own, seen, limit)
        evidence = model.evidence(np.ones(len(model.ids)))
        verdict = evidence.verdict(rules)
        drawn = pd.Series([model.drawn(rng).verdict(rules) for _ in range(draws)])
        others = drawn[drawn != verdict].mode()
        rows.append(
            dict(zip(MODEL, key, strict=True))
            | {"verdict": verdict, "certain": (drawn == verdict).mean()}
            | {"otherwise": others.iloc[0] if len(others) else ""}
            | {k: getattr(evidence, k) for k in Evidence.__dataclass_fields__}
            | {"n_facts": len(own), "n_entities": own["entity_id"].nunique()}
        )
    return pd.DataFrame(rows)


def item_arrivals(found: pd.DataFrame) -> pd.DataFrame:
    """The layer at which each picture becomes like its name: ``model, seed, entity_id, arrives``.

    The first at which its name is found and is found at the next one too, so that one lucky hit
    does not count; NaN if there is none.
    """
    rows = []
    for key, own in found.groupby([*MODEL, "entity_id"], sort=False):
        own = own.sort_values("layer")
        hit = own["found"].to_numpy() > 0
        stays = hit & np.append(hit[1:], hit[-1:])
        rows.append((*key, own["layer"].to_numpy()[stays][0] if stays.any() else np.nan))
    return pd.DataFrame(rows, columns=[*MODEL, "entity_id", "arrives"])


def item_verdicts(facts: pd.DataFrame, found: pd.DataFrame, written: pd.DataFrame) -> pd.DataFrame:
    """The verdict on each fact, from its own picture: ``facts`` with ``arrives, recall, verdict``.

    A fact that comes on most views has none to explain ("none"). Facts of entities whose likeness
    was not measured are left out.
    """
    items = facts.merge(item_arrivals(found), on=[*MODEL, "entity_id"])
    curves = written.groupby([*MODEL, "layer"])["correct"].mean()
    recall = curves.groupby(MODEL).apply(lambda own: last_layer(own.droplevel(MODEL)))
    items = items.merge(recall.rename("recall").reset_index(), on=MODEL)
    in_time = items["arrives"] <= items["recall"]
    cause = np.select(
        [items["missed"] < 0.5, items["own_name"] >= 0.5, in_time, items["arrives"].notna()],
        [NONE, NAMED, UNREAD, LATE],
        FOREIGN,
    )
    return items.assign(verdict=cause)


def _of(frame: pd.DataFrame, key: tuple) -> pd.DataFrame:
    return frame[(frame["model"] == key[0]) & (frame["seed"] == key[1])]


# --- against what was planted -----------------------------------------------------------------


def confusion(verdicts: pd.DataFrame, planted: Mapping[str, str]) -> pd.DataFrame:
    """How often each planted cause is found to be which: ``planted, found, n, of, low, high``.

    ``planted`` says a model's cause; models without one are left out. Intervals are Wilson's.
    """
    known = verdicts[verdicts["model"].isin(planted)]
    known = known.assign(planted=known["model"].map(planted))
    rows = []
    for cause in CAUSES:
        own = known[known["planted"] == cause]
        for found in CAUSES if len(own) else ():
            n = int((own["verdict"] == found).sum())
            inside = proportion_interval(n, len(own))
            rows.append((cause, found, n, len(own), inside.low, inside.high))
    return pd.DataFrame(rows, columns=["planted", "found", "n", "of", "low", "high"])


# --- a prediction that could fail -------------------------------------------------------------

#: Predictors of a fact by picture, from when its picture becomes like its name.
PREDICTORS = ("margin", "in time")


def margins(items: pd.DataFrame) -> pd.DataFrame:
    """Add ``margin`` (layers left to the recall deadline on arrival) and ``in time`` (0 or 1).

    ``items`` as of :func:`item_verdicts`. A picture that never becomes like its name counts as
    arriving one layer behind the last arrival of all.
    """
    never = items["arrives"].max() + 1
    margin = items["recall"] - items["arrives"].fillna(never)
    return items.assign(**{"margin": margin, "in time": (margin >= 0).astype(float)})


def left_out(items: pd.DataFrame) -> pd.DataFrame:
    """How well facts of each recipe are predicted by what was fitted on all other recipes.

    ``items`` as of :func:`margins`, ``come`` = on most views. Returns, for each recipe (model)
    and predictor, ``auroc`` within the recipe (.5 is chance; NaN where all facts come, or none),
    ``brier`` (mean squared error of the predicted share), ``measured, predicted`` shares and
    ``n``. The predictor "base rate" knows the other recipes' share alone.
    """
    items = items.assign(come=(items["missed"] < 0.5).astype(int))
    rows = []
    for recipe, own in items.groupby("model", sort=False):
        others = items[items["model"] != recipe]
        for predictor in (*PREDICTORS, "base rate"):
            guessed = _guessed(others, own, predictor)
            both = 0 < own["come"].mean() < 1
            rows.append(
                {
                    "model": recipe,
                    "predictor": predictor,
                    "auroc": roc_auc_score(own["come"], guessed) if both else np.nan,
                    "brier": float(((guessed - own["come"]) ** 2).mean()),
                    "measured": own["come"].mean(),
                    "predicted": guessed.mean(),
                    "n": len(own),
                }
            )
    return pd.DataFrame(rows)


def _guessed(others: pd.DataFrame, own: pd.DataFrame, predictor: str) -> NDArray[np.float64]:
    if predictor == "base rate" or others["come"].nunique() < 2:
        return np.full(len(own), others["come"].mean())
    fitted = LogisticRegression().fit(others[[predictor]], others["come"])
    return fitted.predict_proba(own[[predictor]])[:, 1]


# --- from records -----------------------------------------------------------------------------


def facts_of(answers: pd.DataFrame, chosen_on: str, measured_on: Sequence[str]) -> pd.DataFrame:
    """The facts of answer records by view: known by name, of entities named on ``chosen_on``.

    ``answers`` have ``view`` and ``says_name``; questions that need no recall are no facts.
    """
    facts = answers[answers["question_id"].ne("") & ~answers["relation"].isin(NO_RECALL)]
    named = answers[answers["condition"].eq("identify") & answers["view"].eq(chosen_on)]
    shown = facts[facts["condition"].eq("by_picture") & facts["view"].isin(measured_on)]
    found = _over_views(shown)
    by = [*MODEL, "entity_id", "question_id"]
    known = facts[facts["condition"].eq("by_name") & facts["correct"].astype(bool)]
    found = found.merge(known[by].drop_duplicates(), on=by)
    able = named.loc[named["correct"].astype(bool), [*MODEL, "entity_id"]].drop_duplicates()
    return found.merge(able, on=[*MODEL, "entity_id"])


def _over_views(shown: pd.DataFrame) -> pd.DataFrame:
    """Of each fact that was shown, on which share of its views it is missed, and named instead."""
    missed = ~shown["correct"].astype(bool)
    told = shown.assign(missed=missed, own_name=shown["says_name"].astype(bool) & missed)
    by = [*MODEL, "entity_id", "question_id"]
    return told.groupby(by, sort=False)[["missed", "own_name"]].mean().reset_index()


def of_organisms(
    answers: pd.DataFrame, recall: pd.DataFrame, state: int
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Facts, likeness and recall (as above) from the records of ``twohop organism study``.

    There facts are asked on the drawing that houses are named from, and likeness is that of the
    picture's last position.
    """
    seen = answers[answers["model"] != "backbone"]
    said = names_itself(seen, seen)
    facts = facts_of(seen.assign(view="drawn", says_name=said), "drawn", ["drawn"])
    found = recall[recall["experiment"] == "name-likeness"].astype({"found": float, "layer": int})
    models = list(found[MODEL].drop_duplicates().itertuples(index=False, name=None))
    deadline = recall[recall["experiment"] == "deadline"]
    written = [
        recall_of(deadline[deadline["seed"] == seed], state, [m for m in models if m[1] == seed])
        for seed in dict.fromkeys(seed for _, seed in models)
    ]
    return facts, found, pd.concat(written, ignore_index=True)


def of_views(
    answers: pd.DataFrame, likeness: pd.DataFrame, inside: pd.DataFrame, state: int
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The same from the records of ``twohop organism study --causes``.

    Entities are chosen on the first view and measured on the second and the third.
    """
    found = likeness[~likeness["shuffled"].astype(bool)]
    models = list(found[MODEL].drop_duplicates().itertuples(index=False, name=None))
    facts = facts_of(answers, "first", ["second", "third"])
    return facts, found, recall_of(inside, state, models)


def of_grafts(
    answers: pd.DataFrame, likeness: pd.DataFrame, internals: pd.DataFrame, state: int
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The same from the records of ``twohop graft study``, of whatever recipes and seeds these are.

    In the chat format; facts are those that a blank picture does not give. Likeness is without a
    fitted map, at the best position (:func:`found_at_best_position`).
    """
    asked = controlled(answers[answers["format"] == "chat"])
    facts = _over_views(asked[asked["condition"] == "by_picture"])
    found = found_at_best_position(likeness[likeness["map"] == "none"])
    models = list(found[MODEL].drop_duplicates().itertuples(index=False, name=None))
    return facts, found, recall_of(internals[internals["task"] == "fact"], state, models)


#: Relations that are read off the picture.
NO_RECALL = ("border", "colours")


def controls_of(answers: pd.DataFrame, measured_on: Sequence[str]) -> pd.DataFrame:
    """Questions about the picture that need no recall: ``model, seed, right, says_name, n_items``.

    Of all entities, on the views that facts are measured on.
    """
    asked = answers[
        answers["relation"].isin(NO_RECALL)
        & answers["condition"].eq("by_picture")
        & answers["view"].isin(measured_on)
    ]
    by = asked.groupby(MODEL, sort=False)
    return by.agg(
        right=("correct", "mean"), says_name=("says_name", "mean"), n_items=("correct", "size")
    ).reset_index()


def found_at_best_position(likeness: pd.DataFrame) -> pd.DataFrame:
    """Name-likeness at the position that is best for *other* entities: ``…, layer, found``.

    ``likeness`` has a row an entity, ``position`` and layer; at each layer, each half of the
    entities is read at the position at which most names of the other half are found.
    """
    frames = []
    for _, own in likeness.groupby(MODEL, sort=False):
        entities = own["entity_id"].unique()
        first, second = (set(entities[i]) for i in halves(len(entities)))
        for fit, test in ((first, second), (second, first)):
            shares = own[own["entity_id"].isin(fit)].groupby(["layer", "position"])["found"].mean()
            best = shares.groupby("layer").idxmax().tolist()
            at = pd.MultiIndex.from_frame(own[["layer", "position"]]).isin(best)
            frames.append(own[own["entity_id"].isin(test) & at])
    return pd.concat(frames, ignore_index=True).astype({"found": float})

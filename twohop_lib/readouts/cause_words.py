"""How a page tells of causes: tables, titles and sentences about verdicts and deadlines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from twohop_lib.readouts import causes
from twohop_lib.readouts.captions import NOT_MEASURED, counted, listed, n_range, percent
from twohop_lib.readouts.causes import CAUSES, MODEL, RULES
from twohop_lib.readouts.layers import first_at_least
from twohop_lib.readouts.tables import counted_table, share_words
from twohop_lib.stats import proportion_interval

#: Below this share of equal draws a verdict is told with the other one that it might be.
CERTAIN = 0.95


def told(row: pd.Series) -> str:
    """A verdict with how sure it is: ``late``, or ``unread or late (52 % of draws)``."""
    if row["certain"] >= CERTAIN:
        return str(row["verdict"])
    return f"{row['verdict']} or {row['otherwise']} ({percent(row['certain'])} % of draws)"


def verdict_table(verdicts: pd.DataFrame, planted: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Verdicts with what they are made from, to read; one row a model and seed.

    With ``planted``, what each model's cause was made to be.
    """
    rows = verdicts.sort_values(MODEL, key=_in_order(verdicts), kind="stable")
    table = pd.DataFrame(
        {
            "model": rows["model"],
            "seed": rows["seed"],
            "verdict": rows.apply(told, axis=1),
            "facts missed": _shares(rows, "missed", "n_facts"),
            "of these, own name": _shares(rows, "own_name", "n_facts"),
            "like a name in time": _shares(rows, "in_time", "n_entities"),
            "ever": _shares(rows, "ever", "n_entities"),
            "last layer of recall": rows["recall"].astype(str),
            "n": [f"{r.n_facts} facts, {r.n_entities}" for r in rows.itertuples()],
        }
    )
    if planted is not None:
        table.insert(2, "planted", rows["model"].map(planted))
    return table.reset_index(drop=True)


def _in_order(verdicts: pd.DataFrame):
    order = {name: i for i, name in enumerate(dict.fromkeys(verdicts["model"]))}
    return lambda column: column.map(order) if column.name == "model" else column


def _shares(rows: pd.DataFrame, share: str, n: str) -> list[str]:
    return [counted(s, k) for s, k in zip(rows[share], rows[n], strict=True)]


def by_recipe(verdicts: pd.DataFrame) -> str:
    """A sentence of each recipe's verdicts: ``Caption: named instead (2), late (1); …``.

    Seeds in brackets. A verdict under :data:`CERTAIN` counts as undecided between two.
    """
    parts = []
    for model, own in verdicts.groupby("model", sort=False):
        sure = own["certain"] >= CERTAIN
        open_ = "undecided: " + own[["verdict", "otherwise"]].apply(sorted, axis=1).str.join(" or ")
        counts = own["verdict"].where(sure, open_).value_counts()
        words = ", ".join(f"{verdict} ({n})" for verdict, n in counts.items())
        only = f"{counts.index[0]} ({len(own)} of {len(own)})"
        parts.append(f"{model}: {only if len(counts) == 1 else words}")
    told_of = "; ".join(parts)
    return told_of[:1].upper() + told_of[1:]


def found_right(verdicts: pd.DataFrame, planted: Mapping[str, str]) -> str:
    """How many planted causes were found: ``11 of 12 models (92 %, 95 % interval 65 to 99 %)``."""
    right, n = _found(verdicts, planted)
    inside = proportion_interval(right, n)
    return (
        f"{right} of {n} models ({percent(right / n)} %, 95 % interval "
        f"{percent(inside.low)} to {percent(inside.high)} %)"
    )


def confused(verdicts: pd.DataFrame, planted: Mapping[str, str]) -> str:
    """The end of a sentence: which models were found to be something else, and how surely."""
    own = verdicts[verdicts["model"].isin(planted)]
    wrong = own[own["verdict"] != own["model"].map(planted)]
    if wrong.empty:
        return "none was taken for another"
    return "; ".join(
        f"{row['model']} of world {row['seed']} ({planted[row['model']]}) is found {told(row)}"
        for _, row in wrong.iterrows()
    )


def confusion_title(verdicts: pd.DataFrame, planted: Mapping[str, str]) -> str:
    """A title: how many planted causes the instrument finds."""
    right, n = _found(verdicts, planted)
    return f"The instrument finds the planted cause of {right} of {n} models"


def _found(verdicts: pd.DataFrame, planted: Mapping[str, str]) -> tuple[int, int]:
    """How many of the models with a planted cause it was found in, and how many these are."""
    own = verdicts[verdicts["model"].isin(planted)]
    return int((own["verdict"] == own["model"].map(planted)).sum()), len(own)


def likeness_title(found: pd.DataFrame) -> str:
    """A title: which models are never like a name, and from which layers on the others are.

    ``found`` as :mod:`.causes` has it.
    """
    shares = found.groupby(["model", "layer"], sort=False)["found"].mean().unstack("model")
    at = {model: first_at_least(shares[model].dropna(), RULES.name_like) for model in shares}
    never = [model for model, layer in at.items() if layer is None]
    layers = n_range(layer for layer in at.values() if layer is not None)
    if not never:
        return f"All are like a name from layer {layers} on"
    told = f"{listed(never)} {'is' if len(never) == 1 else 'are'} never like a name"
    return told if len(never) == len(at) else f"{told}, the others from layer {layers} on"


def item_table(items: pd.DataFrame, planted: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The verdicts on missed facts, model by model, as texts.

    ``items`` as of :func:`~twohop_lib.readouts.causes.item_verdicts`.
    """
    rows = {}
    for model, own in items.groupby("model", sort=False):
        missed = own[own["verdict"] != causes.NONE]
        cells = {} if planted is None else {"planted": planted.get(model, NOT_MEASURED)}
        cells |= {
            cause: counted((missed["verdict"] == cause).mean(), len(missed))
            for cause in CAUSES
            if cause != causes.NONE
        }
        rows[model] = cells | {"missed facts (n)": str(len(missed))}
    return pd.DataFrame.from_dict(rows, orient="index")


def other_rules(
    evidence: tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame], planted: Mapping[str, str]
) -> pd.DataFrame:
    """Do verdicts hang on where the lines are drawn? Planted causes found under other rules."""
    changed = {
        "as set": RULES,
        "gap from 10 %": replace(RULES, gap=0.10),
        "gap from 20 %": replace(RULES, gap=0.20),
        "name-like from 40 %": replace(RULES, name_like=0.4),
        "name-like from 60 %": replace(RULES, name_like=0.6),
        "own name from 40 %": replace(RULES, named=0.4),
        "own name from 60 %": replace(RULES, named=0.6),
    }
    rows = {}
    for name, rules in changed.items():
        verdicts = causes.model_verdicts(*evidence, rules=rules, draws=1)
        rows[name] = {"planted cause found": found_right(verdicts, planted)}
    return pd.DataFrame.from_dict(rows, orient="index")


# --- deadlines --------------------------------------------------------------------------------


def deadline_table(found: pd.DataFrame) -> pd.DataFrame:
    """Deadlines of each backbone, to read (:func:`~twohop_lib.readouts.causes.deadlines`)."""
    states = dict.fromkeys(found["which"])
    cells = {(r.model, r.seed, r.which): f"{r.at} [{r.low}, {r.high}]" for r in found.itertuples()}
    rows = [
        {"backbone": model, "seed": seed}
        | {which: cells.get((model, seed, which), NOT_MEASURED) for which in states}
        | {"n": n_range(own["n_items"])}
        for (model, seed), own in found.groupby(MODEL, sort=False)
    ]
    return pd.DataFrame(rows)


#: What a line of the figure of deadlines is called, by backbone and state.
BACKBONE_WORDS = {"backbone": "read from the start", "enriched-3-read-6": "read from 6"}
STALE = 1


def deadline_lines(inside: pd.DataFrame) -> pd.DataFrame:
    """Records of the state after one block and of the own state, with ``line``."""
    entity = inside[inside["arm"] == "entity"]
    own = entity["experiment"] == "reading-deadline"
    fixed = (entity["experiment"] == "deadline") & (entity["state"] == STALE)
    which = own.map({True: "own state", False: f"state after {STALE} block"})
    told_as = entity["model"].map(BACKBONE_WORDS) + ": " + which
    return entity.assign(line=told_as, model="backbone")[own | fixed]


def _curve(inside: pd.DataFrame, model: str, experiment: str, state: int | None) -> pd.Series:
    own = inside[
        inside["model"].eq(model) & inside["experiment"].eq(experiment) & inside["arm"].eq("entity")
    ]
    own = own if state is None else own[own["state"] == state]
    return own.groupby("layer")["correct"].mean()


def deadline_values(inside: pd.DataFrame, found: pd.DataFrame) -> dict[str, str]:
    """Values to glue: the reading deadline before and after, and what states are worth there.

    There: at the last layer at which the second backbone still reads. ``found`` are the deadlines
    of the records ``inside`` (:func:`~twohop_lib.readouts.causes.deadlines`).
    """
    before, after = BACKBONE_WORDS
    own = found[found["which"] == causes.OWN].set_index("model")
    last = int(own.loc[after, "at"])
    n = int(own.loc[after, "n_items"])
    stale = _curve(inside, after, "deadline", STALE)[last]
    fresh = _curve(inside, after, "reading-deadline", None)[last]
    return {
        "read_before": _layer(own.loc[before]),
        "read_after": _layer(own.loc[after]),
        "stale": counted(stale, n),
        "fresh": counted(fresh, n),
    }


def _layer(row: pd.Series) -> str:
    return f"{row['at']} [{row['low']}, {row['high']}]"


def deadline_title(found: pd.DataFrame) -> str:
    """A title: where the reading deadline goes when names are read later."""
    own = found[found["which"] == causes.OWN].set_index("model")["at"]
    before, after = (own[name] for name in BACKBONE_WORDS)
    return f"Made to read later, a backbone reads up to layer {after} instead of {before}"


def seeds_words(verdicts: pd.DataFrame) -> str:
    """How many seeds verdicts are of: ``in one seed each``, ``in 3 seeds each``."""
    n = verdicts.groupby("model")["seed"].nunique()
    each = f"{n_range(n)} seeds" if n.max() > 1 else "one seed"
    return f"in {each} each"


# --- transplants ------------------------------------------------------------------------------


def transplant_table(inside: pd.DataFrame, recall: int) -> pd.DataFrame:
    """What the picture's state gives where a name would stand, as texts; one row a model.

    ``inside`` are records of :func:`~twohop_lib.interventions.transplant.transplant`; ``recall`` is
    the last layer before the recall deadline. Of layers, the best on one half of the entities is
    told of the other half.
    """
    rows = {}
    own = inside[inside["experiment"] == "transplant"]
    for model, part in own.groupby("model", sort=False):
        entity = part[part["arm"] == "entity"]
        stays = entity[entity["source"] == entity["layer"]]
        kinds = {
            "in time, where it stands": stays[stays["layer"] <= recall],
            "later, where it stands": stays[stays["layer"] > recall],
            "from later layers, written early": entity[
                (entity["source"] > recall) & (entity["source"] > entity["layer"])
            ],
        }
        wrong = part[part["arm"] == "wrong entity"]
        rows[model] = {what: _best(frame) for what, frame in kinds.items()} | {
            "wrong picture: the right fact": counted(wrong["correct"].mean(), len(wrong)),
            "n": str(entity["question_id"].nunique()),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def transplant_values(table: pd.DataFrame) -> dict[str, str]:
    """Values to glue of :func:`transplant_table`: ``cross_stands``, ``cross_early`` and so on.

    What the state gives where it stands (behind the recall deadline; ``_in_time`` before it) and
    written early, without the layers.
    """
    names = dict(zip(table.columns, ("in_time", "stands", "early"), strict=False))
    return {
        f"{model}_{short}": table.loc[model, column].partition(" (")[0]
        for model in table.index
        for column, short in names.items()
    }


def _best(frame: pd.DataFrame) -> str:
    """The share at the place that is best on every second entity, of the others."""
    ids = list(dict.fromkeys(frame["entity_id"]))
    place = ["source", "layer"]
    chosen = frame[frame["entity_id"].isin(ids[::2])].groupby(place)["correct"].mean().idxmax()
    rest = frame[frame["entity_id"].isin(ids[1::2])]
    at = rest[(rest["source"] == chosen[0]) & (rest["layer"] == chosen[1])]
    return f"{counted(at['correct'].mean(), len(at))} ({int(chosen[0])} → {int(chosen[1])})"


def back_patch_table(inside: pd.DataFrame) -> pd.DataFrame:
    """What back-patching brings back of the facts that are missed without it, as texts.

    The pair of layers is chosen on half of the missed facts and told of the other half.
    """
    rows = {}
    own = inside[inside["experiment"] == "back-patch"]
    for model, part in own.groupby("model", sort=False):
        alone = part["source"] == part["layer"]
        missed = part.loc[alone & ~part["correct"].astype(bool), "question_id"]
        tried = part[part["question_id"].isin(missed) & ~alone]
        few = missed.nunique() < 4
        rows[model] = {
            "brought back (from → to)": NOT_MEASURED if few else _best(tried),
            "missed facts (n)": str(missed.nunique()),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def window_table(inside: pd.DataFrame) -> pd.DataFrame:
    """Facts right after MLP patches over the whole picture, by window and height, as texts.

    ``inside`` are records of :func:`~twohop_lib.interventions.mlp_patch.mlp_patch` with its sliding
    patches: what the backbone's MLPs add at the name, block by block, or written further up.
    """
    own = inside[inside["experiment"] == "mlp-patch"]
    own = own.astype(dict.fromkeys(("start", "stop", "layer"), "Int64"))
    window = own["start"].astype(str) + "–" + (own["stop"] - 1).astype(str)
    kind = pd.Series(
        np.select(
            [
                own["method"].eq("mlp"),
                own["method"].eq("mlp later"),
                own["method"].eq("residual stream"),
            ],
            [
                "blocks " + window,
                "blocks " + window + " at " + own["layer"].astype(str),
                "stream of " + own["layer"].astype(str),
            ],
            own["method"],
        ),
        own.index,
    )
    streams = kind.str.startswith("stream") | kind.eq("wrong residual")
    rows = own.assign(patch=kind)[~streams]
    table = counted_table(rows, "model", "patch", words=share_words(0))
    first = ["unpatched", *(c for c in table.columns if c != "unpatched")]
    return table[first].assign(
        n=[str(n) for n in rows.groupby("model")["question_id"].nunique()[table.index]]
    )


def conflict_table(answers: pd.DataFrame) -> pd.DataFrame:
    """Whose fact is told, as texts: picture and name agree, and the picture is another's."""
    asked = answers[answers["condition"] == "full_information"]
    rows = {}
    for model, own in asked.groupby("model", sort=False):
        other = own["view"] == "other"
        with_own, with_other = own[~other], own[other]
        rows[model] = {
            "own picture: the fact": counted(with_own["correct"].mean(), len(with_own)),
            "another's: the name's fact": counted(with_other["correct"].mean(), len(with_other)),
            "another's: the picture's": counted(with_other["says_donor"].mean(), len(with_other)),
            "n": f"{len(with_own)}, {len(with_other)}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def control_table(answers: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """Questions about the picture that need no recall: right, and answered with the name."""
    found = causes.controls_of(answers, ["second"]).set_index("model")
    rows = {
        model: {
            "border: right": counted(found.loc[model, "right"], found.loc[model, "n_items"]),
            "border: own name": counted(found.loc[model, "says_name"], found.loc[model, "n_items"]),
            "n": str(found.loc[model, "n_items"]),
        }
        for model in models
        if model in found.index
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def fresh_table(
    evidence: tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame],
    likeness: pd.DataFrame,
    planted: Mapping[str, str],
) -> pd.DataFrame:
    """Verdicts on fresh views, to read, with what is missed on all views and a shuffled control."""
    facts = evidence[0]
    verdicts = causes.model_verdicts(*evidence)
    table = verdict_table(verdicts, planted).set_index("model").drop(columns="seed")
    always = facts.assign(always=facts["missed"] == 1).groupby("model")["always"]
    mixed = likeness[likeness["shuffled"].astype(bool)].groupby(["model", "layer"])["found"]
    chance, n = mixed.mean().groupby("model").max(), mixed.size().groupby("model").max()
    both = pd.Series({m: counted(x.mean(), len(x)) for m, x in always})
    table.insert(3, "missed on both", both)
    table["names dealt out, ever"] = pd.Series({m: counted(chance[m], n[m]) for m in chance.index})
    return table.rename_axis(None)


# --- the prediction ---------------------------------------------------------------------------


def prediction_table(left_out: pd.DataFrame) -> pd.DataFrame:
    """How well each recipe's facts are foretold by the others, as texts."""
    rows = []
    for model, own in left_out.groupby("model", sort=False):
        cells: dict[str, str] = {"recipe": str(model)}
        for r in own.itertuples():
            if r.predictor in causes.PREDICTORS:
                scored = NOT_MEASURED if pd.isna(r.auroc) else f"{r.auroc:.2f}"
                cells[f"AUROC, {r.predictor}"] = scored
        cells |= {f"Brier, {r.predictor}": f"{r.brier:.2f}" for r in own.itertuples()}
        rows.append(cells | {"n": str(own["n"].iloc[0])})
    return pd.DataFrame(rows)


def foretold_title(left_out: pd.DataFrame, predictor: str = "margin") -> str:
    """A title: how far recipes' shares of facts are from what the other recipes foretell."""
    own = left_out[left_out["predictor"] == predictor]
    off = (own["predicted"] - own["measured"]).abs()
    return (
        f"Arrival foretells a recipe's share of facts within {percent(off.mean())} points on "
        f"average, {percent(off.max())} at most"
    )


def within(left_out: pd.DataFrame, predictor: str = "margin") -> str:
    """The AUROC within recipes: mean and range, ``0.49 (0.40 to 0.58, 6 recipes)``."""
    own = left_out.loc[left_out["predictor"] == predictor, "auroc"].dropna()
    return f"{own.mean():.2f} ({own.min():.2f} to {own.max():.2f}, {len(own)} recipes)"


def brier(left_out: pd.DataFrame) -> str:
    """Mean squared errors over recipes: ``0.14 (margin), 0.17 (in time) and 0.31 (base rate)``."""
    means = left_out.groupby("predictor", sort=False)["brier"].mean()
    return listed([f"{value:.2f} ({name})" for name, value in means.items()])


def held_out(verdicts: pd.DataFrame, dev: Sequence[int]) -> pd.DataFrame:
    """The verdicts on worlds that were used for no choice."""
    return verdicts[~verdicts["seed"].isin(dev)].reset_index(drop=True)

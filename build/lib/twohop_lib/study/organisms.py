"""The study: train every organism of every seed, measure all on the test split, keep records."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from twohop_lib import records
from twohop_lib.benchmark import Benchmark, sources
from twohop_lib.interventions.cross_patch import cross_patch
from twohop_lib.interventions.deadlines import recall_deadline
from twohop_lib.interventions.freeze import freeze, freeze_ends
from twohop_lib.interventions.knockout import knockout
from twohop_lib.interventions.mlp_patch import mlp_patch
from twohop_lib.interventions.pairs import By, one_per_entity, pairs_for
from twohop_lib.interventions.splice import Engine
from twohop_lib.models.blocks import UnsupportedSite, early_blocks
from twohop_lib.models.loading import load_llm, load_vlm
from twohop_lib.organisms import FURTHER, NAMES, cards
from twohop_lib.organisms.grow import train_organism
from twohop_lib.organisms.recipes import CROSS_RECIPES, RECIPES, SEEDS
from twohop_lib.readouts import gap, states
from twohop_lib.readouts.name_likeness import names_found
from twohop_lib.runs.evaluate import CONDITIONS, evaluate

SPLIT = "test"
#: Test houses that the sweeps are run on, and donors for each.
SWEPT, DONORS = 48, 2
HELD_OUT_WORDINGS = ("held-out-1", "held-out-2")
COMMAND = "twohop organism study"
#: What is kept of the sweeps' records, and of those of recall.
SWEEP_COLUMNS = [
    *("model", "seed", "experiment", "intervention", "task", "by"),
    *("entity_id", "donor_id", "question_id", "layer", "until", "edge", "mode", "start", "stop"),
    *("says", "calibrated", "answer", "correct", "unchanged", "computation"),
]
RECALL_COLUMNS = [
    *("model", "seed", "experiment", "intervention", "entity_id", "donor_id", "question_id"),
    *("method", "arm", "state", "layer", "answer", "correct", "follows", "found"),
]


def run_study(cache: Path, out: Path, seeds: tuple[int, ...] = SEEDS) -> None:
    """Train (where needed) and measure everything, then write the records.

    ``answers.parquet`` holds the answer records, ``training.parquet`` the logged losses,
    ``sweeps.parquet`` the sweeps of the organisms that ship, ``recall.parquet`` recall in all.
    """
    made: dict[str, list[pd.DataFrame]] = {}
    for seed, name in tqdm([(s, n) for s in seeds for n in (*NAMES, *FURTHER)], desc="study"):
        folder = cache / f"seed{seed}"
        if not (folder / name / cards.WEIGHTS).exists():
            train_organism(name, seed, folder)
        with tempfile.TemporaryDirectory() as temporary:
            benchmark = sources.build("heraldry", Path(temporary) / "heraldry", seed)
            rows = measure(name, seed, folder, benchmark)
            made.setdefault("answers", []).append(rows)
            if name in NAMES:
                made.setdefault("sweeps", []).append(sweeps(name, seed, folder, benchmark))
            made.setdefault("recall", []).append(recall(name, seed, folder, benchmark))
        cards.write_card(folder / name, make_card(name, seed, folder, rows))
        log = pd.DataFrame(cards.training_rows(folder / name))
        made.setdefault("training", []).append(log.assign(model=name, seed=seed))
    about = {"command": COMMAND, "versions": records.versions()}
    for file, frames in made.items():
        write = records.write if file == "answers" else records.write_frame
        write(pd.concat(frames, ignore_index=True), out / f"{file}.parquet", about)


def measure(name: str, seed: int, folder: Path, benchmark: Benchmark) -> pd.DataFrame:
    """Answer records of one organism on the test split.

    Every condition in the standard wording; identify, by name and by picture in the held-out
    wordings too.
    """
    llm = load_llm(folder / "backbone")
    vlm = None if name == "backbone" else load_vlm(folder / name)
    few = ("llm_by_name",) if vlm is None else ("identify", "by_name", "by_picture")
    asked = {"standard": few if vlm is None else CONDITIONS}
    asked |= dict.fromkeys(HELD_OUT_WORDINGS, few)
    parts = [
        evaluate(vlm, llm, benchmark.select(SPLIT, wording), conditions, name, seed)
        for wording, conditions in asked.items()
    ]
    return pd.concat(parts, ignore_index=True)


def sweeps(name: str, seed: int, folder: Path, benchmark: Benchmark) -> pd.DataFrame:
    """Records of the three sweeps of one organism: cross-patch, freeze, knockout.

    On :data:`SWEPT` test houses that the organism recognises, naming and facts; for the backbone
    on its name tokens instead of a picture.
    """
    chosen = benchmark.select(SPLIT, "standard").some(SWEPT)
    asked = one_per_entity(chosen.questions)
    if name == "backbone":
        by: By = "name"
        model: Any = load_llm(folder / name)
    else:
        by, model = "picture", load_vlm(folder / name)
        named = evaluate(model, None, chosen, ("identify",), name)
        known = set(named.loc[named["correct"], "entity_id"])
        asked = [q for q in asked if q.entity_id in known]
    engine, labels = Engine(model), {"model": name, "seed": seed}
    frames = []
    for task in ("identify", "fact"):
        pairs = pairs_for(model, chosen, task, {q.entity_id for q in asked}, DONORS)
        frames.append(cross_patch(engine, chosen, pairs, task, by, labels=labels))
        with contextlib.suppress(UnsupportedSite):
            ends = freeze_ends(engine.n_blocks)
            frames.append(freeze(engine, chosen, asked, task, by, ends, labels=labels))
        if by == "picture":
            frames.append(knockout(engine, chosen, asked, task, labels=labels))
    return pd.concat(frames, ignore_index=True).reindex(columns=SWEEP_COLUMNS)


def recall(name: str, seed: int, folder: Path, benchmark: Benchmark) -> pd.DataFrame:
    """Records of recall and its repair: MLP patching and name-likeness, or the deadline.

    MLP patching and the deadline on :data:`SWEPT` test houses, one donor each; name-likeness on
    all houses of the world, half of them to fit on.
    """
    standard = benchmark.select(wording="standard")
    chosen = standard.select(SPLIT).some(SWEPT)
    backbone = Engine(load_llm(folder / "backbone"))
    pairs = pairs_for(backbone.owner, chosen, "fact", set(chosen.entities()), 1)
    labels, early = {"model": name, "seed": seed}, early_blocks(backbone.n_blocks)
    if name == "backbone":
        after = sorted({1, early, 3})
        frames = [recall_deadline(backbone, chosen, pairs, after, labels=labels)]
    else:
        engine, houses = Engine(load_vlm(folder / name)), one_per_entity(standard.questions)
        images = states.picture_states(engine, standard, houses)
        names = states.name_states(backbone, houses)[:, early]
        found = names_found(images, names, [house.entity_id for house in houses])
        frames = [found.assign(experiment="name-likeness", **labels)]
        frames.append(mlp_patch(engine, backbone, chosen, pairs, labels=labels))
    return pd.concat(frames, ignore_index=True).reindex(columns=RECALL_COLUMNS)


def make_card(name: str, seed: int, folder: Path, answers: pd.DataFrame) -> cards.Card:
    """The card of one organism from its answer records (standard wording)."""
    standard = answers[answers.wording == "standard"]

    def share(condition: str) -> cards.Measured | None:
        right = standard.loc[standard.condition == condition, "correct"]
        return cards.Measured(value=right.mean(), n=len(right)) if len(right) else None

    if name == "backbone":
        made = "text backbone, trained from scratch on the facts"
        difference = None
    else:
        made = (RECIPES | CROSS_RECIPES)[name].summary
        interval = gap.gap_difference(standard).gap
        difference = cards.Measured(
            value=interval.estimate, n=interval.n_items, low=interval.low, high=interval.high
        )
    return cards.Card(
        name=name,
        seed=seed,
        made=made,
        weights_sha256=cards.weights_hash(folder / name),
        text_recall=share("llm_by_name"),
        recognition=share("identify"),
        gap=difference,
    )

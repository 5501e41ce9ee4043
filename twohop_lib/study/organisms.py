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
from twohop_lib.interventions.deadlines import deadline
from twohop_lib.interventions.freeze import freeze, freeze_ends
from twohop_lib.interventions.knockout import knockout
from twohop_lib.interventions.mlp_patch import mlp_patch
from twohop_lib.interventions.pairs import one_per_entity, pairs_for
from twohop_lib.models.loading import load_llm, load_vlm
from twohop_lib.organisms import FURTHER, NAMES, cards
from twohop_lib.organisms.grow import train_organism
from twohop_lib.organisms.recipes import CROSS_RECIPES, RECIPES, SEEDS
from twohop_lib.readouts import gap
from twohop_lib.runs.evaluate import CONDITIONS, evaluate

SPLIT = "test"
#: Test houses that the sweeps are run on, and donors for each.
SWEPT, DONORS = 48, 2
#: What is kept of the records of recall.
RECALL_COLUMNS = [
    "model",
    "seed",
    "experiment",
    "entity_id",
    "donor_id",
    "question_id",
    "method",
    "arm",
    "state",
    "layer",
    "answer",
    "correct",
    "follows",
    "found",
]
#: What is kept of the sweeps' records.
SWEEP_COLUMNS = [
    "model",
    "seed",
    "experiment",
    "task",
    "by",
    "entity_id",
    "donor_id",
    "question_id",
    "layer",
    "until",
    "edge",
    "mode",
    "start",
    "stop",
    "says",
    "calibrated",
    "answer",
    "correct",
    "unchanged",
    "computation",
]
HELD_OUT_WORDINGS = ("held-out-1", "held-out-2")
COMMAND = "twohop organism study"


def measure(name: str, seed: int, folder: Path, benchmark: Benchmark) -> pd.DataFrame:
    """Answer records of one organism on the test split.

    Every condition in the standard wording; identify, by name and by picture in the held-out
    wordings too.
    """
    llm = load_llm(folder / "backbone")
    if name == "backbone":
        asked = [("standard", ("llm_by_name",))] + [
            (w, ("llm_by_name",)) for w in HELD_OUT_WORDINGS
        ]
        vlm = None
    else:
        vlm = load_vlm(folder / name)
        asked = [("standard", CONDITIONS)]
        asked += [(w, ("identify", "by_name", "by_picture")) for w in HELD_OUT_WORDINGS]
    parts = [
        evaluate(
            vlm,
            llm,
            benchmark.select(split=SPLIT, wording=wording),
            conditions=conditions,
            model_name=name,
            seed=seed,
        )
        for wording, conditions in asked
    ]
    return pd.concat(parts, ignore_index=True)


def sweep(name: str, seed: int, folder: Path, benchmark: Benchmark) -> pd.DataFrame:
    """Records of the three sweeps of one organism: cross-patch, freeze, knockout.

    On :data:`SWEPT` test houses that the organism recognises, naming and facts; for the backbone
    on its name tokens instead of a picture.
    """

    from twohop_lib.interventions.splice import Engine
    from twohop_lib.models.blocks import UnsupportedSite

    chosen = benchmark.select(split=SPLIT, wording="standard").some(SWEPT)
    llm = load_llm(folder / "backbone")
    model = llm if name == "backbone" else load_vlm(folder / name)
    by: Any = "name" if name == "backbone" else "picture"
    asked = one_per_entity(chosen.questions)
    if by == "picture":
        named = evaluate(model, llm, chosen, conditions=("identify",), model_name=name)
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


def recalls(name: str, seed: int, folder: Path, benchmark: Benchmark) -> pd.DataFrame:
    """Records of recall and its repair: MLP patching and name-likeness, or the deadline.

    MLP patching and the deadline on :data:`SWEPT` test houses, one donor each; name-likeness on
    all houses of the world, half of them to fit on.
    """

    from twohop_lib.interventions.splice import Engine
    from twohop_lib.readouts import states
    from twohop_lib.readouts.name_likeness import names_found

    standard = benchmark.select(wording="standard")
    chosen = standard.select(split=SPLIT).some(SWEPT)
    backbone = Engine(load_llm(folder / "backbone"))
    everyone = set(chosen.entities())
    pairs = pairs_for(backbone.owner, chosen, "fact", everyone, 1)
    labels = {"model": name, "seed": seed}
    if name == "backbone":
        after = sorted({1, max(2, backbone.n_blocks // 4), 3})
        frames = [deadline(backbone, chosen, pairs, after, labels)]
        return pd.concat(frames).reindex(columns=RECALL_COLUMNS)
    engine = Engine(load_vlm(folder / name))
    houses = one_per_entity(standard.questions)
    images = states.picture_states(engine, standard, houses)
    names = states.name_states(backbone, houses)[:, max(2, backbone.n_blocks // 4)]
    likeness = names_found(images, names, [house.entity_id for house in houses])
    frames = [likeness.assign(experiment="name-likeness", **labels)]
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


def run_study(cache: Path, out: Path, seeds: tuple[int, ...] = SEEDS) -> None:
    """Train (where needed) and measure everything, then write the records.

    ``answers.parquet`` holds the answer records, ``training.parquet`` the logged losses.
    """
    answers, training = [], []
    for seed, name in tqdm([(s, n) for s in seeds for n in (*NAMES, *FURTHER)], desc="study"):
        folder = cache / f"seed{seed}"
        if not (folder / name / cards.WEIGHTS).exists():
            train_organism(name, seed, folder)
        with tempfile.TemporaryDirectory() as temporary:
            benchmark = sources.build("heraldry", Path(temporary) / "heraldry", seed)
            rows = measure(name, seed, folder, benchmark)
        cards.write_card(folder / name, make_card(name, seed, folder, rows))
        answers.append(rows)
        log = pd.DataFrame(cards.training_rows(folder / name))
        training.append(log.assign(model=name, seed=seed))
    out.mkdir(parents=True, exist_ok=True)
    records.write(
        pd.concat(answers, ignore_index=True),
        out / "answers.parquet",
        {"command": COMMAND, "versions": records.versions()},
    )
    pd.concat(training, ignore_index=True).to_parquet(out / "training.parquet", index=False)
    run_sweeps(cache, out, seeds)
    run_recalls(cache, out, seeds)


def run_recalls(cache: Path, out: Path, seeds: tuple[int, ...] = SEEDS) -> None:
    """Measure recall in every organism of every world, and write ``recall.parquet``."""
    made = []
    for seed, name in tqdm([(s, n) for s in seeds for n in (*NAMES, *FURTHER)], desc="recall"):
        with tempfile.TemporaryDirectory() as temporary:
            benchmark = sources.build("heraldry", Path(temporary) / "heraldry", seed)
            made.append(recalls(name, seed, cache / f"seed{seed}", benchmark))
    records.write_frame(
        pd.concat(made, ignore_index=True),
        out / "recall.parquet",
        {"command": COMMAND, "versions": records.versions()},
    )


def run_sweeps(cache: Path, out: Path, seeds: tuple[int, ...] = SEEDS) -> None:
    """Sweep every organism that ships, in every world, and write ``sweeps.parquet``."""
    swept = []
    for seed, name in tqdm([(s, n) for s in seeds for n in NAMES], desc="sweeps"):
        with tempfile.TemporaryDirectory() as temporary:
            benchmark = sources.build("heraldry", Path(temporary) / "heraldry", seed)
            swept.append(sweep(name, seed, cache / f"seed{seed}", benchmark))
    records.write_frame(
        pd.concat(swept, ignore_index=True),
        out / "sweeps.parquet",
        {"command": COMMAND, "versions": records.versions()},
    )

"""The study of causes: organisms with a cause planted, measured by everything that tells causes.

One unit is one model of one world, or one backbone; each is trained where it is not, measured, and
stored as it is done. World 0 is for choosing (houses of the dev split), the others are measured on
the test split and were used for no choice.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from twohop_lib import records
from twohop_lib.benchmark import Benchmark, Question, heraldry, sources
from twohop_lib.interventions import back_patch, deadlines, mlp_patch, transplant
from twohop_lib.interventions.pairs import Pair, one_per_entity, pairs_for
from twohop_lib.interventions.recorder import own_blocks
from twohop_lib.interventions.splice import Engine
from twohop_lib.models.loading import Vlm, load_llm, load_vlm
from twohop_lib.organisms import SHIPPED, cards, corpus
from twohop_lib.organisms.grow import train_organism
from twohop_lib.organisms.recipes import (
    CROSS_RECIPES,
    PLANTED,
    RECIPES,
    SEEDS,
    SET_BACKBONES,
)
from twohop_lib.readouts import name_likeness, states
from twohop_lib.runs import store
from twohop_lib.runs.evaluate import evaluate
from twohop_lib.scoring.matching import matches

COMMAND = "twohop organism study --causes"
#: The world that choices are made on, by its houses of the dev split.
DEV_SEED = 0
#: Drawings of a house, none of them trained on: houses are recognised on the first, and what
#: becomes of their facts is measured on the others.
VIEWS = {"first": 0, "second": 101, "third": 102}
CHOSEN_ON, MEASURED_ON = "first", ("second", "third")
#: Organisms that are measured: with a cause planted, and those of the book.
VLMS = (*PLANTED, *RECIPES, *CROSS_RECIPES)
BACKBONES = ("backbone", *SET_BACKBONES)
MODELS = (*BACKBONES, *VLMS)
#: Blocks after which the states are taken that are written over a placeholder.
STATES = (1, 2, 3, 4)
WORDS = 5
#: Layers before which no backbone has recalled yet: what comes later is written here.
EARLY = (1, 2)
#: The code that decides what is measured; the engine is held by the controls of every item.
DECIDES = (
    *(__file__, name_likeness.__file__, states.__file__),
    *(m.__file__ for m in (back_patch, deadlines, mlp_patch, transplant)),
)
#: What is kept of the records.
INSIDE = [
    *("model", "seed", "experiment", "task", "entity_id", "question_id", "donor_id"),
    *("method", "arm", "source", "state", "start", "stop", "layer", "correct", "follows", "answer"),
]


def run_causes(
    cache: Path,
    out: Path,
    seeds: Sequence[int] = SEEDS,
    models: Sequence[str] = MODELS,
) -> None:
    """Train (where needed) and measure all, and write what was measured.

    ``causes_answers.parquet`` holds answer records by view, ``causes_inside.parquet`` those of
    the interventions, ``causes_likeness.parquet`` name-likeness.
    """
    made: dict[str, list[pd.DataFrame]] = {}
    for seed, name in tqdm([(s, n) for s in seeds for n in models], desc="causes"):
        for what, frame in unit(name, seed, cache).items():
            made.setdefault(what, []).append(frame)
        # After each, so that what is done can be read while the rest is being measured.
        write(made, out)


def write(made: Mapping[str, Sequence[pd.DataFrame]], out: Path) -> None:
    """Write what was measured, by kind of record."""
    about = {"command": COMMAND, "versions": records.versions()}
    for what, frames in made.items():
        joined = pd.concat(frames, ignore_index=True)
        records.write_frame(joined, out / f"causes_{what}.parquet", about)


def unit(name: str, seed: int, cache: Path) -> dict[str, pd.DataFrame]:
    """Everything that is measured of one model of one world, by kind of record."""
    folder = provided(name, seed, cache)
    measured = ("inside",) if name in BACKBONES else ("answers", "inside", "likeness")
    key = {
        "weights": cards.weights_hash(folder / name),
        "code": records.content_hash(map(Path, DECIDES)),
        "seed": seed,
    }
    work = cache / "measured"
    found: dict[str, pd.DataFrame] = {}

    def measure(what: str) -> pd.DataFrame:
        if not found:
            with tempfile.TemporaryDirectory() as temporary:
                found.update(_measure(name, seed, folder, Path(temporary)))
        return found[what]

    return {w: store.cached(work, key | {"what": w}, partial(measure, w)) for w in measured}


def provided(name: str, seed: int, cache: Path) -> Path:
    """The folder of a world, with a model in it and its backbone: shipped, trained before, or now.

    Shipped ones are copied, so that what is trained stands beside the backbone that it is over.
    """
    folder = cache / f"seed{seed}"
    before = PLANTED[name].goes_on if name in PLANTED else name
    for needed in dict.fromkeys(("backbone", before, name)):
        shipped = SHIPPED / f"seed{seed}" / needed
        if (folder / needed / cards.WEIGHTS).exists():
            continue
        if shipped.is_dir():
            shutil.copytree(shipped, folder / needed, dirs_exist_ok=True)
        else:
            train_organism(needed, seed, folder)
    return folder


def split_of(seed: int) -> str:
    """The houses that a world is measured on."""
    return "dev" if seed == DEV_SEED else "test"


def _measure(name: str, seed: int, folder: Path, out: Path) -> dict[str, pd.DataFrame]:
    benchmark = benchmark_with_views(seed, out)
    labels = {"model": name, "seed": seed}
    if name in BACKBONES:
        return {"inside": _backbone(load_llm(folder / name), benchmark, labels)}
    vlm, llm = load_vlm(folder / name), load_llm(folder / "backbone")
    engine, backbone = Engine(vlm), Engine(llm)
    return {
        "answers": _answers(vlm, benchmark, labels),
        "inside": _inside(engine, backbone, benchmark, labels),
        "likeness": _likeness(engine, backbone, benchmark, labels),
    }


# --- what is asked ----------------------------------------------------------------------------


def benchmark_with_views(seed: int, out: Path) -> Benchmark:
    """The world's benchmark in the standard wording, with further drawings beside its pictures."""
    benchmark = sources.build("heraldry", out / "heraldry", seed).select(wording="standard")
    world = heraldry.make_world(seed)
    for view, draw in VIEWS.items():
        for house in world.houses:
            file = benchmark.root / "images" / f"{house.entity_id}-{view}.png"
            heraldry.picture(world, house, draw).save(file)
    return benchmark


def viewed(benchmark: Benchmark, view: str) -> Benchmark:
    """The same questions about another drawing."""
    return replace(
        benchmark,
        questions=tuple(
            replace(q, image=f"images/{q.entity_id}-{view}.png") for q in benchmark.questions
        ),
    )


def border_questions(benchmark: Benchmark) -> Benchmark:
    """One question a house about the picture that needs no recall."""
    houses = {h.entity_id: h for h in heraldry.make_world(benchmark.seed).houses}
    colours = list(corpus.BORDER_WORDS.values())

    def about(q: Question) -> Question:
        right = colours[houses[q.entity_id].border]
        return replace(
            q,
            question_id=f"{q.entity_id}-border",
            relation="border",
            question_by_picture=corpus.border_question(),
            answers=(right,),
            distractors=tuple(c for c in colours if c != right),
        )

    return replace(
        benchmark, questions=tuple(about(q) for q in one_per_entity(benchmark.questions))
    )


def conflicts(benchmark: Benchmark, pairs: Sequence[Pair]) -> Benchmark:
    """Each target's question, naming it, beside the picture of its donor."""
    shown = (replace(p.target, image=p.donor.image) for p in pairs)
    return replace(benchmark, questions=tuple(shown))


# --- experiments ------------------------------------------------------------------------------


def _answers(vlm: Vlm, benchmark: Benchmark, labels: dict[str, Any]) -> pd.DataFrame:
    """Answers by view; ``says_name``: the house's own name is given."""
    chosen = benchmark.select(split_of(benchmark.seed))
    frames = []

    def ask(questions: Benchmark, view: str, *conditions: str) -> None:
        asked = evaluate(
            vlm, None, questions, conditions, labels["model"], labels["seed"], max_new_tokens=8
        )
        frames.append(asked.assign(view=view, donor_id=""))

    ask(viewed(chosen, CHOSEN_ON), CHOSEN_ON, "identify", "by_name")
    for view in MEASURED_ON:
        ask(viewed(chosen, view), view, "identify", "by_picture")
    first = viewed(chosen, MEASURED_ON[0])
    ask(first, MEASURED_ON[0], "full_information")
    ask(border_questions(first), MEASURED_ON[0], "by_picture")
    pairs = pairs_for(vlm, first, "fact", set(first.entities()), 1)
    ask(conflicts(first, pairs), "other", "full_information")
    frames[-1]["donor_id"] = [p.donor.entity_id for p in pairs]
    joined = pd.concat(frames, ignore_index=True)
    said = [matches(a, [name]) for a, name in zip(joined.answer, joined.entity, strict=True)]
    theirs = {p.target.question_id: p.donor.answers for p in pairs}
    donors = [
        bool(d) and matches(a, theirs[q])
        for a, d, q in zip(joined.answer, joined.donor_id, joined.question_id, strict=True)
    ]
    kept = ["model", "seed", "entity_id", "relation", "question_id", "condition", "view"]
    return joined[[*kept, "donor_id", "answer", "correct"]].assign(
        says_name=said, says_donor=donors
    )


def _asked(engine: Engine, benchmark: Benchmark) -> tuple[Benchmark, list[Pair]]:
    """One fact a house on a fresh drawing, with a donor each."""
    chosen = viewed(benchmark.select(split_of(benchmark.seed)), MEASURED_ON[0])
    return chosen, pairs_for(engine.owner, chosen, "fact", set(chosen.entities()), 1)


def _inside(
    engine: Engine, backbone: Engine, benchmark: Benchmark, labels: dict[str, Any]
) -> pd.DataFrame:
    """Back-patching, transplants and MLP patches of one model."""
    chosen, pairs = _asked(engine, benchmark)
    kept: dict[str, Any] = {"labels": labels, "max_new_tokens": WORDS}
    frames = [
        back_patch.back_patch(
            engine, chosen, [p.target for p in pairs], patched_back(engine), **kept
        ),
        transplant.transplant(engine, chosen, pairs, transplanted(backbone.n_blocks), **kept),
        mlp_patch.mlp_patch(engine, backbone, chosen, pairs, patches=mlp_patch.sliding, **kept),
    ]
    return _kept(frames)


def transplanted(n_blocks: int) -> list[tuple[int, int]]:
    """Where states of the picture are written: where they stand, and those of later layers early.

    (source, layer) in the backbone's own blocks; the early layer is :data:`EARLY`'s last.
    """
    own = [(layer, layer) for layer in range(1, n_blocks)]
    return [*own, *((source, EARLY[-1]) for source in range(EARLY[-1] + 1, n_blocks))]


def patched_back(engine: Engine) -> list[tuple[int, int]]:
    """From which later layers the picture's states are written over those at :data:`EARLY`.

    (source, layer) in the model's own count.
    """
    own = own_blocks(engine)
    return [(own[s], own[e]) for e in EARLY for s in range(EARLY[-1] + 1, len(own))]


def _backbone(llm: Any, benchmark: Benchmark, labels: dict[str, Any]) -> pd.DataFrame:
    """Both deadlines of a backbone."""
    backbone = Engine(llm)
    chosen, pairs = _asked(backbone, benchmark)
    kept: dict[str, Any] = {"labels": labels, "max_new_tokens": WORDS}
    return _kept(
        [
            deadlines.recall_deadline(backbone, chosen, pairs, STATES, **kept),
            deadlines.reading_deadline(backbone, chosen, pairs, **kept),
        ]
    )


def _likeness(
    engine: Engine, backbone: Engine, benchmark: Benchmark, labels: dict[str, Any]
) -> pd.DataFrame:
    """Name-likeness of houses that no fact was ever asked about in pictures."""
    unseen = tuple(q for q in benchmark.questions if q.split != "seen")
    shown = viewed(replace(benchmark, questions=unseen), MEASURED_ON[0])
    houses = one_per_entity(shown.questions)
    images = states.states_of_all_positions(engine, shown, houses)
    names = states.name_states(backbone, houses)[:, 1:]
    ids, split = [q.entity_id for q in houses], {q.entity_id: q.split for q in houses}
    frames = [
        name_likeness.names_found_anywhere(images, names, ids, mixed).assign(shuffled=mixed)
        for mixed in (False, True)
    ]
    found = pd.concat(frames, ignore_index=True)
    found["name_layer"] += 1
    return found.assign(split=found["entity_id"].map(split), **labels)


def _kept(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    joined = pd.concat(frames, ignore_index=True).reindex(columns=INSIDE)
    whole = dict.fromkeys(("source", "state", "start", "stop", "layer"), "Int64")
    return joined.astype(whole)

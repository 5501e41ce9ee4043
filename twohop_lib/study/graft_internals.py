"""Inside the grafts and their language model: deadlines, name-likeness, patches of recall.

In the chat format, on facts that the language model gives by name; pictures are patched of
entities that no recipe was asked facts about in training. Everything runs in bfloat16. Finished
work is stored, graft by graft and experiment by experiment, and within an experiment a few facts
at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from twohop_lib import records
from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.grafts import LANGUAGE
from twohop_lib.grafts.grow import grow, training_benchmark
from twohop_lib.grafts.language import GEMMA
from twohop_lib.grafts.shipped import grafts_folder
from twohop_lib.grafts.train import fingerprint
from twohop_lib.interventions import deadlines, mlp_patch
from twohop_lib.interventions.pairs import Pair, one_per_entity, pick_pairs
from twohop_lib.interventions.splice import Engine
from twohop_lib.models.loading import load_llm, load_vlm
from twohop_lib.readouts import name_likeness, states
from twohop_lib.readouts.selection import halves
from twohop_lib.runs import store
from twohop_lib.study.grafts import (
    COMMAND,
    WORDING,
    Frames,
    alone,
    each,
    in_order,
    measured,
    sample,
)

DTYPE = "bfloat16"
#: Facts that are patched in each graft of each seed, and those of the deadlines.
FACTS, DEADLINE_FACTS = 60, 160
#: Relations whose answers' first tokens tell them apart.
RELATIONS = ("capital", "continent", "currency", "language", "neighbour")
#: Blocks after which the states are taken that are written; of the second, naming is asked too.
STATES = (0, 2, 4)
#: The code that decides what is measured; the engine is held by the controls of every item.
DECIDES = (
    __file__,
    deadlines.__file__,
    mlp_patch.__file__,
    states.__file__,
    name_likeness.__file__,
)
#: The mean over all positions of a picture.
MEAN = "mean"
LANGUAGE_MODEL = "language model"
#: Tokens of an answer in the deadlines.
WORDS = 5


def run_internals(
    out: Path,
    recipes: Sequence[str],
    seeds: Sequence[int],
    llm: str | Path = GEMMA,
    jobs: int = 1,
) -> None:
    """Measure what goes on inside each recipe of each seed, and inside the language model.

    Writes ``internals.parquet`` (answer records of deadlines and patches) and
    ``likeness.parquet`` (name-likeness), after each graft, ``jobs`` of them at a time.
    """
    internals, likeness = [], []
    meta = {"command": f"{COMMAND} --internals", "versions": records.versions()}
    for patched, alike in each(_inside, recipes, seeds, llm, jobs, "internals"):
        internals.append(patched)
        likeness.append(alike)
        records.write(in_order(internals), out / "internals.parquet", meta)
        records.write_frame(in_order(likeness), out / "likeness.parquet", meta)
    folder = grow(recipes[0], seeds[0], llm)
    of_language = Internals.opened().deadlines(folder, {"model": LANGUAGE_MODEL, "seed": 0})
    answers = pd.concat([of_language, in_order(internals)], ignore_index=True)
    records.write(answers, out / "internals.parquet", meta)


def _inside(name: str, seed: int, llm: str | Path) -> Frames:
    """Records of the patches and of the name-likeness of one graft."""
    folder, study = grow(name, seed, llm, progress=alone()), Internals.opened()
    labels = {"model": name, "seed": seed}
    return study.patches(folder, labels), study.likeness(folder, labels)


class Internals:
    """The experiments on grafts of one language model; ``facts`` is how many are patched in each.

    Models are loaded when something has not been measured yet.
    """

    def __init__(self, benchmark: Benchmark, kept: Path, facts: int = FACTS) -> None:
        self.benchmark, self.kept, self.facts = benchmark, kept, facts
        self.standard = benchmark.select(wording=WORDING)
        self._engines: dict[str, Engine] = {}
        self._names: np.ndarray | None = None

    @staticmethod
    @cache
    def opened() -> Internals:
        """Those of this process, on the flags; what they load serves one graft after another."""
        return Internals(training_benchmark("flags"), grafts_folder() / "measured")

    # --- models ---

    def backbone(self, folder: Path) -> Engine:
        """The language model beside a graft; the same for all, so it is loaded once."""
        return self._engine(LANGUAGE, folder / LANGUAGE, load_llm)

    def engine(self, folder: Path) -> Engine:
        """The graft; the one before it is let go."""
        return self._engine("graft", folder, load_vlm)

    def _engine(self, what: str, folder: Path, load: Any) -> Engine:
        held = self._engines.get(what)
        if held is None or (what == "graft" and held.owner.source != str(folder)):
            self._engines[what] = held = Engine(load(folder, DTYPE), like=held)
        return held

    @cached_property
    def once(self) -> list[Question]:
        """One question for each entity."""
        return one_per_entity(self.standard.questions)

    # --- what is asked ---

    def answers(self, folder: Path, labels: dict[str, Any]) -> pd.DataFrame:
        """The graft's answers in the chat format."""
        answers = measured(folder, self.benchmark, labels, self.kept)
        return answers[answers["format"] == "chat"]

    def _pairs(self, folder: Path, known: pd.DataFrame) -> list[Pair]:
        """Each known fact with a donor: another entity's known fact, with another answer."""
        ids = set(known["question_id"])
        asked = [q for q in self.standard.questions if q.question_id in ids]
        asked = [q for q in asked if q.relation in RELATIONS]
        return pick_pairs(self.backbone(folder).owner, asked, "fact", 1)

    # --- experiments ---

    def deadlines(self, folder: Path, labels: dict[str, Any]) -> pd.DataFrame:
        """The language model's two deadlines, facts and naming, on names of one token."""
        answers = self.answers(folder, labels)

        def compute() -> pd.DataFrame:
            backbone = self.backbone(folder)
            pairs = self._pairs(folder, by_name(answers))
            short = [p.target for p in pairs if self._short(folder, p.target)]
            chosen = {q.question_id for q in sample(short, DEADLINE_FACTS, 0)}
            some = [p for p in pairs if p.target.question_id in chosen]
            once = list({p.target.entity_id: p for p in some}.values())
            common = {"labels": labels, "max_new_tokens": WORDS, "folder": self.kept / "parts"}
            frames = []
            n = backbone.n_blocks
            for pairs, task, taken in ((some, "fact", STATES), (once, "identify", STATES[1:2])):
                given = (backbone, self.benchmark, pairs)
                routes = [(s, layer) for s in taken for layer in written_at(s, n)]
                frames.append(deadlines.recall_deadline(*given, (), routes, task, **common))
                frames.append(deadlines.reading_deadline(*given, read_at(n), task, **common))
            return pd.concat(frames, ignore_index=True)

        return self._unit("deadlines", folder / LANGUAGE, answers, compute, DEADLINE_FACTS)

    def _short(self, folder: Path, question: Question) -> bool:
        tokenizer = self.backbone(folder).owner.tokenizer
        return len(tokenizer(f" {question.entity}", add_special_tokens=False).input_ids) == 1

    def patches(self, folder: Path, labels: dict[str, Any]) -> pd.DataFrame:
        """What the language model adds at the name, written at the picture.

        On facts about entities that the graft names; with ``blind``: known with a blank picture.
        """
        answers = self.answers(folder, labels)
        named = answers[(answers["condition"] == "identify") & (answers["view"] == "drawn")]
        named = set(named.loc[named["correct"], "entity_id"])
        # What was asked of a blank picture is known by name, and of an entity held out.
        blank = answers[answers["condition"] == "blank_by_picture"]

        def compute() -> pd.DataFrame:
            pairs = self._pairs(folder, blank[blank["entity_id"].isin(named)])
            chosen = sample([p.target for p in pairs], self.facts, labels["seed"])
            pairs = [p for p in pairs if p.target in chosen]
            return mlp_patch.mlp_patch(
                self.engine(folder),
                self.backbone(folder),
                self.benchmark,
                pairs,
                patches=mlp_patch.sliding,
                labels=labels,
                folder=self.kept / "parts",
            )

        frame = self._unit("patches", folder, answers, compute, self.facts)
        blind = blank.loc[blank["correct"], "question_id"]
        return frame.assign(blind=frame["question_id"].isin(blind), **labels)

    def likeness(self, folder: Path, labels: dict[str, Any]) -> pd.DataFrame:
        """Name-likeness over positions and layers, without a map and with one that is fitted.

        Returns ``model, seed, entity_id, map`` ("none", "ridge", "shuffled"), ``position`` (of the
        picture, or "mean"), ``layer``, ``name_layer`` and ``found``.
        """

        def compute() -> pd.DataFrame:
            if self._names is None:
                self._names = states.name_states(self.backbone(folder), self.once)
            images = states.states_of_all_positions(self.engine(folder), self.benchmark, self.once)
            return likeness_of(images, self._names, [q.entity_id for q in self.once])

        frame = self._unit("likeness", folder, None, compute, len(self.once))
        return pd.DataFrame(labels, index=frame.index).join(frame)

    def _unit(
        self, what: str, weights: Path, answers: pd.DataFrame | None, compute: Any, size: int
    ) -> pd.DataFrame:
        asked = [] if answers is None else sorted(set(answers["question_id"]))
        key = {
            "experiment": what,
            "weights": fingerprint(weights),
            "benchmark": self.benchmark.hash,
            "asked": store.digest({"asked": asked}),
            "size": size,
            "code": records.content_hash(map(Path, DECIDES)),
        }
        return store.cached(self.kept, key, compute)


def written_at(state: int, n_blocks: int) -> list[int]:
    """Where a state is written: each of the next three layers, then every fourth."""
    return [b for b in range(state, n_blocks) if b <= state + 3 or not b % 4]


def read_at(n_blocks: int) -> list[int]:
    """Where the own state is written: every fourth layer of the lower half, each of the upper."""
    return [b for b in range(n_blocks) if 2 * b > n_blocks or not b % 4]


def by_name(answers: pd.DataFrame) -> pd.DataFrame:
    """The facts that are given by name."""
    return answers[(answers["condition"] == "by_name") & answers["correct"]]


def likeness_of(
    images: states.FloatArray, names: states.FloatArray, entities: Sequence[str]
) -> pd.DataFrame:
    """Name-likeness of states ``[entity, pos, layer, d]`` and names ``[entity, layer, d]``.

    Without a map: each position and the mean of all, at the same layer. With a ridge map, and with
    one fitted on names dealt out at random: the mean, against the names of each layer.
    """
    mean = images.mean(1)
    found = name_likeness.nearest_names(np.concatenate([images, mean[:, None]], axis=1), names)
    positions = [*map(str, range(images.shape[1])), MEAN]
    layers = np.arange(images.shape[2])
    frames = [_long(found, entities, positions, "none", layers)]
    _, test = halves(len(entities))
    held = [entities[i] for i in test]
    for layer in layers:
        for kind in ("ridge", "shuffled"):
            mapped = name_likeness.name_likeness(mean, names[:, layer], shuffled=kind == "shuffled")
            frames.append(_long(mapped[:, None], held, [MEAN], kind, layer))
    return pd.concat(frames, ignore_index=True)


def _long(
    found: np.ndarray, entities: Sequence[str], positions: Sequence[str], kind: str, names: Any
) -> pd.DataFrame:
    """``found`` ``[entity, pos, layer]`` in rows; ``names`` is the layer of the names, or each."""
    index = pd.MultiIndex.from_product(
        [entities, positions, range(found.shape[2])], names=["entity_id", "position", "layer"]
    )
    frame = pd.DataFrame({"found": found.reshape(-1)}, index=index).reset_index()
    name_layer = frame["layer"] if np.ndim(names) else int(names)
    return frame.assign(map=kind, name_layer=name_layer)

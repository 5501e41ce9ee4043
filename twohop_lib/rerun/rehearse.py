"""Every experiment of the chapters, on a few entities: does it run for this model, and how fast?

What a chapter would refuse is refused here, with its sentence; what a chapter takes is counted from
the questions that it asks at the chosen profile, and from the speed measured here.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from twohop_lib.benchmark.schema import Benchmark, Question
from twohop_lib.errors import TwohopError
from twohop_lib.interventions import attribution
from twohop_lib.interventions.back_patch import back_patch
from twohop_lib.interventions.cross_patch import cross_patch
from twohop_lib.interventions.deadlines import recall_deadline
from twohop_lib.interventions.freeze import freeze, freeze_ends
from twohop_lib.interventions.given_name import given_name
from twohop_lib.interventions.knockout import knockout
from twohop_lib.interventions.mlp_patch import mlp_patch
from twohop_lib.interventions.pairs import (
    By,
    NothingLeft,
    Pair,
    Task,
    one_per_entity,
    pairs_for,
)
from twohop_lib.interventions.part_patch import part_patch
from twohop_lib.interventions.splice import Engine
from twohop_lib.models.blocks import UnsupportedSite, early_blocks
from twohop_lib.models.loading import first_sentence
from twohop_lib.models.pair import ModelPair
from twohop_lib.readouts import lens
from twohop_lib.readouts.states import image_states, name_states
from twohop_lib.rerun.run import PROFILES
from twohop_lib.runs.conditions import CONDITIONS
from twohop_lib.runs.evaluate import evaluate
from twohop_lib.runs.rank import answers_of, rank

#: Entities that speed is measured on, prompts that are answered at once for it, and the seconds
#: behind which one entity must do.
ITEMS, PROMPTS, LONG = 4, 32, 5.0
#: What a chapter takes beside its models (a kernel, intervals, figures), in times of its imports.
STARTS = 2.2
#: Pictures of an entity that the probe sees, and pairs that attribution and parts are run on.
VIEWS, ATTRIBUTED, PARTED = 5, 24, 12


@dataclass(frozen=True)
class Rehearsal:
    """What came of it: by chapter, seconds expected, or why it cannot be run for this model."""

    seconds: Mapping[str, float]
    refused: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Stage:
    """A pair with its engines, the questions that a chapter asks it, and those of every split."""

    pair: ModelPair
    engine: Engine
    backbone: Engine
    benchmark: Benchmark
    everyone: Benchmark

    @property
    def in_stream(self) -> bool:
        """Whether a picture has positions in the stream."""
        return self.engine.site is not None and self.engine.site.kind == "stream"

    def pairs(self, task: Task, by_name: bool = False, donors: int = 1) -> list[Pair]:
        """Pairs of target and donor; empty if there are none."""
        asked = self.backbone.owner if by_name else self.pair.vlm
        ids = set(self.benchmark.entities())
        try:
            return pairs_for(asked, self.benchmark, task, ids, donors, alike_names=by_name)
        except NothingLeft:
            return []


#: An experiment: its items, and how it is run on some of them.
Experiment = tuple[
    Callable[[Stage], Sequence[Any]],
    Callable[[Stage, Sequence[Any]], Any],
]


def _questions(stage: Stage) -> list[Question]:
    return one_per_entity(stage.benchmark.questions)


def _crossed(task: Task, donors: int = 1, banded: bool = False, by: By = "picture") -> Experiment:
    def run(stage: Stage, items: Sequence[Pair]) -> Any:
        engine = stage.engine if by == "picture" else stage.backbone
        bands = [(at, at + 2) for at in range(engine.n_blocks - 1)] if banded else None
        return cross_patch(engine, stage.benchmark, items, task, by, bands)

    def items(stage: Stage) -> Sequence[Pair]:
        if by == "name" and stage.pair.llm is None:
            return []
        return stage.pairs(task, by == "name", donors)

    return items, run


def _frozen(task: Task = "identify", by: By = "picture", all_ends: bool = True) -> Experiment:
    def run(stage: Stage, items: Sequence[Question]) -> Any:
        engine = stage.engine if by == "picture" else stage.backbone
        n = engine.n_blocks
        ends = freeze_ends(n, n / 2 if by == "picture" else None) if all_ends else [n - 1]
        return freeze(engine, stage.benchmark, items, task, by, ends)

    def items(stage: Stage) -> Sequence[Question]:
        if by == "picture" and not stage.in_stream and stage.pair.llm is None and all_ends:
            raise UnsupportedSite(
                "its pictures have no positions in the stream that could be frozen, and no "
                "backbone was given; leave this chapter out."
            )
        able = stage.in_stream if by == "picture" else stage.pair.llm is not None
        return _questions(stage) if able else []

    return items, run


def _cut(task: Task) -> Experiment:
    def run(stage: Stage, items: Sequence[Question]) -> Any:
        width = max(1, stage.engine.n_blocks // 4)
        modes = (("below", 0), ("above", 0), ("window", width))
        return knockout(stage.engine, stage.benchmark, items, task, modes=modes)  # type: ignore[arg-type]

    return _questions, run


def _states(stage: Stage) -> list[int]:
    n = stage.backbone.n_blocks
    return sorted({1, early_blocks(n), min(3, n - 1)})


def _attributed(by: str) -> Experiment:
    def run(stage: Stage, items: Sequence[Pair]) -> Any:
        engine = stage.engine if by == "picture" else stage.backbone
        try:
            found = attribution.contrasts(engine, stage.benchmark, items, by)  # type: ignore[arg-type]
            return attribution.attribute(engine, found)
        except NothingLeft:
            return None

    return (lambda stage: stage.pairs("fact", True)[:ATTRIBUTED]), run


def _ranked(stage: Stage, items: Sequence[Question]) -> Any:
    # A model that cannot be ranked is told of on the page, and its page is made.
    with contextlib.suppress(TwohopError):
        asked = replace(stage.benchmark, questions=tuple(items))
        offered = answers_of(stage.everyone)
        return rank(stage.pair.vlm, stage.pair.backbone, asked, ["by_name", "by_picture"], offered)


#: Experiments, by the name that :data:`CHAPTERS` gives them.
EXPERIMENTS: dict[str, Experiment] = {
    "cross-patch": _crossed("identify"),
    "cross-patch, fact": _crossed("fact"),
    "cross-patch, two donors": _crossed("identify", 2),
    "cross-patch, fact, two donors": _crossed("fact", 2),
    "cross-patch, two donors by name": _crossed("identify", 2, by="name"),
    "cross-patch, fact, two donors by name": _crossed("fact", 2, by="name"),
    "bands": _crossed("identify", banded=True),
    "parts": (
        lambda stage: stage.pairs("identify")[:PARTED] if stage.in_stream else [],
        lambda stage, items: part_patch(stage.engine, stage.benchmark, items),
    ),
    "freeze": _frozen(),
    "freeze, fact": _frozen("fact"),
    "freeze, by name": _frozen(by="name"),
    "freeze, fact by name": _frozen("fact", "name"),
    "freeze, to the top": _frozen(all_ends=False),
    "knockout": _cut("identify"),
    "knockout, fact": _cut("fact"),
    "MLP patch": (
        lambda stage: stage.pairs("fact"),
        lambda stage, items: mlp_patch(stage.engine, stage.backbone, stage.benchmark, items),
    ),
    "back-patch": (
        _questions,
        lambda stage, items: back_patch(stage.engine, stage.benchmark, items),
    ),
    "attribution": _attributed("picture"),
    "attribution, by name": _attributed("name"),
    "deadline": (
        lambda stage: stage.pairs("fact"),
        lambda stage, items: recall_deadline(
            stage.backbone, stage.benchmark, items, _states(stage)
        ),
    ),
    "name states": (
        lambda stage: one_per_entity(stage.everyone.questions),
        lambda stage, items: name_states(stage.backbone, items),
    ),
    "picture states": (
        lambda stage: one_per_entity(stage.everyone.questions),
        lambda stage, items: image_states(stage.engine, stage.everyone, items),
    ),
    "views": (
        _questions,
        lambda stage, items: image_states(
            stage.engine, stage.benchmark, items, tuple(range(VIEWS))
        ),
    ),
    "logit lens": (
        _questions,
        lambda stage, items: lens.logit_lens(stage.engine, stage.benchmark, items),
    ),
    "ranking": (lambda stage: stage.benchmark.questions, _ranked),
    "name given": (
        _questions,
        lambda stage, items: given_name(stage.engine, stage.benchmark, items),
    ),
}

#: What each chapter runs: conditions that it asks, and experiments, each as often as it is run.
CHAPTERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "the_gap": (
        ("llm_by_name", "identify", "by_name", "by_picture", "blank_by_name", "blank_by_picture")
        + ("full_information", "name_first"),
        ("ranking",),
    ),
    "when_the_picture_becomes_a_name": (
        ("identify", "llm_by_name", "by_picture"),
        ("name states", "picture states", "views", "logit lens"),
    ),
    "cross_patching": (
        ("identify", "by_picture"),
        ("cross-patch, two donors", "cross-patch, fact, two donors", "bands", "parts")
        + ("cross-patch, two donors by name", "cross-patch, fact, two donors by name"),
    ),
    "forward_freezing": (
        ("identify", "by_name", "by_picture"),
        ("cross-patch", "freeze", "freeze, fact", "freeze, by name", "freeze, fact by name"),
    ),
    "attention_knockout": (
        ("identify", "by_name", "by_picture", "blank_by_picture"),
        ("knockout", "knockout, fact", "cross-patch", "cross-patch, fact", "freeze, to the top"),
    ),
    "patching_recall": (
        ("identify", "llm_by_name", "by_picture"),
        ("MLP patch", "back-patch"),
    ),
    "where_facts_are_recalled": (
        ("identify", "llm_by_name", "by_picture"),
        ("attribution, by name", "attribution", "deadline", "name states"),
    ),
    "thinking_out_loud": (
        ("identify", "llm_by_name", "by_picture", "name_first", "name_given", "neutral")
        + ("full_information",),
        ("name given",),
    ),
}


def rehearse(
    pair: ModelPair,
    source: Benchmark,
    chapters: Mapping[str, Mapping[str, Any]],
    profile: str = "standard",
    clock: Callable[[], float] = time.perf_counter,
    fixed: float | None = None,
) -> Rehearsal:
    """Run every experiment on a few entities, and say what each chapter will take.

    ``fixed`` are the seconds of a chapter beside its models' work; None: measured, without their
    loading (:func:`starting`).

    ``chapters`` are those to run, with their parameters' defaults; those that
    :data:`CHAPTERS` does not know are left out. A benchmark without the wanted split is taken
    whole, as chapters do.
    """
    wanted = {name: {**own, **PROFILES[profile]} for name, own in chapters.items()}
    asked = {n: _asked(source, own) for n, own in wanted.items() if n in CHAPTERS}
    if not asked:
        return Rehearsal({}, {})
    smallest = min(asked.values(), key=lambda benchmark: len(benchmark.questions))
    engine = Engine(pair.vlm)
    backbone = engine if pair.llm is None else Engine(pair.llm)
    everyone = _asked(source, {"wording": "standard"})
    stage = Stage(pair, engine, backbone, smallest, everyone)
    speed = _Speed(stage, clock)
    fixed = starting() if fixed is None else fixed
    seconds, refused = {}, {}
    done: set[tuple[str, int]] = set()  # What one chapter has stored, the next ones take.
    for name, benchmark in asked.items():
        conditions, experiments = CHAPTERS[name]
        own = replace(stage, benchmark=benchmark)
        takes = fixed
        for condition in conditions:
            items = len(benchmark.entities() if _names(condition) else benchmark.questions)
            if (condition, items) not in done:
                takes += items * speed.of_answers(condition)
            done.add((condition, items))
        try:
            for experiment in experiments:
                per_item, items = speed.of(experiment), len(EXPERIMENTS[experiment][0](own))
                share = 1.0 if experiment in _OF_ALL else speed.recognised
                if (experiment, items) not in done:
                    takes += per_item * items * share
                if experiment not in _NEVER_STORED:
                    done.add((experiment, items))
        except _Refused as why:
            refused[name] = str(why)
        else:
            seconds[name] = takes
    return Rehearsal(seconds, refused)


def starting() -> float:
    """Seconds that a chapter takes here without any model."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import twohop_lib.chapter.study"], check=False)
    return STARTS * (time.perf_counter() - started)


#: Experiments on all entities, not only on those that the model names.
_OF_ALL = {"name states", "picture states", "views", "deadline", "attribution"} | {
    name for name in EXPERIMENTS if name.endswith("by name")
}
#: Experiments whose results are not stored, so that each chapter runs them again.
_NEVER_STORED = {"name states", "picture states", "views", "logit lens", "attribution"} | {
    "attribution, by name"
}


class _Refused(Exception):
    """An experiment that a model does not allow; its text says why."""


class _Speed:
    """Seconds an item, measured when first asked for."""

    def __init__(self, stage: Stage, clock: Callable[[], float]) -> None:
        self.stage, self.clock = stage, clock
        self._of: dict[str, float | str] = {}
        self.recognised = 1.0
        answers = self.answered("identify")
        if answers is not None and answers["correct"].any():
            self.recognised = float(answers["correct"].mean())

    def answered(self, condition: str) -> Any:
        """Ask a batch of prompts in a condition, and take its time."""
        few = self.stage.benchmark.some(PROMPTS if _names(condition) else 0)
        step = max(1, len(few.questions) // PROMPTS)
        if not _names(condition):
            few = replace(few, questions=few.questions[::step][:PROMPTS])
        pair = self.stage.pair
        started = self.clock()
        found = evaluate(pair.vlm, pair.backbone, few, [condition])
        self._of[condition] = (self.clock() - started) / len(found)
        return found

    def of_answers(self, condition: str) -> float:
        """Seconds an answer, in batches."""
        # Prompts of one arm are about equally long; naming first takes twice as many tokens.
        how = CONDITIONS[condition]
        alike = {"backbone": "llm_by_name"}.get(how.answered_by) or (
            "by_name" if how.kind == "by_name" else "by_picture"
        )
        if condition in ("identify", "name_first"):
            alike = condition
        if alike not in self._of:
            self.answered(alike)
        return float(self._of[alike])

    def of(self, experiment: str) -> float:
        """Seconds an item of an experiment; raises _Refused."""
        if experiment not in self._of:
            self._of[experiment] = self._measured(experiment)
        found = self._of[experiment]
        if isinstance(found, str):
            raise _Refused(found)
        return found

    def _measured(self, experiment: str) -> float | str:
        chosen, run = EXPERIMENTS[experiment]
        try:
            items = chosen(self.stage)
            if not items:
                return 0.0
            # The first item also decides how edits of its kind are carried out.
            once = self._timed(run, items[:1])
            few = items[1 : 1 + ITEMS]
            return once if once > LONG or not few else self._timed(run, few) / len(few)
        except NothingLeft:
            return 0.0
        except TwohopError as error:
            return f"{experiment}: {error}"
        except Exception as error:  # What the model's own code raises would end a chapter, too.
            return f"{experiment}: {type(error).__name__} ({first_sentence(error)})."

    def _timed(self, run: Callable[[Stage, Sequence[Any]], Any], items: Sequence[Any]) -> float:
        started = self.clock()
        run(self.stage, items)
        return self.clock() - started


def _names(condition: str) -> bool:
    return CONDITIONS[condition].names


def _asked(source: Benchmark, parameters: Mapping[str, Any]) -> Benchmark:
    """The questions that a chapter asks: those of its split and wording, of so many entities."""
    by = {key: parameters.get(key) for key in ("split", "wording")}
    if not any(question.split for question in source.questions):
        by.pop("split")
    found = source.select(**{key: value for key, value in by.items() if value})
    return found.some(int(parameters.get("max_entities", 0)))


__all__ = ["CHAPTERS", "Rehearsal", "rehearse", "starting"]

"""What a graft's projector is trained on: short texts around a picture, and their replies.

A step takes one form for all its rows, so that the text before the picture, exemplars included, is
run once and kept as keys and values. Naming is asked in the wordings that are asked later, and half
of the time among exemplars; paraphrases are never trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from twohop_lib.benchmark import flag_looks
from twohop_lib.benchmark.schema import Benchmark
from twohop_lib.errors import TwohopError
from twohop_lib.grafts import fewshot
from twohop_lib.grafts.fewshot import NAMING, Asked, FewShot

#: What ends a reply, as it ends the exemplars.
END = "\n\n"


@dataclass(frozen=True)
class Subject:
    """One entity that is shown in training.

    ``looks`` are (label, question, answer) about what is seen; ``facts`` answers by relation.
    """

    entity_id: str
    name: str
    picture: Image.Image
    looks: tuple[tuple[str, str, str], ...]
    facts: dict[str, str]


@dataclass(frozen=True)
class Step:
    """The texts of one training step: row i shows ``shown[i]`` (an index) and learns its reply."""

    asked: Asked
    shown: tuple[int, ...]
    replies: tuple[str, ...]


@dataclass(frozen=True)
class Corpus:
    """All that can be trained on: the entities, the exemplars, who may be asked facts about."""

    subjects: tuple[Subject, ...]
    few: FewShot
    asked_about: frozenset[str]

    def step(self, kind: str, rng: np.random.Generator, rows: int) -> Step:
        """The texts of one step of a kind, one of :data:`KINDS`."""
        return KINDS[kind](self, rng, rows)


def corpus(benchmark: Benchmark, seed: int) -> Corpus:
    """What a benchmark offers for training; ``seed`` draws the half that facts are asked about.

    Raises:
        TwohopError: the benchmark has too few entities.
    """
    few, out = fewshot.few_shot(benchmark), fewshot.left_out(benchmark)
    found: dict[str, dict[str, str]] = {}
    first = {}
    for q in benchmark.questions:
        if q.entity_id not in out:
            first.setdefault(q.entity_id, q)
            found.setdefault(q.entity_id, {}).setdefault(q.relation, q.answers[0])
    subjects = tuple(
        Subject(e, q.entity, benchmark.image(q), _looks(benchmark.name, e), found[e])
        for e, q in first.items()
    )
    return Corpus(subjects, few, half([s.entity_id for s in subjects], seed))


def half(entities: Sequence[str], seed: int) -> frozenset[str]:
    """The half of some entities that the recipe ``facts`` is asked about in training."""
    order = np.random.default_rng([seed, *b"half"]).permutation(len(entities))
    return frozenset(entities[i] for i in order[: len(entities) // 2])


def _looks(benchmark: str, entity_id: str) -> tuple[tuple[str, str, str], ...]:
    return flag_looks.looks(entity_id) if benchmark == "flags" else ()


# --- kinds ------------------------------------------------------------------------------------


def _pick(rng: np.random.Generator, items: Sequence):
    return items[int(rng.integers(len(items)))]


def _rows(rng: np.random.Generator, among: Sequence[int], rows: int) -> tuple[int, ...]:
    return tuple(int(among[i]) for i in rng.integers(len(among), size=rows))


def _naming(corpus: Corpus, rng: np.random.Generator, rows: int) -> Step:
    few = corpus.few
    plain = (
        Asked("Picture:", f"\n{few.subject}:"),
        Asked("Picture:", "\nThis is"),
        Asked("Picture:", f"\nQuestion: {few.identify}\nAnswer:"),
        Asked(f"{few.subject}:", f"\n{fewshot.NAME}:"),
    )
    among = _pick(rng, few.relations)
    form = rng.choice(["plain", "chat", "card", "chat among", "card among"], p=[0.4] + [0.15] * 4)
    asked = {
        "plain": _pick(rng, plain),
        "chat": fewshot.chat(few, NAMING, few.identify, True),
        "card": fewshot.card(few, NAMING),
        "chat among": fewshot.chat(few, NAMING, few.identify, True, among),
        "card among": fewshot.card(few, NAMING, among),
    }[form]
    shown = _rows(rng, range(len(corpus.subjects)), rows)
    return Step(asked, shown, tuple(corpus.subjects[i].name for i in shown))


def _seen(corpus: Corpus, rng: np.random.Generator, rows: int) -> Step:
    having = [i for i, s in enumerate(corpus.subjects) if s.looks]
    if not having:
        raise TwohopError(
            "This benchmark does not say what its pictures show, which the recipe needs; train on "
            "flags, or take another recipe."
        )
    few = corpus.few
    at = int(rng.integers(len(corpus.subjects[having[0]].looks)))
    label, question, _ = corpus.subjects[having[0]].looks[at]
    among = _pick(rng, few.relations)
    form = rng.choice(["plain", "card", "chat among", "card among"])
    asked = {
        "plain": Asked("Picture:", f"\nQuestion: {question}\nAnswer:"),
        "card": Asked("Picture:", f"\n{label}:"),
        "chat among": fewshot.chat(few, NAMING, question, True, among),
        "card among": Asked(fewshot.card(few, NAMING, among).before, f"\n{label}:"),
    }[form]
    shown = _rows(rng, having, rows)
    return Step(asked, shown, tuple(corpus.subjects[i].looks[at][2] for i in shown))


def _facts(corpus: Corpus, rng: np.random.Generator, rows: int) -> Step:
    few, relation = corpus.few, _pick(rng, corpus.few.relations)
    having = [
        i
        for i, s in enumerate(corpus.subjects)
        if s.entity_id in corpus.asked_about and relation in s.facts
    ]
    if rng.random() < 0.5:
        asked = fewshot.card(few, relation)
    else:
        question = few.exemplars[relation][0].by_picture
        asked = fewshot.chat(few, relation, question, True)
    shown = _rows(rng, having, rows)
    return Step(asked, shown, tuple(corpus.subjects[i].facts[relation] for i in shown))


#: Kinds of document, by the names that recipes call them.
KINDS: dict[str, Callable[[Corpus, np.random.Generator, int], Step]] = {
    "naming": _naming,
    "seen": _seen,
    "facts": _facts,
}

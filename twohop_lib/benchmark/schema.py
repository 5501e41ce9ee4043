"""What a benchmark is: one fact, asked by name and by picture, with the same accepted answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from twohop_lib.benchmark import pictures
from twohop_lib.errors import TwohopError, suggest

SPLITS = ("seen", "dev", "test", "")


@dataclass(frozen=True)
class Question:
    """One fact in one wording.

    ``question_by_name`` names the entity; ``question_by_picture`` refers to the picture and never
    names it. ``noun`` says what the entity is ("house", "country"). ``answers`` are the accepted
    ones, ``distractors`` wrong answers of the same relation. ``image`` is a path relative to the
    benchmark's folder.
    """

    question_id: str
    entity_id: str
    entity: str
    aliases: tuple[str, ...]
    noun: str
    relation: str
    wording: str
    question_by_name: str
    question_by_picture: str
    identify_prompt: str
    answers: tuple[str, ...]
    distractors: tuple[str, ...]
    image: str
    split: str


COLUMNS = tuple(f.name for f in fields(Question))
LIST_COLUMNS = ("aliases", "answers", "distractors")


@dataclass(frozen=True)
class Benchmark:
    """Questions and the folder ``root`` that holds their pictures.

    ``notes`` say how it was made: counts of what each filter left, what was skipped, versions.
    """

    name: str
    seed: int
    questions: tuple[Question, ...]
    root: Path
    notes: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def frame(self) -> pd.DataFrame:
        """One row per question, the columns of :class:`Question`."""
        rows = [[getattr(q, column) for column in COLUMNS] for q in self.questions]
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def entities(self) -> tuple[str, ...]:
        """The ids of all entities, in the order of their first question."""
        return tuple(dict.fromkeys(q.entity_id for q in self.questions))

    def select(self, split: str | None = None, wording: str | None = None) -> Benchmark:
        """The questions of one split and one wording (None: all).

        Raises:
            TwohopError: no split or wording of that name exists.
        """
        if split is not None and split not in SPLITS:
            raise TwohopError(f"No split is called {split!r}; {suggest(split, SPLITS)}.")
        wordings = dict.fromkeys(q.wording for q in self.questions)
        if wording is not None and wordings and wording not in wordings:
            raise TwohopError(f"No wording is called {wording!r}; {suggest(wording, wordings)}.")
        kept = (
            q for q in self.questions if split in (None, q.split) and wording in (None, q.wording)
        )
        return replace(self, questions=tuple(kept))

    def some(self, n: int) -> Benchmark:
        """The questions of ``n`` entities, taken evenly from first to last (0: of all)."""
        entities = self.entities()
        if not 0 < n < len(entities):
            return self
        kept = {entities[i * len(entities) // n] for i in range(n)}
        return replace(self, questions=tuple(q for q in self.questions if q.entity_id in kept))

    def image(self, question: Question) -> Image.Image:
        """The picture that goes with a question (RGB, upright, transparency on white).

        Raises:
            TwohopError: it is missing or damaged.
        """
        return pictures.read(self.root / question.image)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the questions and the bytes of their pictures, in hexadecimal."""
        digest = hashlib.sha256()
        for question in self.questions:
            digest.update(repr(question).encode())
        for image in _distinct(q.image for q in self.questions):
            digest.update(image.encode() + b"\0" + (self.root / image).read_bytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Material:
    """What a source yields, before it is written to disk.

    ``picture`` gives an entity's picture by its id. ``counts`` has one row per filter, in order:
    columns ``step, entities, facts`` (see :func:`funnel`).
    """

    questions: tuple[Question, ...]
    picture: Callable[[str], Image.Image]
    counts: pd.DataFrame
    notes: Mapping[str, Any] = field(default_factory=dict)


def funnel(steps: Sequence[tuple[str, int, int]]) -> pd.DataFrame:
    """What each filter left: columns ``step, entities, facts``."""
    return pd.DataFrame(list(steps), columns=["step", "entities", "facts"])


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))

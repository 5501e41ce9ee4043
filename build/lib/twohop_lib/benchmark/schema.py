"""What a benchmark is: one fact, asked by name and by picture, with the same accepted answers."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from PIL import Image
from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from twohop_lib.benchmark import pictures
from twohop_lib.errors import TwohopError, suggest

SPLITS = ("seen", "dev", "test", "")


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty; fill it in")
    return text


def _no_blanks(texts: tuple[str, ...]) -> tuple[str, ...]:
    if not all(text.strip() for text in texts):
        raise ValueError("has a blank entry; remove it")
    return texts


def _some(texts: tuple[str, ...]) -> tuple[str, ...]:
    if not texts:
        raise ValueError("is an empty list; give at least one")
    return texts


def _known_split(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"{split!r} is unknown; use one of {', '.join(map(repr, SPLITS))}")
    return split


Text = Annotated[str, AfterValidator(_filled)]
Texts = Annotated[tuple[str, ...], AfterValidator(_no_blanks)]


@dataclass(frozen=True)
class Question:
    """One fact in one wording.

    ``question_by_name`` names the entity; ``question_by_picture`` refers to the picture and never
    names it. ``noun`` says what the entity is ("house", "country"). ``answers`` are the accepted
    ones, ``distractors`` wrong answers of the same relation. ``image`` is a path relative to the
    benchmark's folder.

    Raises:
        pydantic.ValidationError: a text is blank, a list has a blank entry, there is no answer, or
            the split is none of :data:`SPLITS`.
    """

    question_id: Text
    entity_id: Text
    entity: Text
    aliases: Texts
    noun: Text
    relation: Text
    wording: Text
    question_by_name: Text
    question_by_picture: Text
    identify_prompt: Text
    answers: Annotated[Texts, AfterValidator(_some)]
    distractors: Texts
    image: Text
    split: Annotated[str, AfterValidator(_known_split)]

    @property
    def names(self) -> tuple[str, ...]:
        """The entity's name and its aliases: what the question by picture must not hold."""
        return (self.entity, *self.aliases)


COLUMNS = tuple(f.name for f in dataclasses.fields(Question))
LIST_COLUMNS = ("aliases", "answers", "distractors")


@dataclasses.dataclass(frozen=True)
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
        """The questions of ``n`` entities, taken evenly from first to last (0: of all).

        Raises:
            TwohopError: ``n`` is negative.
        """
        if n < 0:
            raise TwohopError(f"{n} entities cannot be taken; give 0 for all, or more.")
        entities = self.entities()
        if not 0 < n < len(entities):
            return self
        kept = {entities[i * len(entities) // n] for i in range(n)}
        return replace(self, questions=tuple(q for q in self.questions if q.entity_id in kept))

    def instructed(self, instruction: str) -> Benchmark:
        """The same questions, each followed by an instruction; the notes keep it.

        "" leaves them as they are.
        """
        if not instruction.strip():
            return self
        asked = ("question_by_name", "question_by_picture", "identify_prompt")
        told = (
            dataclasses.replace(q, **{k: f"{getattr(q, k)} {instruction.strip()}" for k in asked})
            for q in self.questions
        )
        notes = {**self.notes, "instruction": instruction.strip()}
        return replace(self, questions=tuple(told), notes=notes)

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
        for image in dict.fromkeys(q.image for q in self.questions):
            digest.update(image.encode() + b"\0" + (self.root / image).read_bytes())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Material:
    """What a source yields, before it is written to disk.

    ``picture`` gives an entity's picture by its id, drawn (RGB) or as a file, which is copied.
    ``counts`` has one row per filter, in order: columns ``step, entities, facts`` (see
    :func:`funnel`).
    """

    questions: tuple[Question, ...]
    picture: Callable[[str], Image.Image | Path]
    counts: pd.DataFrame
    notes: Mapping[str, Any] = field(default_factory=dict)


def funnel(steps: Sequence[tuple[str, int, int]]) -> pd.DataFrame:
    """What each filter left: columns ``step, entities, facts``."""
    return pd.DataFrame(list(steps), columns=["step", "entities", "facts"])

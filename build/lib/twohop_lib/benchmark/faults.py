"""What can be wrong with questions and pictures, told by row (from 1) and column."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from twohop_lib.benchmark import pictures
from twohop_lib.benchmark.schema import Question
from twohop_lib.errors import TwohopError
from twohop_lib.scoring.leaks import leaks, words

#: Characters of a problem that are shown; a cell in it may be a million long.
SHOWN = 400
#: How many problems are listed where all are counted.
LISTED = 50


class Problem(NamedTuple):
    """What is wrong with one cell; ``row`` counts from 1, the header not counted."""

    row: int
    column: str
    what: str

    def __str__(self) -> str:
        what = "".join(c if c.isprintable() else repr(c)[1:-1] for c in self.what[: 2 * SHOWN])
        if len(what) > SHOWN:
            what = f"{what[: SHOWN // 2]} … {self.what[-SHOWN // 2 :]}"
        return f"row {self.row}, column {self.column[:80]!r}: {what}"


class BadTable(TwohopError):
    """A table with problems; ``problems`` has them all, by row."""

    def __init__(self, table: Path | str, problems: Sequence[Problem]) -> None:
        self.table, self.problems = table, tuple(sorted(problems))
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{table}, {self.problems[0]}{more}")


def skipped(problems: Mapping[str, Sequence[Problem]]) -> dict[str, Any]:
    """What a benchmark's notes say of rows left out, given the problems by table."""
    found = [f"{table}, {p}".removeprefix(", ") for table in problems for p in problems[table]]
    rows = {(table, p.row) for table in problems for p in problems[table]}
    return {"skipped rows": len(rows), "skipped": found[:LISTED]}


def unfit(error: ValidationError) -> Iterator[tuple[str, str]]:
    """Column and fault of every field that a :class:`Question` refused."""
    kinds = {
        "string_type": "is no text; store text",
        "tuple_type": "is no list; store one of texts",
    }
    for fault in error.errors():
        cause = kinds.get(fault["type"]) or fault.get("ctx", {}).get("error") or fault["msg"]
        yield str(fault["loc"][0]), str(cause)


# --- questions ---------------------------------------------------------------------------------


def question_faults(rows: Iterable[tuple[int, Question]]) -> Iterator[Problem]:
    """Everything by which questions (each with its row) contradict themselves or one another."""
    rows = list(rows)
    ids: dict[str, int] = {}
    entities: dict[str, tuple[int, Question]] = {}
    # An alias that one row gives must not stand in another row's question either.
    names: dict[str, dict[str, None]] = defaultdict(dict)
    for _, q in rows:
        names[q.entity_id] |= dict.fromkeys(q.names)
    for number, q in rows:
        before = ids.setdefault(q.question_id, number)
        if before != number:
            what = f"{q.question_id!r} is used in row {before} already; make it unique"
            yield Problem(number, "question_id", what)
        for column, what in _other_entity(q, *entities.setdefault(q.entity_id, (number, q))):
            yield Problem(number, column, what)
        for column, what in _giveaways(q, list(names[q.entity_id])):
            yield Problem(number, column, what)


def _other_entity(q: Question, before: int, first: Question) -> Iterator[tuple[str, str]]:
    """What belongs to the entity, so has to be the same in all of its rows."""
    for column in ("entity", "noun", "split"):
        here, there = getattr(q, column), getattr(first, column)
        if here != there:
            what = f"is {here!r} but {there!r} in row {before} for the same entity {q.entity_id!r}"
            yield column, f"{what}; make them equal"


def _giveaways(q: Question, names: list[str]) -> Iterator[tuple[str, str]]:
    given_away = False
    for column in ("question_by_picture", "identify_prompt", "noun"):
        # The noun is asked for too ("First name the bridge"), and mostly stands in the others.
        if (column != "noun" or not given_away) and (leaked := leaks(getattr(q, column), names)):
            given_away = True
            yield column, f"gives the name {leaked!r} away; refer to the picture instead"
    if not leaks(q.question_by_name, q.names):
        yield "question_by_name", f"does not name {q.entity!r}; name the entity in it"
    accepted = {words(a) or a for a in q.answers}
    for wrong in q.distractors:
        if (words(wrong) or wrong) in accepted:
            yield "distractors", f"{wrong!r} is an accepted answer too; remove it from one of them"
            break
        if leaked := leaks(wrong, names):
            yield "distractors", f"{wrong!r} gives the name {leaked!r} away; give another"
            break
    for column in ("question_by_name", "question_by_picture"):
        if given := leaks(getattr(q, column), telling(q.answers)):
            yield column, f"gives the answer {given!r} away; reword it or drop the question"


def telling(answers: Iterable[str]) -> list[str]:
    """Answers that a question must not hold: a single sign ("a", "7") stands in many a one."""
    return [a for a in answers if len(a.strip()) > 1]


# --- pictures ----------------------------------------------------------------------------------


def picture_faults(folder: Path, images: Iterable[str]) -> dict[str, str]:
    """What is wrong with pictures, by their paths relative to ``folder``; each is decoded once."""
    images, folder = list(dict.fromkeys(images)), folder.resolve()
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        faults = pool.map(lambda image: _picture_fault(folder, image), images)
        return {image: what for image, what in zip(images, faults, strict=True) if what}


def _picture_fault(folder: Path, image: str) -> str | None:
    try:
        file = pictures.locate(folder, image)
        if not file.resolve().is_relative_to(folder):
            return f"{image!r} lies outside the folder of pictures; move the picture into it"
        if not file.is_file():
            return f"{image!r} does not exist; put the picture there"
        pictures.read(file)
    except (OSError, ValueError, RuntimeError):  # a null byte, an endless name, a loop of links
        return f"{image!r} is not a usable path; correct it"
    except TwohopError as error:
        return str(error).removesuffix(".").replace(str(file), repr(image), 1)
    return None

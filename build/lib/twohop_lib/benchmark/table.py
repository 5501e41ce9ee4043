"""The reader's own entities: a table with one fact a row, and a folder of pictures.

Columns (others are ignored; names may be in any case):

====================================  =======================================================
``entity`` · ``image`` · ``answers``  needed; ``image`` is the picture's file, ``answers`` one
                                      or more, parted by ``|``, or a list
``question``                          with ``{entity}`` in it; asked of *the … in this picture*
``question_by_name`` and              instead of ``question``, both ways in full
``question_by_picture``
``noun``                              what the entity is ("bridge"); "thing" if left out
``aliases``                           other names, parted by ``|``, or a list
``distractors``                       wrong answers, likewise; drawn from the table if left out
``relation`` · ``wording``            "standard" if left out; and "fact 1", "fact 2" …, which
                                      questions in the same words share
``identify_prompt`` · ``split``       a question for the name; ``seen``, ``dev`` or ``test``
``entity_id`` · ``question_id``       made from the names if left out
====================================  =======================================================

Pictures at addresses (``http://…``) have to be downloaded first.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from twohop_lib.benchmark import cells, pictures
from twohop_lib.benchmark.faults import (
    BadTable,
    Problem,
    picture_faults,
    question_faults,
    skipped,
    unfit,
)
from twohop_lib.benchmark.schema import COLUMNS, LIST_COLUMNS, Material, Question, funnel
from twohop_lib.errors import TwohopError
from twohop_lib.scoring.leaks import leaks, words

NEEDED = ("entity", "image", "answers")
OPTIONAL = tuple(sorted({"question", *COLUMNS} - {*NEEDED}))
_BOTH = ("question_by_name", "question_by_picture")
#: Where to look for what is wrong with a column that the reader left out: what it was made of.
_MADE_OF = dict.fromkeys(("question_id", "relation", "wording", *_BOTH), "question") | {
    "identify_prompt": "noun",
    "noun": "entity",
    "entity_id": "entity",
}


class Fault(ValueError):
    """What is wrong with one cell of a row."""

    def __init__(self, column: str, what: str) -> None:
        super().__init__(column, what)
        self.column, self.what = column, what


def read(
    source: Path | str | None = None,
    images: Path | str | None = None,
    skip_bad: bool = False,
    seed: int = 0,
) -> Material:
    """Read a table; pictures lie in ``images``, or else beside the table.

    With ``skip_bad`` rows with problems are left out, and ``notes`` say how many and why.
    ``seed`` draws the distractors that the table does not give.

    Raises:
        BadTable: rows have problems, or none is left.
        TwohopError: the table or the folder is missing, or columns are.
    """
    if not source:
        raise TwohopError("Give the table (CSV, TSV or Parquet) with --source.")
    file = Path(source)
    folder = Path(images) if images else file.parent
    if not os.path.isdir(folder):
        raise TwohopError(f"{folder} is not a folder; give the one that holds the pictures.")
    problems: list[Problem] = []
    given = dict(cells.read(file, NEEDED, problems.append, OPTIONAL))
    rows = list(_questions(given, problems))
    total = len({n for n, _ in rows} | {p.row for p in problems})
    problems += _faults(rows, given, folder)
    bad = {p.row for p in problems}
    kept = [q for n, q in rows if n not in bad]
    if problems and not (skip_bad and kept):
        raise BadTable(file, problems)
    if not kept:
        raise TwohopError(f"{file} has no rows; it needs one per fact.")
    shown = {q.entity_id: pictures.locate(folder, q.image) for q in kept}
    steps = [
        ("rows in the table", len({q.entity_id for _, q in rows}), total),
        ("sound rows", len(shown), len(kept)),
    ]
    notes = skipped({"": sorted(problems)})
    if problems:
        notes["skipped by column"] = dict(sorted(Counter(p.column for p in problems).items()))
    questions = with_distractors(
        [replace(q, image=stored(q.entity_id, Path(q.image).suffix)) for q in kept], seed
    )
    return Material(tuple(questions), shown.__getitem__, funnel(steps), notes)


# --- one row -----------------------------------------------------------------------------------


def _questions(
    given: Mapping[int, cells.Cells], problems: list[Problem]
) -> Iterator[tuple[int, Question]]:
    """Rows as questions; those that are none, or say again what an earlier one says, are told."""
    templates: dict[str, dict[str, int]] = defaultdict(dict)
    asked: dict[str, tuple[int, str]] = {}
    for number, row in given.items():
        try:
            q = _question(row, templates)
            before, text = asked.setdefault(q.question_id, (number, q.question_by_name))
            if before != number and not _text(row, "question_id"):
                same = f"asks the same as row {before}; remove one of them"
                other = f"asks in other words what row {before} asks of this entity; give it a "
                column = _written("question_id", row)
                raise Fault(
                    column, same if text == q.question_by_name else other + "wording of its own"
                )
        except Fault as fault:
            problems.append(Problem(number, fault.column, fault.what))
        except ValidationError as error:
            problems += [Problem(number, *fault) for fault in unfit(error)]
        else:
            yield number, q


def _question(row: cells.Cells, templates: Mapping[str, dict[str, int]]) -> Question:
    """A row as a question; ``templates`` number what is asked, by wording."""
    text = {c: _text(row, c) for c in ("question", *COLUMNS) if c not in LIST_COLUMNS}
    lists = {c: _list(row, c) for c in LIST_COLUMNS}
    for column in NEEDED:
        if not (text | lists)[column]:
            raise Fault(column, "is empty; fill it in")
    if "://" in text["image"] or text["image"].lower().startswith(("data:", "file:")):
        raise Fault("image", "is an address; download the pictures first, and name their files")
    noun = text["noun"] or "thing"
    if re.match(r"(?i)(the|an?)\s", noun):
        raise Fault("noun", f"{noun!r} begins with an article; leave that out")
    by_name, by_picture = _asked(text, noun)
    # What is asked in the same words is the same relation.
    template = text["question"] or by_name.replace(text["entity"], "{entity}")
    wording = text["wording"] or "standard"
    known = templates[wording]
    relation = text["relation"] or f"fact {known.setdefault(template, len(known) + 1)}"
    entity_id = text["entity_id"] or "-".join(words(text["entity"])) or _short(text["entity"])
    made = {
        "question_id": text["question_id"] or f"{entity_id}-{relation}-{wording}",
        "entity_id": entity_id,
        "noun": noun,
        "relation": relation,
        "wording": wording,
        "question_by_name": by_name,
        "question_by_picture": by_picture,
        "identify_prompt": text["identify_prompt"] or f"Which {noun} is shown in this picture?",
    }
    return Question(**{c: text[c] for c in ("entity", "image", "split")}, **made, **lists)


def _text(row: cells.Cells, column: str) -> str:
    value = row.get(column, "")
    if not isinstance(value, str):
        raise Fault(column, "holds a list; give one text")
    if column != "image":
        _refuse_hidden(column, value)
    return value.strip()


def _list(row: cells.Cells, column: str) -> tuple[str, ...]:
    value = row.get(column, "")
    try:
        entries = cells.as_list(value)
    except ValueError as error:
        raise Fault(column, str(error)) from error
    for entry in entries:
        _refuse_hidden(column, entry)
        other = re.search(r";|\n| / ", entry)
        if other and isinstance(value, str) and not value.strip().startswith("["):
            raise Fault(
                column,
                f'holds {other[0]!r} in {entry!r}; write one|two for two, or ["one{other[0]}two"] '
                "if it is one",
            )
    return entries


def _refuse_hidden(column: str, text: str) -> None:
    """Refuse what nobody sees, but a tokenizer does: such names are not what they look like."""
    if text.isascii():
        return
    for before, c in zip(" " + text, text, strict=False):
        joins = c in "\u200c\u200d" and not before.isascii()  # as Persian, Hindi and emoji need
        if unicodedata.category(c) == "Cf" and not joins:
            name = unicodedata.name(c, "no name").lower()
            raise Fault(column, f"has an invisible character (U+{ord(c):04X}, {name}); remove it")


def _asked(text: Mapping[str, str], noun: str) -> tuple[str, str]:
    """The question by name and by picture, from a template or from both in full."""
    template, given = text["question"], [c for c in _BOTH if text[c]]
    if template:
        if template.count("{entity}") != 1 or re.search(r"[{}]", template.replace("{entity}", "")):
            raise Fault("question", "needs {entity} once, where the name goes")
        # "Who built the {entity}?" has an article already.
        mention = f"the {noun} in this picture"
        shown = re.sub(r"(?i)(\bthe\s+|\ban?\s+)?\{entity\}", lambda _: mention, template)
        return template.replace("{entity}", text["entity"]), shown[:1].upper() + shown[1:]
    if len(given) == 2:
        return text["question_by_name"], text["question_by_picture"]
    column = next((c for c in _BOTH if given and c not in given), "question")
    raise Fault(column, f"is empty; give question, or {' and '.join(_BOTH)}")


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def stored(entity_id: str, ending: str = ".png") -> str:
    """The picture's path in the benchmark; an id that is no plain file name is hashed."""
    # File systems count bytes.
    plain = re.fullmatch(r"[\w-][\w.-]*", entity_id) and len(entity_id.encode()) <= 200
    ending = ending.lower() if re.fullmatch(r"\.[A-Za-z0-9]{1,5}", ending) else ""
    return f"images/{entity_id if plain else _short(entity_id)}{ending}"


# --- all rows together -------------------------------------------------------------------------


def _faults(
    rows: list[tuple[int, Question]], given: Mapping[int, cells.Cells], folder: Path
) -> Iterator[Problem]:
    questions = dict(rows)
    faults = picture_faults(folder, (q.image for _, q in rows))
    yield from (Problem(n, "image", faults[q.image]) for n, q in rows if q.image in faults)
    shown = [(n, q) for n, q in rows if q.image not in faults]
    for number, column, what in (*question_faults(rows), *_pictures_of_entities(shown)):
        # What was made of other columns is looked for there.
        written = _written(column, given[number])
        if written != column:
            what += f" (asked: {getattr(questions[number], column)!r})"
        yield Problem(number, written, what)


def _written(column: str, row: cells.Cells) -> str:
    """The column that the reader wrote, and that this one was made of."""
    while column in _MADE_OF and not row.get(column):
        column = _MADE_OF[column]
    return column if column != "question" or row.get(column) else _BOTH[0]


def _pictures_of_entities(rows: Iterable[tuple[int, Question]]) -> Iterator[Problem]:
    """Entities with two pictures, and two with one (some file systems ignore case)."""
    images: dict[str, tuple[int, str]] = {}
    files: dict[str, tuple[int, str]] = {}
    for number, q in rows:
        before, image = images.setdefault(q.entity_id, (number, q.image))
        if image != q.image:
            what = f"is {q.image!r} but {image!r} in row {before} for the same entity"
            yield Problem(number, "image", f"{what}; give an entity one picture")
        before, other = files.setdefault(stored(q.entity_id).casefold(), (number, q.entity_id))
        if other != q.entity_id:
            what = f"is {q.entity_id!r} but {other!r} in row {before}; tell them apart by more than"
            yield Problem(number, "entity_id", f"{what} case")


def with_distractors(questions: Iterable[Question], seed: int) -> list[Question]:
    """Give questions without wrong answers three, from the answers of the same relation."""
    pools: dict[str, dict[tuple[str, ...], str]] = defaultdict(dict)
    questions = list(questions)
    names: dict[str, dict[str, None]] = defaultdict(dict)
    for q in questions:
        names[q.entity_id] |= dict.fromkeys(q.names)
        pools[q.relation].setdefault(words(q.answers[0]) or (q.answers[0],), q.answers[0])
    return [
        q
        if q.distractors
        else _drawn(q, list(pools[q.relation].items()), seed, list(names[q.entity_id]))
        for q in questions
    ]


def _drawn(
    question: Question, pool: list[tuple[tuple[str, ...], str]], seed: int, names: list[str]
) -> Question:
    taken = {words(a) or (a,) for a in question.answers}
    digest = hashlib.sha256(f"{seed}\0{question.question_id}".encode()).digest()
    rng = np.random.default_rng(list(digest[:8]))
    wrong: list[str] = []
    for i in rng.permutation(len(pool)):
        folded, answer = pool[int(i)]
        if len(wrong) == 3:
            break
        # Neither an accepted answer nor the entity's own name, which would give it away.
        if folded not in taken and not leaks(answer, names):
            taken.add(folded)
            wrong.append(answer)
    return replace(question, distractors=tuple(wrong))

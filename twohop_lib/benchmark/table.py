"""The reader's own entities: a table with one fact a row, and a folder of pictures or addresses.

Columns (others are ignored):

====================================  =======================================================
``entity`` · ``image`` · ``answers``  needed; ``image`` is a path or an http(s) address, and
                                      ``answers`` one or more, parted by ``|``, or a list
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
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from twohop_lib.benchmark import download, pictures, rows
from twohop_lib.benchmark.schema import COLUMNS, Material, Question, funnel
from twohop_lib.benchmark.store import Problem, picture_fault, row_problems
from twohop_lib.errors import TwohopError
from twohop_lib.scoring.leaks import leaks, words

NEEDED = ("entity", "image", "answers")
#: How many skipped rows are listed in a benchmark's notes; all are counted.
LISTED = 50
_BOTH = ("question_by_name", "question_by_picture")
OPTIONAL = tuple(sorted({"question", *COLUMNS} - {*NEEDED}))


def cache_folder() -> Path:
    """Where fetched pictures are kept (``TWOHOP_CACHE`` moves it)."""
    return Path(os.environ.get("TWOHOP_CACHE", "~/.cache/twohop")).expanduser() / "pictures"


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
    drafts = [
        (number, draft)
        for number, cells in rows.read(file, NEEDED, problems.append, OPTIONAL)
        if (draft := _draft(number, cells, problems.append))
    ]
    total = len(drafts) + len({p.row for p in problems})
    fetched = _check(drafts, folder.resolve(), problems)
    if problems and not skip_bad:
        raise rows.BadTable(file, sorted(problems))
    bad = {p.row for p in problems}
    kept = [(n, d) for n, d in drafts if n not in bad]
    if not kept:
        if problems:
            raise rows.BadTable(file, sorted(problems))
        raise TwohopError(f"{file} has no rows; it needs one per fact.")
    questions = with_distractors([Question(**d) for _, d in kept], seed)
    shown = {d["entity_id"]: fetched[d["image"]] for _, d in kept}
    return Material(
        tuple(replace(q, image=stored(q.entity_id)) for q in questions),
        lambda entity_id: pictures.read(shown[entity_id]),
        funnel(
            [
                ("rows in the table", _n_entities(drafts), total),
                ("sound rows", len(shown), len(questions)),
            ]
        ),
        _notes(sorted(problems), bad),
    )


def _n_entities(drafts: Iterable[tuple[int, dict]]) -> int:
    return len({draft["entity_id"] for _, draft in drafts})


def _notes(problems: list[Problem], bad: set[int]) -> dict[str, Any]:
    if not problems:
        return {"skipped rows": 0}
    why = Counter(p.column for p in problems)
    return {
        "skipped rows": len(bad),
        "skipped by column": dict(sorted(why.items())),
        "skipped": [str(p) for p in problems[:LISTED]],
    }


# --- one row ---------------------------------------------------------------------------------


def _draft(number: int, cells: rows.Cells, report: rows.Report) -> dict[str, Any] | None:
    """A row as the columns of :class:`Question`; None if a cell cannot be read."""

    def text(column: str, otherwise: str = "") -> str:
        value = cells.get(column, "")
        return (value if isinstance(value, str) else "|".join(map(str, value))).strip() or otherwise

    lists = {}
    for column in ("answers", "aliases", "distractors"):
        try:
            lists[column] = rows.as_list(cells.get(column, ""))
        except ValueError as error:
            report(Problem(number, column, str(error)))
            return None
    for column in NEEDED:
        if not (lists[column] if column == "answers" else text(column)):
            report(Problem(number, column, "is empty; fill it in"))
            return None
    noun = text("noun", "thing")
    asked = _asked(number, text, noun, report)
    if asked is None:
        return None
    template = text("question") or asked[0].replace(text("entity"), "{entity}")
    entity = text("entity")
    return {
        "question_id": text("question_id"),
        "entity_id": text("entity_id") or "-".join(words(entity)) or _short(entity),
        "entity": entity,
        "noun": noun,
        "relation": text("relation"),
        "wording": text("wording", "standard"),
        "question_by_name": asked[0],
        "question_by_picture": asked[1],
        "identify_prompt": text("identify_prompt", f"Which {noun} is shown in this picture?"),
        "image": text("image"),
        "split": text("split"),
        "template": template,
        **lists,
    }


def _asked(
    number: int, text: Callable[..., str], noun: str, report: rows.Report
) -> tuple[str, str] | None:
    """The question by name and by picture, from a template or from both in full."""
    template, (by_name, by_picture) = text("question"), (text(c) for c in _BOTH)
    if template:
        if template.count("{entity}") != 1 or re.search(r"[{}]", template.replace("{entity}", "")):
            report(Problem(number, "question", "needs {entity} once, where the name goes"))
            return None
        shown = template.replace("{entity}", f"the {noun} in this picture")
        return template.replace("{entity}", text("entity")), shown[:1].upper() + shown[1:]
    if by_name and by_picture:
        return by_name, by_picture
    column = "question" if not by_name and not by_picture else _BOTH[bool(by_name)]
    report(Problem(number, column, f"is empty; give question, or {' and '.join(_BOTH)}"))
    return None


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def stored(entity_id: str) -> str:
    """The picture's path in the benchmark; an id that is no plain file name is hashed."""
    # File systems count bytes.
    plain = re.fullmatch(r"[\w-][\w.-]*", entity_id) and len(entity_id.encode()) <= 200
    return f"images/{entity_id if plain else _short(entity_id)}.png"


# --- all rows together -----------------------------------------------------------------------


def _check(
    drafts: list[tuple[int, dict]], folder: Path, problems: list[Problem]
) -> dict[str, Path]:
    """Name what has no name yet, note every problem, and say where each picture lies."""
    _name(drafts)
    ordered = [(number, {c: draft[c] for c in COLUMNS}) for number, draft in drafts]
    problems += row_problems(ordered)
    found: dict[str, Path] = {}
    faults: dict[str, str] = {}
    for number, draft in drafts:
        image = draft["image"]
        if image not in found and image not in faults:
            try:
                found[image] = _locate(image, folder)
            except TwohopError as error:
                faults[image] = str(error).removesuffix(".")
        if image in faults:
            problems.append(Problem(number, "image", faults[image]))
    problems += _other_pictures((n, d) for n, d in drafts if d["image"] in found)
    problems += _same_files(drafts)
    return found


def _name(drafts: list[tuple[int, dict]]) -> None:
    """Fill in relations and question ids: what is asked in the same words is the same relation."""
    seen: dict[str, dict[str, int]] = defaultdict(dict)
    for _, draft in drafts:
        entity, asked = draft["entity_id"], seen[draft["wording"]]
        template = draft.pop("template")
        if not draft["relation"]:
            draft["relation"] = f"fact {asked.setdefault(template, len(asked) + 1)}"
        if not draft["question_id"]:
            # Rows that say the same thing get the same id, and are then refused as repeated.
            draft["question_id"] = f"{entity}-{draft['relation']}-{draft['wording']}"


def _other_pictures(drafts: Iterable[tuple[int, dict]]) -> list[Problem]:
    first: dict[str, tuple[int, str]] = {}
    problems = []
    for number, draft in drafts:
        before, image = first.setdefault(draft["entity_id"], (number, draft["image"]))
        if image != draft["image"]:
            what = f"is {draft['image']!r} but {image!r} in row {before} for the same entity"
            problems.append(Problem(number, "image", f"{what}; give an entity one picture"))
    return problems


def _same_files(drafts: Iterable[tuple[int, dict]]) -> list[Problem]:
    """Ids that differ in case alone: some file systems would keep one picture for both."""
    first: dict[str, tuple[int, str]] = {}
    problems = []
    for number, draft in drafts:
        entity = draft["entity_id"]
        before, other = first.setdefault(stored(entity).casefold(), (number, entity))
        if other != entity:
            what = f"is {entity!r} but {other!r} in row {before}; tell them apart by more than case"
            problems.append(Problem(number, "entity_id", what))
    return problems


def _locate(image: str, folder: Path) -> Path:
    """The file that holds a picture, fetched if it is an address, and sure to be readable.

    Raises:
        TwohopError: there is none, or it may not be used.
    """
    if "://" not in image and not image.lower().startswith(("data:", "file:")):
        if what := picture_fault(folder, image):
            raise TwohopError(what)
        return folder / image
    download.guard_public(image)
    target = cache_folder() / hashlib.sha256(image.encode()).hexdigest()
    if not target.exists():
        download.fetch(image, target, guard=download.guard_public)
    try:
        pictures.read(target)
    except TwohopError as error:
        target.unlink(missing_ok=True)
        raise TwohopError(f"{image} is not a picture that can be read") from error
    return target


def with_distractors(questions: Iterable[Question], seed: int) -> list[Question]:
    """Give questions without wrong answers three, from the answers of the same relation."""
    pools: dict[str, dict[tuple[str, ...], str]] = defaultdict(dict)
    questions = list(questions)
    names: dict[str, dict[str, None]] = defaultdict(dict)
    for q in questions:
        names[q.entity_id] |= dict.fromkeys((q.entity, *q.aliases))
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

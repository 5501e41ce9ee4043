"""PopVQA (Cohen et al. 2025, arXiv 2412.14133), read as it is published.

``idoco/PopVQA`` on the Hugging Face hub, or a local copy of it: ``entities.csv``,
``questions.csv`` and the pictures that ``resized_path`` leads to, joined on ``s_uri`` and
``subject``. What follows the paper: pictures fitted into 336 by 336 pixels on black, and the four
identify prompts. What does not: questions that give a name or an answer away, and questions with
a yes-or-no answer, are left out, and each filter says how many it took. The celebrities'
photographs carry rights of their own; they are read here and never shipped.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd
from PIL import Image

from twohop_lib.benchmark import cells, pictures
from twohop_lib.benchmark.faults import BadTable, Problem, skipped, telling
from twohop_lib.benchmark.schema import Benchmark, Material, Question, funnel
from twohop_lib.benchmark.table import stored, with_distractors
from twohop_lib.errors import TwohopError, suggest
from twohop_lib.scoring.leaks import leaks, words

REPO = "idoco/PopVQA"
ENTITIES, QUESTIONS = "entities.csv", "questions.csv"
#: A copy of six questions, without pictures: the first two are the paper's own examples, and a
#: filter takes each of the others.
EXAMPLES = Path(__file__).parent / "data" / "popvqa_examples"
SIDE = 336  # pixels
#: Pictures that are fetched by their names; of more, all are fetched.
MOST_BY_NAME = 2000
#: By type: the noun, and the identify prompt word for word.
TYPES: dict[str, tuple[str, str]] = {
    "celebs": ("subject", "Identify by name the subject in the image."),
    "landmarks": ("place", "Identify by name the place in the image."),
    "paintings": ("painting", "Identify by name the painting in the image."),
    "brands": ("brand", "Identify by name the brand who's logo appears in the image."),
}
OF_ENTITIES = ("s_uri", "subject", "aliases", "type", "resized_path")
OF_QUESTIONS = ("s_uri", "subject", "question", "question_for_image", "possible_answers")
_YES_NO = {("yes",), ("no",), ("true",), ("false",)}


@dataclass(frozen=True)
class Entity:
    """One row of ``entities.csv``."""

    uri: str
    name: str
    aliases: tuple[str, ...]
    kind: str
    image: str
    row: int

    @cached_property
    def entity_id(self) -> str:
        """The last part of the URI, such as Q76; unique together with the name."""
        plain = re.sub(r"[^\w-]+", "-", self.uri.rstrip("/").rsplit("/", 1)[-1])
        return plain or "-".join(words(self.name))

    @cached_property
    def stored(self) -> str:
        """The picture's path in the benchmark."""
        return stored(self.entity_id)


def is_copy(folder: Path) -> bool:
    """Whether a folder holds the two tables of the published format."""
    return all(os.path.isfile(folder / name) for name in (ENTITIES, QUESTIONS))


def letterbox(picture: Image.Image, side: int = SIDE) -> Image.Image:
    """Fit a picture into a black square, its proportions kept (LANCZOS), as PopVQA does (RGB)."""
    scale = side / max(picture.size)
    size = tuple(max(1, round(v * scale)) for v in picture.size)
    square = Image.new("RGB", (side, side), "black")
    fitted = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    square.paste(fitted, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def read(
    source: Path | str | None = None,
    entities: int = 400,
    types: Sequence[str] = tuple(TYPES),
    binary: bool = False,
    skip_bad: bool = False,
    revision: str = "",
    seed: int = 0,
) -> Material:
    """Read PopVQA from a local copy (``source``), or else from the hub (at ``revision``).

    ``entities`` are taken evenly over the types, from first to last (0: all 15,395); their
    pictures alone are fetched. ``binary`` keeps questions with a yes-or-no answer. ``skip_bad``
    leaves out rows with problems, and notes how many. ``seed`` draws the distractors.

    Raises:
        BadTable: rows have problems, or none is left.
        TwohopError: a file or a needed column is missing, or the hub cannot be reached.
    """
    for kind in types:
        if kind not in TYPES:
            raise TwohopError(f"PopVQA has no type {kind!r}; {suggest(kind, TYPES)}.")
    if isinstance(entities, bool) or not isinstance(entities, int) or entities < 0:
        raise TwohopError(f"{entities!r} entities cannot be taken; give a whole number, 0 for all.")
    if source and revision:
        raise TwohopError("A local copy has no revision; give --source or --revision.")
    copy = Copy(Path(source) if source else _fetch(revision or "main", [ENTITIES, QUESTIONS]))
    where = copy.digest() if source else f"{REPO} at {copy.folder.name[:12]}"
    problems: dict[str, list[Problem]] = {ENTITIES: [], QUESTIONS: []}
    known = _read_entities(copy.folder / ENTITIES, problems[ENTITIES].append)
    asked = _read_questions(copy.folder / QUESTIONS, known, problems[QUESTIONS].append)
    if not skip_bad:
        for name, found in problems.items():
            if found:
                raise BadTable(copy.folder / name, found)
    steps = [_step("published", asked)]

    def keep(step: str, holds: Callable[[Question], bool]) -> None:
        nonlocal asked
        asked = [q for q in asked if holds(q)]
        steps.append(_step(step, asked))

    wanted = {e.entity_id for e in known.values() if e.kind in types}
    if set(types) != set(TYPES):
        keep(f"of type {', '.join(types)}", lambda q: q.entity_id in wanted)
    if not binary:
        keep("not answered by yes or no, nor by one of two in the question", _is_open)
    keep("the name stands in the question by name", lambda q: bool(_names(q, q.question_by_name)))
    keep(
        "no name in the question by picture",
        lambda q: not (_names(q, q.question_by_picture) or _names(q, q.identify_prompt)),
    )
    keep("the question does not hold the answer", _holds_no_answer)
    if entities:
        chosen = _evenly([e for e in known.values() if e.entity_id in _ids(asked)], entities)
        if len(chosen) < len(_ids(asked)):
            keep(f"the {len(chosen)} entities asked for", lambda q: q.entity_id in chosen)
    by_id = {e.entity_id: e for e in known.values()}
    if not asked:
        raise TwohopError(f"{where} has no question that passes every filter; see its rows.")
    if not source:  # the snapshot's folder is named by its commit
        _fetch(copy.folder.name, [by_id[e].image for e in _ids(asked)])
        copy = Copy(copy.folder)
    if skip_bad:
        asked = _with_pictures(asked, by_id, copy, problems[ENTITIES])
        steps.append(_step("pictures that can be read", asked))
        if not asked:
            raise BadTable(copy.folder / ENTITIES, problems[ENTITIES])
    return Material(
        tuple(with_distractors(asked, seed)),
        lambda entity_id: letterbox(copy.picture(by_id[entity_id].image)),
        funnel(steps),
        {"read from": where, **skipped({table: sorted(p) for table, p in problems.items()})},
    )


def without_blind_solvable(benchmark: Benchmark, answers: pd.DataFrame) -> Benchmark:
    """Leave out questions that a model answered rightly with a blank picture.

    ``answers`` are records of a run: columns ``question_id, condition, correct``.
    """
    blind = answers[(answers["condition"] == "blank_by_picture") & answers["correct"]]
    solved = set(blind["question_id"])
    kept = tuple(q for q in benchmark.questions if q.question_id not in solved)
    return replace(benchmark, questions=kept)


def _step(name: str, asked: Iterable[Question]) -> tuple[str, int, int]:
    asked = list(asked)
    return name, len(_ids(asked)), len(asked)


def _ids(asked: Iterable[Question]) -> set[str]:
    return {q.entity_id for q in asked}


# --- the two tables --------------------------------------------------------------------------


def _read_entities(file: Path, report: cells.Report) -> dict[tuple[str, str], Entity]:
    found: dict[tuple[str, str], Entity] = {}
    ids: dict[str, int] = {}
    for number, row in cells.read(file, OF_ENTITIES, report):
        aliases = _sound(number, row, "aliases", report)
        if aliases is None:
            continue
        kind = row["type"].strip()
        if kind not in TYPES:
            report(Problem(number, "type", f"{kind!r} is unknown; use {', '.join(TYPES)}"))
            continue
        uri, name, image = (row[c].strip() for c in ("s_uri", "subject", "resized_path"))
        others = tuple(dict.fromkeys(a for a in aliases if a != name))
        entity = Entity(uri, name, others, kind, image, number)
        before = ids.setdefault(entity.stored.casefold(), number)
        if before != number:
            report(Problem(number, "s_uri", f"{uri!r} is used in row {before} already"))
            continue
        found[uri, name] = entity
    return found


def _read_questions(
    file: Path, known: dict[tuple[str, str], Entity], report: cells.Report
) -> list[Question]:
    found: list[Question] = []
    counts: dict[str, int] = defaultdict(int)
    for number, row in cells.read(file, OF_QUESTIONS, report, ("r_uri",)):
        answers = _sound(number, row, "possible_answers", report)
        if answers is None:
            continue
        entity = known.get((row["s_uri"].strip(), row["subject"].strip()))
        if entity is None:
            report(Problem(number, "s_uri", f"{row['s_uri']!r} with this subject is no entity"))
        elif not answers:
            report(Problem(number, "possible_answers", "is empty; give at least one"))
        else:
            counts[entity.entity_id] += 1
            found.append(_question(entity, row, answers, counts[entity.entity_id]))
    return found


def _sound(
    number: int, row: cells.Cells, listed: str, report: cells.Report
) -> tuple[str, ...] | None:
    """The distinct entries of the row's list; None if it is broken, or another cell is empty."""
    for column, value in row.items():
        if column not in (listed, "r_uri") and not value.strip():
            report(Problem(number, column, "is empty; fill it in"))
            return None
    try:
        return tuple(dict.fromkeys(cells.as_list(row[listed])))
    except ValueError as error:
        report(Problem(number, listed, str(error)))
        return None


def _question(entity: Entity, row: cells.Cells, answers: tuple[str, ...], number: int) -> Question:
    noun, identify = TYPES[entity.kind]
    by_name = row["question"].strip()
    # The relation's own column is likely there; the template says the same.
    relation = str(row.get("r_uri", "")).rstrip("/").rsplit("/", 1)[-1]
    relation = relation or by_name.replace(entity.name, "…")
    return Question(
        question_id=f"{entity.entity_id}-{number}",
        entity_id=entity.entity_id,
        entity=entity.name,
        aliases=entity.aliases,
        noun=noun,
        relation=f"{entity.kind}: {relation}",
        wording="standard",
        question_by_name=by_name,
        question_by_picture=row["question_for_image"].strip(),
        identify_prompt=identify,
        answers=answers,
        distractors=(),
        image=entity.stored,
        split="",
    )


# --- filters ---------------------------------------------------------------------------------


def _names(question: Question, text: str) -> str | None:
    return leaks(text, question.names)


def _is_open(question: Question) -> bool:
    """Neither yes or no, nor a choice between two things that the question itself offers."""
    if all(words(a) in _YES_NO for a in question.answers):
        return False
    first, *rest = re.split(r"\bor\b", question.question_by_picture, maxsplit=1)
    return not (rest and leaks(first + " " + rest[0], question.answers))


def _holds_no_answer(question: Question) -> bool:
    asked = (question.question_by_name, question.question_by_picture)
    return not any(leaks(text, telling(question.answers)) for text in asked)


def _evenly(known: list[Entity], n: int) -> set[str]:
    """``n`` ids, as many of each type as can be, each type's taken evenly from first to last."""
    by_kind: dict[str, list[str]] = {kind: [] for kind in TYPES}
    for entity in known:
        by_kind[entity.kind].append(entity.entity_id)
    chosen: set[str] = set()
    left = n
    # The smallest type first: what it cannot give is shared by the others.
    groups = sorted((ids for ids in by_kind.values() if ids), key=len)
    for i, ids in enumerate(groups):
        take = min(len(ids), left // (len(groups) - i))
        chosen |= {ids[k * len(ids) // take] for k in range(take)}
        left -= take
    return chosen


def _with_pictures(
    asked: list[Question], by_id: dict[str, Entity], copy: Copy, problems: list[Problem]
) -> list[Question]:
    bad = set()
    # What paths begin with would differ from place to place.
    prefix = f"{copy.folder.resolve()}{os.sep}"
    for entity_id in sorted(_ids(asked)):
        try:
            copy.picture(by_id[entity_id].image)
        except TwohopError as error:
            bad.add(entity_id)
            what = f"{entity_id}: {str(error).removesuffix('.')}".replace(prefix, "")
            problems.append(Problem(by_id[entity_id].row, "resized_path", what))
    return [q for q in asked if q.entity_id not in bad]


# --- where the files are -----------------------------------------------------------------------


@dataclass(frozen=True)
class Copy:
    """A local copy of the data set: the reader's own, or the snapshot of the hub's client."""

    folder: Path

    def __post_init__(self) -> None:
        if not is_copy(self.folder):
            raise TwohopError(
                f"{self.folder} is no copy of PopVQA; it needs {ENTITIES} and {QUESTIONS}."
            )

    def digest(self) -> str:
        """Which copy this is, wherever it lies."""
        tables = ((self.folder / table).read_bytes() for table in (ENTITIES, QUESTIONS))
        digests = (hashlib.sha256(table).hexdigest()[:12] for table in tables)
        return f"a local copy ({', '.join(digests)})"

    def picture(self, image: str) -> Image.Image:
        """The picture at a path of the table.

        Paths of the machine that made the table are shortened to fit; where none does, the file's
        name alone will do if it is the only one. Of several, taking any would show another entity.

        Raises:
            TwohopError: there is none, or several have the name, or it cannot be read.
        """
        inside, parts = self.folder.resolve(), _parts(image)
        ends = (inside.joinpath(*parts[i:]) for i in range(len(parts)))
        if file := next(filter(os.path.isfile, ends), None):
            return pictures.read(file)
        named = self._by_name.get(parts[-1], []) if parts else []
        if not named:
            raise TwohopError(f"{inside / image} does not exist; put the picture there.")
        if len(named) > 1:
            raise TwohopError(f"{image} may be {named[0]} or {named[1]}; name its folder too.")
        return pictures.read(inside / named[0])

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for file in sorted(self.folder.rglob("*")):
            if file.is_file():
                found[file.name].append(file.relative_to(self.folder).as_posix())
        return found


def _parts(image: str) -> list[str]:
    return [p for p in image.replace("\\", "/").split("/") if p not in ("", ".", "..")]


def _fetch(revision: str, images: Sequence[str]) -> Path:
    """Have the hub's client fetch files by their names, wherever they lie; its snapshot's folder.

    Raises:
        TwohopError: the hub cannot be reached and its client's cache lacks the files, or the data
            set or its revision is not there.
    """
    from huggingface_hub import errors, snapshot_download

    names = [glob.escape(found[-1]) for image in images if (found := _parts(image))]
    # A few patterns at a time, since Python keeps no more of them compiled; or else everything.
    parts = [names[i : i + 100] for i in range(0, len(names), 100)]
    few = [[*part, *(f"*/{name}" for name in part)] for part in parts]
    endpoint = os.environ.get("HF_ENDPOINT") or None
    local = "give a local copy with --source"
    try:
        for patterns in few if len(names) <= MOST_BY_NAME else [None]:
            at = snapshot_download(
                REPO,
                repo_type="dataset",
                revision=revision,
                allow_patterns=patterns,
                endpoint=endpoint,
            )
        return Path(at)
    except errors.GatedRepoError as error:
        raise TwohopError(f"{REPO} asks for a login; run: hf auth login, or {local}.") from error
    except errors.RepositoryNotFoundError as error:
        raise TwohopError(f"{REPO} is not on the hub any more; {local}.") from error
    except errors.RevisionNotFoundError as error:
        raise TwohopError(f"{REPO} has no such revision; leave it out, or {local}.") from error
    except Exception as error:  # the hub's client changes which it raises when offline
        raise TwohopError(
            f"{REPO} cannot be fetched ({type(error).__name__}): there is no network, or the hub "
            f"does not answer; try again, or {local}."
        ) from error

"""PopVQA (Cohen et al. 2025, arXiv 2412.14133), read as it is published.

``idoco/PopVQA`` on the Hugging Face hub, or a local copy of it: ``entities.csv``,
``questions.csv`` and the pictures that ``resized_path`` leads to, joined on ``s_uri`` and
``subject``. What follows the paper: pictures fitted into 336 by 336 pixels on black, and the four
identify prompts. What does not: questions that give a name or an answer away, and questions with
a yes-or-no answer, are left out, and each filter says how many it took. The celebrities'
photographs carry rights of their own; they are read here and never shipped.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd
from PIL import Image

from twohop_lib.benchmark import download, pictures, rows
from twohop_lib.benchmark.schema import Benchmark, Material, Question, funnel
from twohop_lib.benchmark.store import Problem
from twohop_lib.benchmark.table import LISTED, stored, with_distractors
from twohop_lib.errors import TwohopError, suggest
from twohop_lib.scoring.leaks import leaks, words

REPO = "idoco/PopVQA"
ENTITIES, QUESTIONS = "entities.csv", "questions.csv"
SIDE = 336  # pixels
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


class NoNetwork(TwohopError):
    """The hub did not answer."""


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
    files = _Local(Path(source)) if source else _Hub(revision or "main")
    problems: dict[str, list[Problem]] = {ENTITIES: [], QUESTIONS: []}
    known = _read_entities(files.table(ENTITIES), problems[ENTITIES].append)
    asked = _read_questions(files.table(QUESTIONS), known, problems[QUESTIONS].append)
    if not skip_bad:
        for name, found in problems.items():
            if found:
                raise rows.BadTable(files.table(name), sorted(found))
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
    if skip_bad:
        asked = _with_pictures(asked, by_id, files, problems[ENTITIES])
        steps.append(_step("pictures that can be read", asked))
    if not asked:
        raise TwohopError(
            f"{source or files.where} has no question that passes every filter; see its rows."
        )
    return Material(
        tuple(with_distractors(asked, seed)),
        lambda entity_id: letterbox(files.picture(by_id[entity_id].image)),
        funnel(steps),
        _notes(files.where, problems),
    )


def without_blind_solvable(benchmark: Benchmark, answers: pd.DataFrame) -> Benchmark:
    """Leave out questions that a model answered rightly with a blank picture.

    ``answers`` are records of a run: columns ``question_id, condition, correct``.
    """
    blind = answers[(answers["condition"] == "blank_by_picture") & answers["correct"]]
    solved = set(blind["question_id"])
    kept = tuple(q for q in benchmark.questions if q.question_id not in solved)
    return replace(benchmark, questions=kept)


def _notes(where: str, problems: dict[str, list[Problem]]) -> dict:
    found = [f"{name}, {p}" for name, listed in problems.items() for p in sorted(listed)]
    skipped = {(name, p.row) for name, listed in problems.items() for p in listed}
    return {"read from": where, "skipped rows": len(skipped), "skipped": found[:LISTED]}


def _step(name: str, asked: Iterable[Question]) -> tuple[str, int, int]:
    asked = list(asked)
    return name, len(_ids(asked)), len(asked)


def _ids(asked: Iterable[Question]) -> set[str]:
    return {q.entity_id for q in asked}


# --- the two tables --------------------------------------------------------------------------


def _read_entities(file: Path, report: rows.Report) -> dict[tuple[str, str], Entity]:
    found: dict[tuple[str, str], Entity] = {}
    ids: dict[str, int] = {}
    for number, cells in rows.read(file, OF_ENTITIES, report):
        blank = next((c for c in OF_ENTITIES if c != "aliases" and not cells[c].strip()), None)
        if blank:
            report(Problem(number, blank, "is empty; fill it in"))
            continue
        kind = cells["type"].strip()
        if kind not in TYPES:
            report(Problem(number, "type", f"{kind!r} is unknown; use {', '.join(TYPES)}"))
            continue
        try:
            aliases = rows.as_list(cells["aliases"])
        except ValueError as error:
            report(Problem(number, "aliases", str(error)))
            continue
        uri, name, image = (cells[c].strip() for c in ("s_uri", "subject", "resized_path"))
        others = tuple(dict.fromkeys(a for a in aliases if a != name))
        entity = Entity(uri, name, others, kind, image, number)
        before = ids.setdefault(entity.stored.casefold(), number)
        if before != number:
            report(Problem(number, "s_uri", f"{uri!r} is used in row {before} already"))
            continue
        found[uri, name] = entity
    return found


def _read_questions(
    file: Path, known: dict[tuple[str, str], Entity], report: rows.Report
) -> list[Question]:
    found: list[Question] = []
    counts: dict[str, int] = defaultdict(int)
    for number, cells in rows.read(file, OF_QUESTIONS, report, ("r_uri",)):
        needed = ("s_uri", "subject", "question", "question_for_image")
        blank = next((c for c in needed if not cells[c].strip()), None)
        if blank:
            report(Problem(number, blank, "is empty; fill it in"))
            continue
        entity = known.get((cells["s_uri"].strip(), cells["subject"].strip()))
        if entity is None:
            report(Problem(number, "s_uri", f"{cells['s_uri']!r} with this subject is no entity"))
            continue
        try:
            answers = tuple(dict.fromkeys(rows.as_list(cells["possible_answers"])))
        except ValueError as error:
            report(Problem(number, "possible_answers", str(error)))
            continue
        if not answers:
            report(Problem(number, "possible_answers", "is empty; give at least one"))
            continue
        counts[entity.entity_id] += 1
        found.append(_question(entity, cells, answers, counts[entity.entity_id]))
    return found


def _question(entity: Entity, cells: rows.Cells, answers: tuple[str, ...], number: int) -> Question:
    noun, identify = TYPES[entity.kind]
    by_name = cells["question"].strip()
    # The relation's own column is likely there; the template says the same.
    relation = str(cells.get("r_uri", "")).rstrip("/").rsplit("/", 1)[-1]
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
        question_by_picture=cells["question_for_image"].strip(),
        identify_prompt=identify,
        answers=answers,
        distractors=(),
        image=entity.stored,
        split="",
    )


# --- filters ---------------------------------------------------------------------------------


def _names(question: Question, text: str) -> str | None:
    return leaks(text, [question.entity, *question.aliases])


def _is_open(question: Question) -> bool:
    """Neither yes or no, nor a choice between two things that the question itself offers."""
    if all(words(a) in _YES_NO for a in question.answers):
        return False
    first, *rest = re.split(r"\bor\b", question.question_by_picture, maxsplit=1)
    return not (rest and leaks(first + " " + rest[0], question.answers))


def _holds_no_answer(question: Question) -> bool:
    telling = [a for a in question.answers if len(a.strip()) > 1]
    asked = (question.question_by_name, question.question_by_picture, question.identify_prompt)
    return not any(leaks(text, telling) for text in asked[:2])


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
    asked: list[Question], by_id: dict[str, Entity], files: _Local | _Hub, problems: list[Problem]
) -> list[Question]:
    bad = set()
    for entity_id in sorted(_ids(asked)):
        try:
            files.picture(by_id[entity_id].image)
        except TwohopError as error:
            bad.add(entity_id)
            what = f"{entity_id}: {str(error).removesuffix('.')}".replace(files.prefix, "")
            problems.append(Problem(by_id[entity_id].row, "resized_path", what))
    return [q for q in asked if q.entity_id not in bad]


# --- where the files are ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Local:
    """A local copy."""

    folder: Path

    def __post_init__(self) -> None:
        if not is_copy(self.folder):
            raise TwohopError(
                f"{self.folder} is no copy of PopVQA; it needs {ENTITIES} and {QUESTIONS}."
            )

    @property
    def where(self) -> str:
        # Not its path: that would make the same copy's bytes differ from place to place.
        digests = (download.file_sha256(self.folder / t)[:12] for t in (ENTITIES, QUESTIONS))
        return f"a local copy ({', '.join(digests)})"

    @property
    def prefix(self) -> str:
        """What paths begin with that would differ from place to place."""
        return f"{self.folder.resolve()}{os.sep}"

    def table(self, name: str) -> Path:
        return self.folder / name

    def picture(self, image: str) -> Image.Image:
        return pictures.read(self._locate(image))

    def _locate(self, image: str) -> Path:
        inside = self.folder.resolve()

        def there(path: str) -> bool:
            file = inside / path
            return os.path.isfile(file) and file.resolve().is_relative_to(inside)

        path = _found(image, there, self._by_name)
        if path is None:
            raise TwohopError(f"{inside / image} does not exist; put the picture there.")
        return inside / path

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        inside = self.folder.resolve()
        files = (p for p in inside.rglob("*") if p.is_file() and not p.is_symlink())
        return _grouped(p.relative_to(inside).as_posix() for p in files)


@dataclass(frozen=True)
class _Hub:
    """The data set on the hub, whose own cache keeps what was fetched."""

    revision: str
    prefix = ""

    @property
    def where(self) -> str:
        return f"{REPO} at {self.commit[:12]}"

    @cached_property
    def _listed(self) -> tuple[str, frozenset[str]]:
        """The commit, and the files at it; without a network, those fetched earlier."""
        from huggingface_hub import HfApi

        try:
            found = _ask(
                lambda: HfApi(endpoint=_endpoint()).dataset_info(REPO, revision=self.revision)
            )
        except NoNetwork:
            if (kept := self._kept()) is None:
                raise
            return kept.name, frozenset(
                p.relative_to(kept).as_posix() for p in kept.rglob("*") if p.is_file()
            )
        return found.sha, frozenset(s.rfilename for s in found.siblings or ())

    def _kept(self) -> Path | None:
        """The folder of what the hub's cache holds of this revision."""
        from huggingface_hub import errors, snapshot_download

        try:
            kept = Path(
                snapshot_download(
                    REPO, repo_type="dataset", revision=self.revision, local_files_only=True
                )
            )
        except (errors.LocalEntryNotFoundError, OSError):
            return None
        return kept if is_copy(kept) else None

    @property
    def commit(self) -> str:
        return self._listed[0]

    def table(self, name: str) -> Path:
        # By the name that was asked for: so the cache remembers which commit it stood for.
        return self._file(name, self.revision)

    def picture(self, image: str) -> Image.Image:
        path = _found(image, self._listed[1].__contains__, self._by_name)
        return pictures.read(self._file(path or image, self.commit))

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        return _grouped(self._listed[1])

    def _file(self, name: str, revision: str) -> Path:
        from huggingface_hub import hf_hub_download

        if name not in self._listed[1]:
            raise TwohopError(f"{REPO} has no file {name!r}; give a local copy with --source.")
        return _checked(
            _ask(
                lambda: hf_hub_download(
                    REPO, name, repo_type="dataset", revision=revision, endpoint=_endpoint()
                )
            )
        )


def _grouped(files: Iterable[str]) -> dict[str, list[str]]:
    """Files by their names without folders."""
    found: dict[str, list[str]] = defaultdict(list)
    for file in sorted(files):
        found[Path(file).name].append(file)
    return found


def _found(image: str, there: Callable[[str], bool], by_name: dict[str, list[str]]) -> str | None:
    """The path of a picture in the data set, or None.

    Paths of the machine that made the table are shortened to fit; where none does, the file's
    name alone will do if it is the only one. Of several, taking any would show another entity.

    Raises:
        TwohopError: several files have the name.
    """
    parts = [p for p in image.replace("\\", "/").split("/") if p not in ("", ".")]
    ends = ("/".join(parts[i:]) for i in range(len(parts)))
    if path := next(filter(there, ends), None):
        return path
    named = by_name.get(parts[-1], []) if parts else []
    if len(named) > 1:
        raise TwohopError(f"{image} may be {named[0]} or {named[1]}; name its folder too.")
    return named[0] if named else None


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _ask(call: Callable):
    """Call the hub; whatever goes wrong is told in one sentence."""
    from huggingface_hub import errors

    local = "give a local copy with --source"
    try:
        return call()
    except errors.GatedRepoError as error:
        raise TwohopError(f"{REPO} asks for a login; run: hf auth login, or {local}.") from error
    except errors.RepositoryNotFoundError as error:
        raise TwohopError(f"{REPO} is not on the hub any more; {local}.") from error
    except errors.RevisionNotFoundError as error:
        raise TwohopError(f"{REPO} has no such revision; leave it out, or {local}.") from error
    except Exception as error:  # the hub's client changes which it raises when offline
        raise NoNetwork(
            f"{REPO} cannot be fetched ({type(error).__name__}): there is no network, or the hub "
            f"does not answer; try again, or {local}."
        ) from error


def _checked(path: str) -> Path:
    """A fetched file whose cache entry is named by its SHA-256, as large ones are, is compared."""
    blob = Path(path).resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name) and download.file_sha256(blob) != blob.name:
        blob.unlink()
        raise TwohopError(f"{path} came damaged and was removed; run the same command again.")
    return Path(path)

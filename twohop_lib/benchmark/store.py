"""A benchmark on disk: ``questions.parquet``, ``images/``, ``benchmark.json``.

Writing is atomic and gives the same bytes for the same content. Loading validates everything and
says which file, row (counted from 1) and column is wrong.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import twohop_lib
from twohop_lib.benchmark import pictures
from twohop_lib.benchmark.schema import COLUMNS, LIST_COLUMNS, SPLITS, Benchmark, Question
from twohop_lib.errors import TwohopError
from twohop_lib.scoring.leaks import leaks, words

TABLE, PICTURES, ABOUT = "questions.parquet", "images", "benchmark.json"
_MAY_BE_EMPTY = ("split", "aliases", "distractors")
# What belongs to the entity, so has to be the same in all of its rows.
_OF_THE_ENTITY = ("entity", "noun", "split")

SCHEMA = pa.schema(
    [
        (column, pa.list_(pa.string()) if column in LIST_COLUMNS else pa.string())
        for column in COLUMNS
    ]
)


# --- writing ---------------------------------------------------------------------------------


def write(
    questions: Iterable[Question],
    picture: Callable[[str], Image.Image] | Mapping[str, Image.Image],
    out: Path,
    name: str,
    seed: int,
    notes: Mapping[str, Any] | None = None,
) -> Benchmark:
    """Write a benchmark to ``out``; ``picture`` gives each entity's picture, by its id.

    ``notes`` (JSON) are kept beside it. Pictures are asked for as they are written, a few at a
    time, each in a thread of its own. A benchmark that is already there is replaced, at once and
    only when the new one is complete.

    Raises:
        TwohopError: a row is wrong, a picture is missing, or ``out`` holds anything that is not a
            benchmark's.
    """
    out, questions = Path(out), tuple(questions)
    _refuse_foreign(out)
    rows = [{c: getattr(q, c) for c in COLUMNS} for q in questions]
    _raise_first(f"Benchmark {name}", row_problems(enumerate(rows, start=1)))
    owners = _picture_owners(questions)
    target = out.resolve()
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process that had this one's number
    try:
        (partial / PICTURES).mkdir(parents=True)
        _save_pictures(owners, picture, partial)
        columns = {c: [list(r[c]) if c in LIST_COLUMNS else r[c] for r in rows] for c in COLUMNS}
        pq.write_table(pa.table(columns, schema=SCHEMA), partial / TABLE, compression="zstd")
        about = _about(questions, name, seed) | ({"notes": dict(notes)} if notes else {})
        text = json.dumps(about, indent=2, sort_keys=True, ensure_ascii=False)
        (partial / ABOUT).write_text(text + "\n", encoding="utf-8")
        _replace(partial, target)
    except OSError as error:
        raise TwohopError(
            f"{out} cannot be written ({error.strerror or error}); choose another folder."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Benchmark(name, seed, questions, out, dict(notes or {}))


def _refuse_foreign(out: Path) -> None:
    """Replacing deletes the folder, so it may hold nothing but a benchmark's own files."""
    if not os.path.exists(out):  # unlike Path.exists, false too for what may not be looked at
        return
    if not out.is_dir():
        raise TwohopError(f"{out} is a file; choose a folder to write the benchmark to.")
    try:
        held = {entry.name for entry in out.iterdir()}
    except OSError as error:
        raise TwohopError(f"{out} cannot be read ({error.strerror}); choose another.") from error
    if held and not {TABLE, ABOUT} <= held:
        raise TwohopError(
            f"{out} exists and holds something other than a benchmark; choose another folder."
        )
    if foreign := sorted(held - {TABLE, ABOUT, PICTURES}) or _foreign_pictures(out):
        raise TwohopError(
            f"{out / foreign[0]} would be deleted by writing the benchmark again; move it, or "
            "choose another folder."
        )


def _foreign_pictures(out: Path) -> list[str]:
    """Files among a benchmark's pictures that its table does not name."""
    try:
        known = set(pq.read_table(out / TABLE, columns=["image"])["image"].to_pylist())
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return []  # a damaged benchmark may be replaced
    files = (p for p in (out / PICTURES).rglob("*") if not p.is_dir())
    return sorted({p.relative_to(out).as_posix() for p in files} - known)


def _picture_owners(questions: tuple[Question, ...]) -> dict[str, str]:
    """Image path -> id of the entity it shows."""
    owners: dict[str, str] = {}
    folded: dict[str, str] = {}  # some file systems ignore case
    for q in questions:
        file = Path(q.image)
        if file.is_absolute() or ".." in file.parts or file.parts[0] != PICTURES:
            raise TwohopError(f"Image {q.image!r} must lie in {PICTURES}/; change its path.")
        if folded.setdefault(q.image.casefold(), q.entity_id) != q.entity_id:
            raise TwohopError(
                f"Image {q.image!r} belongs to two entities, {folded[q.image.casefold()]!r} and "
                f"{q.entity_id!r}; give each its own."
            )
        owners.setdefault(q.image, q.entity_id)
    return owners


def _picture_of(
    picture: Callable[[str], Image.Image] | Mapping[str, Image.Image], entity_id: str
) -> Image.Image:
    if not isinstance(picture, Mapping):
        return picture(entity_id)
    if entity_id not in picture:
        raise TwohopError(f"Entity {entity_id!r} has no picture; give one.")
    return picture[entity_id]


def _save_pictures(
    owners: Mapping[str, str],
    picture: Callable[[str], Image.Image] | Mapping[str, Image.Image],
    folder: Path,
) -> None:
    """Decoding and packing run beside one another; at any time a few pictures are in memory."""

    def save(owned: tuple[str, str]) -> None:
        image, entity_id = owned
        _save_picture(_picture_of(picture, entity_id), folder / image)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        try:
            for _ in pool.map(save, owners.items()):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _save_picture(picture: Image.Image, file: Path) -> None:
    """Pixels alone: colour profiles and other notes would make the bytes depend on the source."""
    file.parent.mkdir(parents=True, exist_ok=True)
    bare = picture.mode == "RGB" and not picture.info  # a copy may be 200 MB
    plain = picture if bare else picture.convert("RGB")
    plain.info = {}
    plain.save(file, format="PNG", compress_level=6)


def _about(questions: tuple[Question, ...], name: str, seed: int) -> dict:
    return {
        "name": name,
        "seed": seed,
        "noun": sorted({q.noun for q in questions}),
        "entities": len({q.entity_id for q in questions}),
        "questions": len(questions),
        "versions": {
            "twohop": twohop_lib.__version__,
            "pillow": PIL.__version__,
            "pyarrow": pa.__version__,
        },
    }


def _replace(partial: Path, target: Path) -> None:
    if not target.exists():
        partial.rename(target)
        return
    old = partial.with_name(f".{target.name}.{os.getpid()}.old.partial")
    target.rename(old)
    try:
        partial.rename(target)
    except BaseException:  # also when it is interrupted
        if not target.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


# --- reading ---------------------------------------------------------------------------------


def load(folder: Path) -> Benchmark:
    """Read and validate a benchmark. Columns beyond those of a question are ignored.

    Raises:
        TwohopError: naming file, row and column of the first thing that is wrong, and how many
            more there are.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise TwohopError(
            f"{folder} is not a folder; give one made by: twohop benchmark build NAME --out DIR"
        )
    about = _read_about(folder / ABOUT)
    rows = _read_rows(folder / TABLE)
    numbered = list(enumerate(rows, start=1))
    problems = chain(row_problems(numbered), _picture_problems(numbered, folder))
    _raise_first(str(folder / TABLE), problems)
    questions = tuple(
        Question(**{c: tuple(r[c] or ()) if c in LIST_COLUMNS else r[c] or "" for c in COLUMNS})
        for r in rows
    )
    return Benchmark(about["name"], about["seed"], questions, folder, about["notes"])


#: Characters of a problem that are shown; a cell in it may be a million long.
_SHOWN = 400


class Problem(NamedTuple):
    """What is wrong with one cell; ``row`` counts from 1."""

    row: int
    column: str
    what: str

    def __str__(self) -> str:
        what = "".join(c if c.isprintable() else repr(c)[1:-1] for c in self.what[: 2 * _SHOWN])
        if len(what) > _SHOWN:
            what = f"{what[: _SHOWN // 2]} … {self.what[-_SHOWN // 2 :]}"
        return f"row {self.row}, column {self.column[:80]!r}: {what}"


def _raise_first(where: str, problems: Iterator[Problem]) -> None:
    first = next(problems, None)
    if first is None:
        return
    more = sum(1 for _ in problems)
    raise TwohopError(f"{where}, {first}" + (f" (and {more} more)" if more else ""))


def _read_about(file: Path) -> dict:
    wanted = 'it must hold {"name": "…", "seed": 0}'
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise TwohopError(f"{file} is no file; {wanted}.")
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TwohopError(f"{file} does not exist; {wanted}.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise TwohopError(f"{file} is not readable JSON; {wanted}.") from error
    name, seed = (about.get(k) if isinstance(about, dict) else None for k in ("name", "seed"))
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise TwohopError(f"{file} gives no 'name'; {wanted}.")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TwohopError(f"{file} gives no whole number as 'seed'; {wanted}.")
    notes = about.get("notes")
    return {"name": name, "seed": seed, "notes": notes if isinstance(notes, dict) else {}}


def _read_rows(file: Path) -> list[dict]:
    if not file.is_file():
        raise TwohopError(f"{file} does not exist; put the table of questions there.")
    try:
        with pq.ParquetFile(file) as parquet:
            _check_columns(file, parquet.schema_arrow)
            table = parquet.read(columns=list(COLUMNS))
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise TwohopError(f"{file} is not a readable Parquet file; write it again.") from error
    if not table.num_rows:
        raise TwohopError(f"{file} has no rows; it needs one per question.")
    return table.select(COLUMNS).to_pylist()


def _check_columns(file: Path, schema: pa.Schema) -> None:
    for column in COLUMNS:
        count = schema.names.count(column)
        if count == 0:
            raise TwohopError(
                f"{file}, column {column!r}: is missing; add it (needed: {', '.join(COLUMNS)})."
            )
        if count > 1:
            raise TwohopError(f"{file}, column {column!r}: is there {count} times; keep one.")
        kind = schema.field(column).type
        fits = _is_list_of_text if column in LIST_COLUMNS else _is_text
        if not fits(kind):
            wanted = "a list of texts" if column in LIST_COLUMNS else "text"
            raise TwohopError(f"{file}, column {column!r}: holds {kind}; store {wanted} instead.")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):  # what pandas writes for categories
        kind = kind.value_type
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    # Arrow's type for a column without a single value; rows say whether that is allowed.
    return pa.types.is_null(kind) or any(is_text(kind) for is_text in texts)


def _is_list_of_text(kind: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return pa.types.is_null(kind) or any(f(kind) and _is_text(kind.value_type) for f in lists)


# --- what can be wrong with a row ------------------------------------------------------------


def row_problems(rows: Iterable[tuple[int, dict]]) -> Iterator[Problem]:
    """Everything that is wrong with rows (each with its number), except for their pictures."""
    rows = list(rows)
    ids: dict[str, int] = {}
    entities: dict[str, tuple[int, dict]] = {}
    # An alias that one row gives must not stand in another row's question either.
    names: dict[str, dict[str, None]] = defaultdict(dict)
    for _, row in rows:
        names[row["entity_id"]] |= dict.fromkeys(n for n in _names(row) if n and n.strip())
    for number, row in rows:
        faults = list(_blank_cells(row))
        if not faults:  # the other checks need every cell
            faults += _repeats(row, number, ids, entities)
            faults += _contradictions(row, list(names[row["entity_id"]]))
        for column, what in faults:
            yield Problem(number, column, what)


def _blank_cells(row: dict) -> Iterator[tuple[str, str]]:
    for column in COLUMNS:
        value = row[column]
        if column in LIST_COLUMNS:
            if any(v is None or not v.strip() for v in value or ()):
                yield column, "has a blank entry; remove it"
            elif not value and column not in _MAY_BE_EMPTY:
                yield column, "is an empty list; give at least one"
        elif column not in _MAY_BE_EMPTY and (value is None or not value.strip()):
            yield column, "is empty; fill it in"


def _repeats(
    row: dict, number: int, ids: dict[str, int], entities: dict[str, tuple[int, dict]]
) -> Iterator[tuple[str, str]]:
    before = ids.setdefault(row["question_id"], number)
    if before != number:
        what = f"{row['question_id']!r} is used in row {before} already; make it unique"
        yield "question_id", what
    before, first = entities.setdefault(row["entity_id"], (number, row))
    for column in _OF_THE_ENTITY:
        if (row[column] or "") != (first[column] or ""):
            yield (
                column,
                f"is {row[column]!r} but {first[column]!r} in row {before} for the same entity "
                f"{row['entity_id']!r}; make them equal",
            )


def _names(row: dict) -> list[str]:
    return [row["entity"], *(row["aliases"] or ())]


def _contradictions(row: dict, names: list[str]) -> Iterator[tuple[str, str]]:
    if (row["split"] or "") not in SPLITS:
        known = ", ".join(map(repr, SPLITS))
        yield "split", f"{row['split']!r} is unknown; use one of {known}"
    given_away = False
    for column in ("question_by_picture", "identify_prompt", "noun"):
        # The noun is asked for too ("First name the bridge"), and mostly stands in the others.
        if (column != "noun" or not given_away) and (leaked := leaks(row[column], names)):
            given_away = True
            yield column, f"gives the name {leaked!r} away; refer to the picture instead"
    if not leaks(row["question_by_name"], _names(row)):
        yield "question_by_name", f"does not name {row['entity']!r}; name the entity in it"
    accepted = {words(a) or a for a in row["answers"]}
    for wrong in row["distractors"] or ():
        if (words(wrong) or wrong) in accepted:
            yield "distractors", f"{wrong!r} is an accepted answer too; remove it from one of them"
            break
        if leaked := leaks(wrong, names):
            yield "distractors", f"{wrong!r} gives the name {leaked!r} away; give another"
            break
    # A single sign ("a", "7") stands in many a question without giving anything away.
    telling = [a for a in row["answers"] if len(a.strip()) > 1]
    for column in ("question_by_name", "question_by_picture"):
        if given := leaks(row[column], telling):
            yield column, f"gives the answer {given!r} away; reword it or drop the question"


def _picture_problems(rows: Iterable[tuple[int, dict]], folder: Path) -> Iterator[Problem]:
    seen: set[str] = set()
    inside = folder.resolve()
    for number, row in rows:
        image = row["image"]
        if image and image.strip() and image not in seen:
            seen.add(image)
            if what := picture_fault(inside, image):
                yield Problem(number, "image", what)


def picture_fault(folder: Path, image: str) -> str | None:
    """What is wrong with the picture at a path relative to ``folder``, which it must not leave."""
    try:
        file = (folder / image).resolve()
    except (OSError, ValueError, RuntimeError):  # a null byte, an endless name, a loop of links
        return f"{image!r} is not a usable path; correct it"
    if not file.is_relative_to(folder):
        return f"{image!r} lies outside the benchmark's folder; move the picture into it"
    try:
        if not file.is_file():
            return f"{image!r} does not exist; put the picture there"
        pictures.read(file)
    except OSError:
        return f"{image!r} is not a usable path; correct it"
    except TwohopError as error:
        return str(error).removesuffix(".").replace(str(file), repr(image), 1)
    return None

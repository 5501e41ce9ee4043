"""A benchmark on disk: ``questions.parquet``, ``images/``, ``benchmark.json``.

Writing is atomic and gives the same bytes for the same content. Loading validates everything and
says which file, row (counted from 1) and column is wrong.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pydantic import BaseModel, StrictInt, StrictStr, ValidationError, field_validator

import twohop_lib
from twohop_lib.benchmark import cells
from twohop_lib.benchmark.faults import (
    BadTable,
    Problem,
    picture_faults,
    question_faults,
    unfit,
)
from twohop_lib.benchmark.schema import COLUMNS, LIST_COLUMNS, Benchmark, Question
from twohop_lib.errors import TwohopError

TABLE, PICTURES, ABOUT = "questions.parquet", "images", "benchmark.json"
SCHEMA = pa.schema(
    [(c, pa.list_(pa.string()) if c in LIST_COLUMNS else pa.string()) for c in COLUMNS]
)


# --- writing -----------------------------------------------------------------------------------


def write(
    questions: Iterable[Question],
    picture: Callable[[str], Image.Image | Path],
    out: Path,
    name: str,
    seed: int,
    notes: Mapping[str, Any] | None = None,
) -> Benchmark:
    """Write a benchmark to ``out``; ``picture`` gives each entity's picture, by its id.

    A picture that is a file is copied as it is, any other is stored as PNG; they are asked for as
    they are written, a few at a time, each in a thread of its own. ``notes`` (JSON) are kept
    beside them. A benchmark that is already there is replaced, at once and only when the new one
    is complete.

    Raises:
        TwohopError: questions contradict themselves, or ``out`` holds anything that is not a
            benchmark's.
    """
    out, questions = Path(out), tuple(questions)
    _refuse_foreign(out)
    if problems := list(question_faults(enumerate(questions, start=1))):
        raise BadTable(f"Benchmark {name}", problems)
    owners = _owners(questions)
    target = out.resolve()
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process that had this one's number
    try:
        (partial / PICTURES).mkdir(parents=True)
        _save_pictures(owners, picture, partial)
        columns = {c: [getattr(q, c) for q in questions] for c in COLUMNS}
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
    held = {p.relative_to(out).as_posix() for p in out.rglob("*") if not p.is_dir()}
    own: set[str] = set()
    if {TABLE, ABOUT} <= held:
        try:
            images = pq.read_table(out / TABLE, columns=["image"])["image"].to_pylist()
        except (pa.ArrowException, OSError, ValueError, KeyError):  # what is damaged may go
            images = [file for file in held if file.startswith(PICTURES)]
        own = {TABLE, ABOUT, *images}
    if foreign := sorted(held - own):
        raise TwohopError(
            f"{out / foreign[0]} would be deleted by writing a benchmark there; move it, or "
            "choose another folder."
        )


def _owners(questions: tuple[Question, ...]) -> dict[str, str]:
    """Image path -> id of the entity it shows."""
    folded: dict[str, str] = {}  # some file systems ignore case
    for q in questions:
        if not re.fullmatch(rf"{PICTURES}/[^/\\]+", q.image):
            raise TwohopError(f"Image {q.image!r} must lie in {PICTURES}/; change its path.")
        other = folded.setdefault(q.image.casefold(), q.entity_id)
        if other != q.entity_id:
            raise TwohopError(
                f"Image {q.image!r} is of {other!r} and of {q.entity_id!r}; part them."
            )
    return {q.image: q.entity_id for q in questions}


def _save_pictures(
    owners: Mapping[str, str], picture: Callable[[str], Image.Image | Path], folder: Path
) -> None:
    """Decoding and packing run beside one another; at any time a few pictures are in memory."""

    def save(owned: tuple[str, str]) -> None:
        file, made = folder / owned[0], picture(owned[1])
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(made, Path):
            shutil.copyfile(made, file)
            return
        # Pixels alone: colour profiles and other notes would make the bytes depend on the source.
        bare = made.mode == "RGB" and not made.info  # a copy may be 200 MB
        plain = made if bare else made.convert("RGB")
        plain.info = {}
        plain.save(file, format="PNG", compress_level=6)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        try:
            for _ in pool.map(save, owners.items()):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _about(questions: tuple[Question, ...], name: str, seed: int) -> dict[str, Any]:
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


# --- reading -----------------------------------------------------------------------------------


class _About(BaseModel):
    """What ``benchmark.json`` has to say."""

    name: StrictStr
    seed: StrictInt
    notes: dict[str, Any] = {}

    @field_validator("name")
    @classmethod
    def _shown(cls, name: str) -> str:
        assert name.strip() and name.isprintable()
        return name


def load(folder: Path) -> Benchmark:
    """Read and validate a benchmark. Columns beyond those of a question are ignored.

    Raises:
        BadTable: rows or pictures have problems, each told by row and column.
        TwohopError: a file is missing or damaged, or lacks a column.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise TwohopError(
            f"{folder} is not a folder; give one made by: twohop benchmark build NAME --out DIR"
        )
    about, file = _read_about(folder / ABOUT), folder / TABLE
    problems: list[Problem] = []
    rows = []
    for number, row in cells.read(file, COLUMNS, problems.append):
        try:
            lists = {c: row[c] or () for c in LIST_COLUMNS}
            rows.append((number, Question(**{**row, **lists})))
        except ValidationError as error:
            problems += [Problem(number, *fault) for fault in unfit(error)]
    problems += question_faults(rows)
    faults = picture_faults(folder, (q.image for _, q in rows))
    for number, q in rows:
        if what := faults.pop(q.image, None):  # told once
            problems.append(Problem(number, "image", what))
    if problems:
        raise BadTable(file, problems)
    if not rows:
        raise TwohopError(f"{file} has no rows; it needs one per question.")
    return Benchmark(about.name, about.seed, tuple(q for _, q in rows), folder, about.notes)


def _read_about(file: Path) -> _About:
    wanted = 'it must hold {"name": "…", "seed": 0}'
    if not file.is_file():  # a pipe would be waited for
        raise TwohopError(f"There is no file {file}; {wanted}.")
    try:
        return _About.model_validate_json(file.read_bytes())
    except ValidationError as error:
        where = error.errors()[0]["loc"]
        what = f"gives no usable {where[0]!r}" if where else "is not readable JSON"
        raise TwohopError(f"{file} {what}; {wanted}.") from error
    except OSError as error:
        raise TwohopError(f"{file} cannot be read ({error.strerror}); {wanted}.") from error

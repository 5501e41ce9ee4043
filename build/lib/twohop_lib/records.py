"""What a run leaves behind: tidy answer records and the manifest that says how they came about.

Answer records are one row per item and condition, in Parquet. Every reader and writer goes
through one schema, so that a record made on a reader's GPU is read by the book without guessing.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from twohop_lib.errors import TwohopError, suggest

#: Condition -> what the model was given. ``identify`` and ``llm_identify`` have one row per entity,
#: the others one per question. The ``llm_`` ones are answered by the text backbone, all others by
#: the VLM. ``llm_identify`` occurs in sweeps alone.
CONDITIONS: dict[str, str] = {
    "identify": "picture; name the entity",
    "llm_identify": "no picture; the prompt gives the name and asks for it; the backbone answers",
    "llm_by_name": "no picture; the question names the entity; the backbone answers",
    "by_name": "no picture; the question names the entity",
    "by_picture": "picture; the question points at it",
    "blank_by_name": "blank picture; the question names the entity",
    "blank_by_picture": "blank picture; the question points at it",
    "full_information": "picture; the question names the entity",
    "name_first": "picture; name the entity, then answer",
    "name_given": "picture; the answer starts with the right name",
    "neutral": "picture; the answer starts with a sentence that names nothing",
    "choice_by_name": "no picture; the question names the entity; four choices",
    "choice_by_picture": "picture; the question points at it; four choices",
}

#: Columns of an answer record. ``relation`` and ``question_id`` are empty strings for ``identify``;
#: ``intervention`` alone may be null, and is so where the run was left alone: else it names the
#: experiment that changed it.
ANSWER_SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("seed", pa.int64()),
        ("entity_id", pa.string()),
        ("entity", pa.string()),
        ("relation", pa.string()),
        ("question_id", pa.string()),
        ("wording", pa.string()),
        ("condition", pa.string()),
        ("intervention", pa.string()),
        ("answer", pa.string()),
        ("accepted", pa.list_(pa.string())),
        ("correct", pa.bool_()),
    ]
)

#: What makes an answer record unique: these, and those of the sites' columns that a frame has.
ANSWER_KEY = ("model", "seed", "wording", "condition", "intervention", "entity_id", "question_id")
#: Columns that say what was shown in which form, and where, how and with what a run was changed.
SITE_COLUMNS = (
    *("view", "format", "donor_id", "layer", "until", "part", "edge", "mode", "start", "stop"),
    *("method", "source", "arm", "state"),
)

_META_KEY = b"twohop"


def untouched(frame: pd.DataFrame) -> pd.DataFrame:
    """The answer records of runs that were left alone: what a model's accuracy is counted on."""
    return frame[frame["intervention"].isna()]


def validate(frame: pd.DataFrame) -> pa.Table:
    """Return answer records as a table in the schema, or raise TwohopError saying what is wrong.

    Columns beyond the schema (a log-probability, a layer) are kept, after the schema's own. No two
    records may agree in all of :data:`ANSWER_KEY` and :data:`SITE_COLUMNS`.
    """
    missing = [name for name in ANSWER_SCHEMA.names if name not in frame.columns]
    if missing:
        raise TwohopError(f"Answer records lack the column(s) {', '.join(missing)}.")
    arrays = [_column(frame[field.name], field) for field in ANSWER_SCHEMA]
    table = pa.Table.from_arrays(arrays, schema=ANSWER_SCHEMA)
    for name in frame.columns:
        if name not in ANSWER_SCHEMA.names:
            try:
                table = table.append_column(str(name), pa.array(frame[name], from_pandas=True))
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise TwohopError(
                    f"The extra column {name!r} mixes types; give each column one type."
                ) from error
    for condition in table["condition"].unique().to_pylist():
        if condition not in CONDITIONS:
            raise TwohopError(f"Unknown condition {condition!r}: {suggest(condition, CONDITIONS)}.")
    _refuse_duplicates(frame)
    return table


def write(frame: pd.DataFrame, path: str | Path, meta: Mapping[str, Any] | None = None) -> None:
    """Validate answer records and write them, whole or not at all.

    ``meta`` (anything JSON can hold) travels inside the file. The same frame and meta give the
    same bytes.
    """
    _write_table(validate(frame), path, meta)


def read(path: str | Path) -> pd.DataFrame:
    """Read and validate answer records; ``accepted`` holds lists of str. See :func:`read_meta`."""
    frame = read_frame(path)
    try:
        validate(frame)
    except TwohopError as error:
        raise TwohopError(f"{path} holds no valid answer records: {error}") from error
    return frame


def write_frame(
    frame: pd.DataFrame, path: str | Path, meta: Mapping[str, Any] | None = None
) -> None:
    """Write any tidy frame (a sweep's records, say) with ``meta``, whole or not at all."""
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise TwohopError(f"{path} was not written: a column mixes types ({error}).") from error
    _write_table(table, path, meta)


def read_frame(path: str | Path) -> pd.DataFrame:
    """Read a frame that :func:`write` or :func:`write_frame` wrote; list columns hold lists."""
    table = _read_table(path)
    frame = table.to_pandas()
    for field in table.schema:
        if pa.types.is_list(field.type):
            frame[field.name] = pd.Series(table[field.name].to_pylist(), dtype=object)
    return frame


def read_meta(path: str | Path) -> dict[str, Any]:
    """Return the ``meta`` that was written into a record file ({} if there was none)."""
    _existing(path)
    try:
        stored = pq.read_schema(path).metadata or {}
    except pa.ArrowInvalid as error:
        raise TwohopError(f"{path} is not a Parquet file; write it again.") from error
    return json.loads(stored.get(_META_KEY, b"{}"))


def _column(series: pd.Series, field: pa.Field) -> pa.Array:
    values = series.tolist()
    # Arrow would take a text as a list of its letters, and cut fractions off without a word.
    wrong = (pa.types.is_list(field.type) and any(isinstance(v, str) for v in values)) or (
        pa.types.is_integer(field.type) and any(isinstance(v, float) and v % 1 > 0 for v in values)
    )
    try:
        array = None if wrong else pa.array(values, type=field.type, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        array = None
    if array is None:
        raise TwohopError(
            f"Column {field.name!r} must be of type {field.type}, which some value is not."
        )
    if array.null_count and field.name != "intervention":
        raise TwohopError(
            f"Column {field.name!r} has {array.null_count} empty row(s); every record needs one."
        )
    return array


def _refuse_duplicates(frame: pd.DataFrame) -> None:
    key = [*ANSWER_KEY, *(name for name in SITE_COLUMNS if name in frame.columns)]
    twice = frame[frame.duplicated(key)]
    if len(twice):
        row = twice.iloc[0]
        raise TwohopError(
            f"{len(twice)} answer record(s) repeat an earlier one, such as {row.model} seed "
            f"{row.seed}, {row.condition}, {row.question_id or row.entity_id}; keep one of each."
        )


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise TwohopError(f"There are no records at {path}; run the experiment first.")
    return path


def _read_table(path: str | Path) -> pa.Table:
    try:
        return pq.read_table(_existing(path))
    except pa.ArrowInvalid as error:
        raise TwohopError(f"{path} is not a Parquet file; write it again.") from error


def _write_table(table: pa.Table, path: str | Path, meta: Mapping[str, Any] | None) -> None:
    # pandas' own metadata names its version; dropping it keeps equal content byte-equal.
    text = json.dumps(dict(meta or {}), sort_keys=True, ensure_ascii=False)
    table = table.replace_schema_metadata({_META_KEY: text.encode()})
    with atomic_path(path) as partial:
        pq.write_table(table, partial, compression="zstd")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a scratch path beside ``path`` that becomes ``path`` only if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        # mkstemp files are private; a record is as readable as any other new file.
        partial.chmod(0o666 & ~_umask())
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# --- the manifest ---------------------------------------------------------------------------

#: Distributions whose versions a manifest records where they are installed.
VERSIONED = (
    "twohop",
    "torch",
    "transformers",
    "tokenizers",
    "nnsight",
    "bitsandbytes",
    "accelerate",
    "numpy",
    "pandas",
    "scipy",
    "scikit-learn",
    "pyarrow",
    "pillow",
    "babel",
    "regex",
    "torchvision",
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelEntry(_Strict):
    """One model of a run: which weights, and in what form they were loaded."""

    role: str
    id: str
    revision: str | None = None
    processor: str | None = None
    dtype: str | None = None
    quantisation: str | None = None

    @classmethod
    def of(cls, role: str, model: Any, processor: Any = None) -> ModelEntry:
        """Read the entry off a loaded ``transformers`` model and its processor or tokenizer."""
        config = model.config
        quantisation = getattr(config, "quantization_config", None)
        if quantisation is not None and not isinstance(quantisation, dict):
            quantisation = quantisation.to_dict()
        return cls(
            role=role,
            id=str(getattr(config, "_name_or_path", "") or type(model).__name__),
            revision=getattr(config, "_commit_hash", None),
            processor=None if processor is None else type(processor).__name__,
            dtype=str(model.dtype).removeprefix("torch."),
            quantisation=None
            if quantisation is None
            else json.dumps(quantisation, sort_keys=True, default=str),
        )


class Manifest(_Strict):
    """All that determines a run, and what it took: one ``manifest.json`` beside the records."""

    models: tuple[ModelEntry, ...]
    seeds: tuple[int, ...]
    parameters: dict[str, Any]
    benchmark: str | None
    benchmark_hash: str | None
    library_hash: str
    versions: dict[str, str]
    device: str
    wall_time_s: float | None
    peak_memory_bytes: int | None
    command: str
    created: str

    @classmethod
    def collect(
        cls,
        *,
        models: Sequence[ModelEntry] = (),
        seeds: Sequence[int] = (),
        parameters: Mapping[str, Any] | None = None,
        benchmark: str | None = None,
        benchmark_hash: str | None = None,
        command: str | None = None,
        started: float | None = None,
    ) -> Manifest:
        """Gather a manifest from this process.

        ``started`` is the ``time.perf_counter()`` at which the run began; without it the wall
        time is unknown. ``command`` defaults to this process's own command line. Peak memory is
        the GPU's where one is in use, else the process's.
        """
        return cls(
            models=tuple(models),
            seeds=tuple(seeds),
            # Through JSON, so that what is in memory equals what is read back.
            parameters=json.loads(json.dumps(dict(parameters or {}), default=str)),
            benchmark=benchmark,
            benchmark_hash=benchmark_hash,
            library_hash=library_hash(),
            versions=versions(),
            device=device_name(),
            wall_time_s=None if started is None else round(time.perf_counter() - started, 3),
            peak_memory_bytes=peak_memory_bytes(),
            command=command if command is not None else " ".join(sys.argv),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def write(self, path: str | Path) -> None:
        """Write the manifest as JSON, whole or not at all."""
        with atomic_path(path) as partial:
            partial.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> Manifest:
        """Read a manifest; raises TwohopError if it is absent or not one."""
        path = Path(path)
        if not path.is_file():
            raise TwohopError(f"There is no manifest at {path}; rerun to make one.")
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise TwohopError(
                f"{path} is not a manifest of this version ({where}: {first['msg']}); rerun."
            ) from error


def content_hash(files: Iterable[Path]) -> str:
    """Return a hash of the names and contents of files; one that has not changed is read once."""
    stamps = ((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(files))
    return _content_hash(tuple(stamps))


@lru_cache
def _content_hash(stamps: tuple[tuple[str, int, int], ...]) -> str:
    total = hashlib.sha256()
    for name, size, _ in stamps:
        with open(name, "rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        total.update(f"{Path(name).name}\0{size}\0".encode() + content)
    return total.hexdigest()


def library_hash(root: str | Path | None = None) -> str:
    """Return a hash of the names and contents of the library's source files.

    ``root`` defaults to this package's own folder. A changed comment changes it too: it errs
    on the side of saying "not the same code".
    """
    folder = Path(root) if root is not None else Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py"), key=lambda p: p.relative_to(folder).as_posix()):
        # Line endings depend on how the source was checked out, not on what it says.
        content = path.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that bear on results."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device_name() -> str:
    """Return the name of the device that models run on here."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"cpu ({platform.machine()})"


def peak_memory_bytes() -> int | None:
    """Return the most memory held so far: the GPU's where one is in use, else the process's."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows has no such module.
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024

"""Reading tables that other people made, row by row: CSV, TSV and Parquet."""

from __future__ import annotations

import ast
import csv
import difflib
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from twohop_lib.benchmark.faults import Problem
from twohop_lib.errors import TwohopError

#: Characters in a cell. A question is a sentence; more is a mistake or worse.
MAX_CELL = 1_000_000
#: Bytes that one column of a Parquet file's row group may unpack to.
MAX_COLUMN = 200_000_000
#: What may stand between cells; the first is what a file's ending promises.
DELIMITERS = {".csv": ",;\t", ".tsv": "\t,;"}
FORMATS = (*DELIMITERS, ".parquet")

Cells = dict[str, Any]
Report = Callable[[Problem], None]


def read(
    file: Path, needed: Sequence[str], report: Report, optional: Sequence[str] = ()
) -> Iterator[tuple[int, Cells]]:
    """Yield each sound row with its number (from 1, the header not counted).

    Cells are texts; in Parquet they may be lists. What is wrong with a row goes to ``report``,
    and the row is left out. What stands between cells is found out from the header, whose names
    may be in any case. Columns neither ``needed`` nor ``optional`` are not looked at, unless one
    is named almost like a column that the table lacks.

    Raises:
        TwohopError: the file is missing, of another format or encoding, or lacks a column.
    """
    if not os.path.isfile(file):  # unlike Path.is_file, false too for what may not be looked at
        what = "is no file" if os.path.exists(file) else "does not exist"
        raise TwohopError(f"{file} {what}; give a table ({', '.join(FORMATS)}).")
    ending = file.suffix.lower()
    if ending not in FORMATS:
        raise TwohopError(f"{file} is not a table that can be read; use {', '.join(FORMATS)}.")
    rows = _parquet if ending == ".parquet" else _separated
    try:
        for number, cells in rows(file, needed, optional, report):
            faults = [Problem(number, c, what) for c, v in cells.items() if (what := _fault(v))]
            for fault in faults:
                report(fault)
            if not faults:
                yield number, cells
    except OSError as error:
        raise TwohopError(f"{file} cannot be read ({error.strerror or error}).") from error


def _fault(value: Any) -> str | None:
    """What is wrong with a cell, whatever its column."""
    if isinstance(value, bytes | dict):
        return f"holds {'bytes' if isinstance(value, bytes) else 'fields'}; store text instead"
    if isinstance(value, list):
        return next((what for v in value if isinstance(v, str) and (what := _fault(v))), None)
    if len(value) > MAX_CELL:
        return f"has {len(value):,} characters; {MAX_CELL:,} are the most"
    if "\0" in value:
        return "has a null character; remove it"
    # What could not be decoded was read as lone surrogates.
    if bad := next((c for c in value if "\udc80" <= c <= "\udcff"), None):
        return f"is not UTF-8 (byte 0x{ord(bad) - 0xDC00:02X}); save the table as UTF-8"
    if any("\ud800" <= c <= "\udfff" for c in value):  # "\ud800", written in JSON
        return "has half a character (a lone surrogate); remove it"
    return None


def _names(
    file: Path, header: Sequence[str], needed: Sequence[str], optional: Sequence[str]
) -> list[str]:
    """The columns' names as they are known here: "Question by name" is ``question_by_name``."""
    names = [_plain_name(name) for name in header]
    known = {*needed, *optional}
    absent = known.difference(names)
    for name in names:
        close = difflib.get_close_matches(name, absent, n=1, cutoff=0.8)
        # "question_en" is the question in another language.
        if close and not known & {name, name.rpartition("_")[0]}:
            raise TwohopError(
                f"{file}, column {name!r}: is unknown; rename it if {close[0]!r} is meant, or else "
                "to something less like it."
            )
    for name in needed:
        if name in absent:
            raise TwohopError(
                f"{file}, column {name!r}: is missing; add it (needed: {', '.join(needed)})."
            )
    twice = next((n for n, count in Counter(names).items() if n and count > 1), None)
    if twice:
        raise TwohopError(f"{file}, column {twice!r}: is there twice; keep one.")
    return names


def _plain_name(name: str) -> str:
    return "_".join(name.casefold().replace("-", " ").replace("_", " ").split())


# --- CSV and TSV -------------------------------------------------------------------------------


def _separated(
    file: Path, needed: Sequence[str], optional: Sequence[str], report: Report
) -> Iterator[tuple[int, Cells]]:
    _refuse_binary(file)
    limit = csv.field_size_limit(MAX_CELL)
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            delimiter = _delimiter(file, lines, {*needed, *optional})
            records = _records(lines, delimiter)
            header = next(records, None)
            if header is None:
                raise TwohopError(f"{file} is empty; it needs a line with the names of columns.")
            if isinstance(header, csv.Error):
                raise TwohopError(f"{file} has no readable line of column names; add one.")
            names = _names(file, header, needed, optional)
            for number, values in enumerate(filter(None, records), start=1):
                if isinstance(values, csv.Error):
                    report(Problem(number, names[0], _unread(values)))
                elif len(values) != len(names):
                    what = f"the row has {len(values)} cells and the header {len(names)}"
                    what += "; quote cells that hold a separator"
                    report(Problem(number, names[0], what))
                else:
                    cells = dict(zip(names, values, strict=True))
                    yield number, {c: v for c, v in cells.items() if c in needed or c in optional}
    finally:
        csv.field_size_limit(limit)


def _records(lines: TextIO, delimiter: str) -> Iterator[list[str] | csv.Error]:
    """The rows of a file, blank lines as empty lists; an error in place of one that has faults."""
    again: deque[str] = deque()
    record: list[str] = []

    def source() -> Iterator[str]:
        while line := (again.popleft() if again else lines.readline()):
            record.append(line)
            yield line

    while True:
        # A field without end would swallow the rest of the file: strict refuses it.
        reader = csv.reader(source(), delimiter=delimiter, strict=True)
        try:
            for values in reader:
                record.clear()
                yield values
            return
        except csv.Error as error:
            yield error
        # A quote left open takes in the rows below: they are read again, by themselves.
        again.extendleft(reversed(record[1:]))
        record.clear()


def _unread(error: csv.Error) -> str:
    if "field larger" in str(error):
        return f"has a cell of more than {MAX_CELL:,} characters; shorten it"
    return f"cannot be read ({error}); check its quotes"


def _delimiter(file: Path, lines: TextIO, known: set[str]) -> str:
    """What parts the header into the most known names; leaves ``lines`` at the header."""
    first = lines.readline(MAX_CELL)
    if first.strip().casefold().startswith("sep=") and len(first.strip()) == 5:
        return first.strip()[-1]  # what Excel reads, and writes on request
    lines.seek(0)

    def found(delimiter: str) -> int:
        cells = next(csv.reader([first], delimiter=delimiter), [])
        return len(known.intersection(map(_plain_name, cells)))

    return max(DELIMITERS[file.suffix.lower()], key=found)


def _refuse_binary(file: Path) -> None:
    with file.open("rb") as raw:
        begins = raw.read(4)
    if begins == b"PK\x03\x04" or begins[:2] == b"\x1f\x8b":
        raise TwohopError(f"{file} is a spreadsheet or archive; save it as CSV in UTF-8.")
    if begins[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in begins:
        raise TwohopError(f"{file} is in UTF-16 or UTF-32; save it as UTF-8.")


# --- Parquet -----------------------------------------------------------------------------------


def _parquet(
    file: Path, needed: Sequence[str], optional: Sequence[str], report: Report
) -> Iterator[tuple[int, Cells]]:
    number = 0
    try:
        with pq.ParquetFile(file) as parquet:
            header = parquet.schema_arrow.names
            names = _names(file, header, needed, optional)
            columns = {
                written: name
                for written, name in zip(header, names, strict=True)
                if name in needed or name in optional
            }
            _refuse_packed(file, parquet.metadata, columns)
            # Packed, a cell that every row repeats is stored once; so few rows at a time.
            for batch in parquet.iter_batches(batch_size=16, columns=list(columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {columns[c]: _plain(value) for c, value in row.items()}
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise TwohopError(f"{file} is not a readable Parquet file; write it again.") from error


def _refuse_packed(file: Path, metadata: pq.FileMetaData, columns: Sequence[str]) -> None:
    """Refuse pages that unpack to more than any sound table holds."""
    groups = (metadata.row_group(g) for g in range(metadata.num_row_groups))
    for column in (group.column(c) for group in groups for c in range(group.num_columns)):
        name = column.path_in_schema.split(".")[0]
        if name in columns and column.total_uncompressed_size > MAX_COLUMN:
            raise TwohopError(
                f"{file}, column {name!r}: holds more than {MAX_COLUMN:,} bytes; shorten it."
            )


def _plain(value: Any) -> Any:
    if value is None or value != value:  # what pandas writes for a missing number
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # whole numbers too, if one of them is missing
    return value if isinstance(value, str | list | bytes | dict) else str(value)


# --- lists in a cell ---------------------------------------------------------------------------


def as_list(value: Any) -> tuple[str, ...]:
    """The entries of a cell: a real list, one written in JSON or Python, or parted by ``|``.

    Raises:
        ValueError: it looks like a list and is none, or is nested.
    """
    if isinstance(value, str) and value.strip().startswith("["):
        value = _written_list(value.strip())
    elif isinstance(value, str):
        value = value.split("|")
    if any(isinstance(v, list | dict | tuple | set) for v in value):
        raise ValueError("holds a list in a list; give texts")
    if any(isinstance(v, bytes) for v in value):
        raise ValueError("holds bytes; give texts")
    if what := _fault([str(v) for v in value]):
        raise ValueError(what)
    return tuple(str(v).strip() for v in value if v is not None and str(v).strip())


def _written_list(text: str) -> list[Any]:
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list):
            return value
    raise ValueError('begins like a list and is none; write ["one", "two"] or one|two')

"""Reading tables that other people made: row by row, and telling what is wrong with each."""

from __future__ import annotations

import ast
import csv
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from twohop_lib.benchmark.store import Problem
from twohop_lib.errors import TwohopError

#: Characters in a cell, and in a line. A question is a sentence; more is a mistake or worse.
MAX_CELL = 1_000_000
#: Bytes that one column of a Parquet file's row group may unpack to.
MAX_COLUMN = 200_000_000
SEPARATORS = {".csv": ",", ".tsv": "\t"}
FORMATS = (*SEPARATORS, ".parquet")

Cells = dict[str, Any]
Report = Callable[[Problem], None]


class BadTable(TwohopError):
    """A table with problems; ``problems`` has them all."""

    def __init__(self, file: Path, problems: Sequence[Problem]) -> None:
        self.file, self.problems = file, tuple(problems)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{file}, {problems[0]}{more}")


def read(
    file: Path, needed: Sequence[str], report: Report, optional: Sequence[str] = ()
) -> Iterator[tuple[int, Cells]]:
    """Yield each sound row with its number (from 1, the header not counted).

    Cells are texts; in Parquet they may be lists. What is wrong with a row goes to ``report``,
    and the row is left out. Columns neither ``needed`` nor ``optional`` are not looked at.

    Raises:
        TwohopError: the file is missing, of another format or encoding, or lacks a column.
    """
    if not os.path.isfile(file):  # unlike Path.is_file, false too for what may not be looked at
        what = "is no file" if os.path.exists(file) else "does not exist"
        raise TwohopError(f"{file} {what}; give a table ({', '.join(FORMATS)}).")
    known = {*needed, *optional}
    try:
        yield from _sound(_rows(file, needed, known, report), known, report)
    except OSError as error:
        raise TwohopError(f"{file} cannot be read ({error.strerror or error}).") from error


def _rows(
    file: Path, needed: Sequence[str], known: set[str], report: Report
) -> Iterator[tuple[int, Cells]]:
    if file.suffix.lower() == ".parquet":
        return _parquet(file, needed, known)
    if file.suffix.lower() in SEPARATORS:
        return _separated(file, needed, report)
    raise TwohopError(f"{file} is not a table that can be read; use {', '.join(FORMATS)}.")


def _sound(
    rows: Iterator[tuple[int, Cells]], known: set[str], report: Report
) -> Iterator[tuple[int, Cells]]:
    for number, cells in rows:
        cells = {column: value for column, value in cells.items() if column in known}
        faults = [
            Problem(number, column, what)
            for column, value in cells.items()
            if (what := _cell_fault(value))
        ]
        for fault in faults:
            report(fault)
        if not faults:
            yield number, cells


def _cell_fault(value: Any) -> str | None:
    if isinstance(value, bytes | dict):
        return f"holds {'bytes' if isinstance(value, bytes) else 'fields'}; store text instead"
    if isinstance(value, list):
        return next((what for v in value if isinstance(v, str) and (what := _cell_fault(v))), None)
    if isinstance(value, str):
        if len(value) > MAX_CELL:
            return f"has {len(value):,} characters; {MAX_CELL:,} are the most"
        if "\0" in value:
            return "has a null character; remove it"
        # What could not be decoded was read as lone surrogates.
        bad = next((c for c in value if "\udc80" <= c <= "\udcff"), None)
        if bad:
            byte = ord(bad) - 0xDC00
            return f"is not UTF-8 (byte 0x{byte:02X}); save the table as UTF-8"
        if any("\ud800" <= c <= "\udfff" for c in value):  # "\ud800", written in JSON
            return "has half a character (a lone surrogate); remove it"
    return None


# --- CSV and TSV -----------------------------------------------------------------------------


def _separated(file: Path, needed: Sequence[str], report: Report) -> Iterator[tuple[int, Cells]]:
    _refuse_utf16(file)
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        limit = csv.field_size_limit(MAX_CELL)
        try:
            delimiter = SEPARATORS[file.suffix.lower()]
            number = 0
            # A field without end would swallow the rest of the file: strict refuses it.
            source = _Lines(lines)
            reader = csv.reader(source, delimiter=delimiter, strict=True)
            header = _header(file, reader, needed)
            while True:
                number += 1
                source.begin()
                try:
                    values = next(reader)
                except StopIteration:
                    return
                except _LongLine:
                    what = f"has a cell of more than {MAX_CELL:,} characters; shorten it"
                    report(Problem(number, header[0], what))
                except csv.Error as error:
                    report(Problem(number, header[0], _csv_fault(error)))
                else:
                    yield from _whole(number, header, values, report)
                    number -= not values  # a blank line is no row
                    continue
                # A quote left open takes in the rows below: they are read again, by themselves.
                source.back()
                reader = csv.reader(source, delimiter=delimiter, strict=True)
        finally:
            csv.field_size_limit(limit)


def _whole(
    number: int, header: list[str], values: list[str], report: Report
) -> Iterator[tuple[int, Cells]]:
    if len(values) == len(header):
        yield number, dict(zip(header, values, strict=True))
    elif values:
        what = f"the row has {len(values)} cells and the header {len(header)}; quote "
        report(Problem(number, header[0], what + "cells that hold a separator"))


class _LongLine(Exception):
    """A line that is longer than a cell may be; it has been read past."""


class _Lines:
    """The lines of a file; those of a record that cannot be read can be gone back to."""

    def __init__(self, lines: IO[str]) -> None:
        self._lines = lines
        self._again: deque[str | None] = deque()
        self._record: list[str | None] = []

    def begin(self) -> None:
        """A record begins here."""
        self._record = []

    def back(self) -> None:
        """Give all lines of the record once more but its first."""
        self._again.extendleft(reversed(self._record[1:]))

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._bounded()
        self._record.append(line)
        if line is None:
            raise _LongLine
        if not line:
            self._record.pop()
            raise StopIteration
        return line

    def _bounded(self) -> str | None:
        """The next line, empty at the end; None for one that is too long."""
        line = self._lines.readline(MAX_CELL + 1)
        if len(line) <= MAX_CELL or line.endswith("\n"):
            return line
        while (rest := self._lines.readline(MAX_CELL)) and not rest.endswith("\n"):
            pass
        return None


def _csv_fault(error: csv.Error) -> str:
    if "field larger" in str(error):
        return f"has a cell of more than {MAX_CELL:,} characters; shorten it"
    return f"cannot be read ({error}); check its quotes"


def _refuse_utf16(file: Path) -> None:
    with file.open("rb") as raw:
        begins = raw.read(4)
    if begins == b"PK\x03\x04" or begins[:2] == b"\x1f\x8b":
        raise TwohopError(f"{file} is a spreadsheet or archive; save it as CSV in UTF-8.")
    if begins[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in begins:
        raise TwohopError(f"{file} is in UTF-16 or UTF-32; save it as UTF-8.")


def _header(file: Path, reader: Iterator[list[str]], needed: Sequence[str]) -> list[str]:
    try:
        header = [name.strip() for name in next(reader)]
    except StopIteration:
        raise TwohopError(f"{file} is empty; it needs a line with the names of columns.") from None
    except (_LongLine, csv.Error) as error:
        raise TwohopError(f"{file} has no readable line of column names; add one.") from error
    _check_names(file, header, needed)
    return header


def _check_names(file: Path, names: Sequence[str], needed: Sequence[str]) -> None:
    for name in needed:
        if name not in names:
            raise TwohopError(
                f"{file}, column {name!r}: is missing; add it (needed: {', '.join(needed)})."
            )
    twice = next((n for n, count in Counter(names).items() if n and count > 1), None)
    if twice:
        raise TwohopError(f"{file}, column {twice!r}: is there twice; keep one.")


# --- Parquet ---------------------------------------------------------------------------------


def _parquet(file: Path, needed: Sequence[str], known: set[str]) -> Iterator[tuple[int, Cells]]:
    number = 0
    try:
        with pq.ParquetFile(file) as parquet:
            _check_names(file, parquet.schema_arrow.names, needed)
            columns = [c for c in parquet.schema_arrow.names if c in known]
            _refuse_packed(file, parquet.metadata, columns)
            # Packed, a cell that every row repeats is stored once; so few rows at a time.
            for batch in parquet.iter_batches(batch_size=16, columns=columns):
                for i in range(batch.num_rows):
                    number += 1
                    yield number, {c: _plain(batch[c][i].as_py()) for c in columns}
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise TwohopError(f"{file} is not a readable Parquet file; write it again.") from error


def _refuse_packed(file: Path, metadata: pq.FileMetaData, columns: Sequence[str]) -> None:
    """Refuse pages that unpack to more than any sound table holds."""
    for g in range(metadata.num_row_groups):
        group = metadata.row_group(g)
        for c in range(group.num_columns):
            column = group.column(c)
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


# --- lists in a cell -------------------------------------------------------------------------


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
    if what := _cell_fault([str(v) for v in value]):
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

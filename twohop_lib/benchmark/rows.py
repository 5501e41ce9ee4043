"""Reading tables that other people made: row by row, and telling what is wrong with each."""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from twohop_lib.benchmark.store import Problem
from twohop_lib.errors import TwohopError

#: Characters in a cell, and in a line. A question is a sentence; more is a mistake or worse.
MAX_CELL = 1_000_000
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


def read(file: Path, needed: Sequence[str], report: Report) -> Iterator[tuple[int, Cells]]:
    """Yield each sound row with its number (from 1, the header not counted).

    Cells are texts; in Parquet they may be lists. What is wrong with a row goes to ``report``,
    and the row is left out.

    Raises:
        TwohopError: the file is missing, of another format or encoding, or lacks a column.
    """
    if not file.is_file():
        raise TwohopError(f"{file} does not exist; give a table ({', '.join(FORMATS)}).")
    if file.suffix.lower() == ".parquet":
        rows = _parquet(file, needed)
    elif file.suffix.lower() in SEPARATORS:
        rows = _separated(file, needed, report)
    else:
        raise TwohopError(f"{file} is not a table that can be read; use {', '.join(FORMATS)}.")
    for number, cells in rows:
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
            reader = csv.reader(_bounded(lines), delimiter=delimiter, strict=True)
            header = _header(file, reader, needed)
            while True:
                number += 1
                try:
                    values = next(reader)
                except StopIteration:
                    return
                except _LongLine:
                    what = f"has a cell of more than {MAX_CELL:,} characters; shorten it"
                    report(Problem(number, header[0], what))
                    reader = csv.reader(_bounded(lines), delimiter=delimiter, strict=True)
                    continue
                except csv.Error as error:
                    report(Problem(number, header[0], _csv_fault(error)))
                    continue
                if not values:
                    number -= 1  # a blank line is no row
                elif len(values) != len(header):
                    what = f"the row has {len(values)} cells and the header {len(header)}; quote "
                    report(Problem(number, header[0], what + "cells that hold a separator"))
                else:
                    yield number, dict(zip(header, values, strict=True))
        finally:
            csv.field_size_limit(limit)


class _LongLine(Exception):
    """A line that is longer than a cell may be; it has been read past."""


def _bounded(lines: IO[str]) -> Iterator[str]:
    while line := lines.readline(MAX_CELL + 1):
        if len(line) > MAX_CELL and not line.endswith("\n"):
            while (rest := lines.readline(MAX_CELL)) and not rest.endswith("\n"):
                pass
            raise _LongLine
        yield line


def _csv_fault(error: csv.Error) -> str:
    if "field larger" in str(error):
        return f"has a cell of more than {MAX_CELL:,} characters; shorten it"
    return f"cannot be read ({error}); check its quotes"


def _refuse_utf16(file: Path) -> None:
    with file.open("rb") as raw:
        begins = raw.read(4)
    if begins[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise TwohopError(f"{file} is in UTF-16 or UTF-32; save it as UTF-8.")
    if begins == b"PK\x03\x04":
        raise TwohopError(f"{file} is a spreadsheet or archive; save it as CSV in UTF-8.")


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
    twice = next((n for n in names if n and names.count(n) > 1), None)
    if twice:
        raise TwohopError(f"{file}, column {twice!r}: is there twice; keep one.")


# --- Parquet ---------------------------------------------------------------------------------


def _parquet(file: Path, needed: Sequence[str]) -> Iterator[tuple[int, Cells]]:
    number = 0
    try:
        with pq.ParquetFile(file) as parquet:
            _check_names(file, parquet.schema_arrow.names, needed)
            for batch in parquet.iter_batches(batch_size=512):
                for cells in batch.to_pylist():
                    number += 1
                    yield number, {k: _plain(v) for k, v in cells.items()}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise TwohopError(f"{file} is not a readable Parquet file; write it again.") from error


def _plain(value: Any) -> Any:
    if value is None:
        return ""
    return value if isinstance(value, str | list) else str(value)


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

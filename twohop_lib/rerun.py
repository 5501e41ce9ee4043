"""Executing chapters: jupytext to notebook, parameters checked, papermill, stored under a key."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from twohop_lib.errors import TwohopError, suggest
from twohop_lib.nb import plain_markdown

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def to_notebook(source: Path) -> nbformat.NotebookNode:
    """A chapter's percent ``.py`` source as a notebook with kernel and stable cell ids."""
    if not source.exists():
        raise TwohopError(f"There is no chapter at {source}.")
    notebook = jupytext.read(source)
    notebook.metadata["kernelspec"] = dict(KERNEL)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    return notebook


def twin(source: Path) -> str:
    """The output-free notebook beside a chapter, for Colab: plain Markdown, nothing executed."""
    notebook = to_notebook(source)
    notebook.metadata = {"kernelspec": dict(KERNEL), "language_info": {"name": "python"}}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = plain_markdown(cell.source)
        else:
            cell.execution_count, cell.outputs = None, []
    return nbformat.writes(notebook) + "\n"


def known_parameters(notebook: nbformat.NotebookNode) -> list[str]:
    """The names assigned in the cell tagged ``parameters``."""
    inferred = papermill.inspect_notebook(notebook)
    return list(inferred)


def check_parameters(notebook: nbformat.NotebookNode, given: Iterable[str], title: str) -> None:
    """Raise ``TwohopError`` for a parameter that the chapter lacks (papermill only warns)."""
    known = known_parameters(notebook)
    for name in given:
        if name not in known:
            raise TwohopError(f"Chapter {title} has no parameter {name!r}; {suggest(name, known)}.")


def inputs_hash(paths: Iterable[Path]) -> str:
    """SHA-256 over the names and bytes of all files in ``paths`` (folders recursively)."""
    digest = hashlib.sha256()
    for root in sorted(map(Path, paths)):
        files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
        for file in files:
            if "__pycache__" in file.parts:
                continue
            digest.update(str(file.relative_to(root.parent)).encode() + b"\0")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def is_current(out: Path, key: str) -> bool:
    """Whether ``out`` holds a complete run with this key."""
    try:
        return json.loads(out.read_text())["metadata"]["twohop"]["key"] == key
    except (FileNotFoundError, KeyError, ValueError):
        return False


def execute(
    source: Path, out: Path, parameters: Mapping[str, Any] | None = None, *, key: str
) -> bool:
    """Execute a chapter into the notebook ``out``, unless it already holds a run with this key.

    Returns:
        Whether the chapter was executed.

    Raises:
        TwohopError: unknown parameter, or a cell failed; the message names chapter, cell and
            error, and the notebook up to there is kept beside ``out`` as ``*.failed.ipynb``.
    """
    parameters = dict(parameters or {})
    if is_current(out, key):
        return False
    notebook = to_notebook(source)
    check_parameters(notebook, parameters, source.stem)
    out.parent.mkdir(parents=True, exist_ok=True)
    waiting, partial = out.with_suffix(".input.ipynb"), out.with_suffix(".partial.ipynb")
    nbformat.write(notebook, waiting)
    started = time.perf_counter()
    try:
        done = papermill.execute_notebook(
            waiting, partial, parameters, kernel_name="python3", progress_bar=False, cwd=out.parent
        )
    except PapermillExecutionError as error:
        failed = out.with_suffix(".failed.ipynb")
        os.replace(partial, failed)
        first = next((line for line in error.source.splitlines() if line.strip()), "")
        raise TwohopError(
            f"Chapter {source.stem} failed in cell {error.cell_index + 1} ({first.strip()!r}): "
            f"{error.ename}: {error.evalue}; the notebook so far is {failed}."
        ) from error
    finally:
        waiting.unlink(missing_ok=True)
    done.metadata["twohop"] = {
        "key": key,
        "seconds": round(time.perf_counter() - started, 1),
        "parameters": parameters,
    }
    nbformat.write(done, partial)
    os.replace(partial, out)
    return True

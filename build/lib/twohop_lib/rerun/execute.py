"""Executing chapters: jupytext to notebook, parameters checked, papermill, stored under a key."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from twohop_lib.chapter.pages import plain_markdown
from twohop_lib.errors import TwohopError, suggest

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
#: Progress is told at most this often, however many cells a chapter has and however long it takes.
UPDATES, SECONDS_BETWEEN = 10, 15.0
#: A cell that takes long is told of after so many seconds, and then after twice as many each time.
STILL_RUNNING = 60.0
#: Tags of prose that is true of the book's own page alone, and of a page on another model alone.
BOOK_PROSE, MODEL_PROSE = "organisms", "model"
#: Tag of cells, prose and code, that show the grafts beside the book's own organisms.
GRAFTS = "grafts"


def to_notebook(source: Path) -> nbformat.NotebookNode:
    """A chapter's percent ``.py`` source as a notebook with kernel and stable cell ids."""
    if not source.exists():
        raise TwohopError(f"There is no chapter at {source}.")
    notebook = jupytext.read(source)
    notebook.metadata["kernelspec"] = dict(KERNEL)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    return notebook


#: Below the first prose of a twin that has computed values in it.
PENDING = "*Each … is a number that the cells below compute; the rendered book shows it in place.*"


def twin(source: Path) -> str:
    """The output-free notebook beside a chapter, for Colab: plain Markdown, nothing executed."""
    notebook = without(to_notebook(source), MODEL_PROSE)
    notebook.metadata = {"kernelspec": dict(KERNEL), "language_info": {"name": "python"}}
    told = False
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            computed = "{glue:text}" in cell.source
            cell.source = plain_markdown(cell.source)
            if computed and not told:
                cell.source += f"\n\n{PENDING}"
                told = True
        else:
            cell.execution_count, cell.outputs = None, []
    return nbformat.writes(notebook) + "\n"


def known_parameters(notebook: nbformat.NotebookNode) -> list[str]:
    """The names assigned in the cell tagged ``parameters``."""
    return list(papermill.inspect_notebook(notebook))


def defaults(notebook: nbformat.NotebookNode) -> dict[str, Any]:
    """The parameters and their values in the cell tagged ``parameters``; None if computed."""
    found: dict[str, Any] = {}
    for name, about in papermill.inspect_notebook(notebook).items():
        try:
            found[name] = ast.literal_eval(about["default"])
        except (ValueError, SyntaxError):
            found[name] = None
    return found


def without(notebook: nbformat.NotebookNode, *tags: str) -> nbformat.NotebookNode:
    """Take the cells with one of these tags out of a notebook; edits and returns it."""
    left_out = set(tags)
    notebook.cells = [c for c in notebook.cells if not left_out & set(c.metadata.get("tags", ()))]
    return notebook


def left_out(parameters: Mapping[str, Any]) -> list[str]:
    """The tags of the cells that a page with these parameters does without."""
    given = bool(parameters.get("vlm"))
    tags = [BOOK_PROSE if given else MODEL_PROSE]
    return [*tags, GRAFTS] if given or parameters.get("grafts") == [] else tags


def check_parameters(notebook: nbformat.NotebookNode, given: Iterable[str], title: str) -> None:
    """Refuse a parameter that the chapter does not have (papermill would carry on)."""
    known = known_parameters(notebook)
    for name in given:
        if name not in known:
            raise TwohopError(f"Chapter {title} has no parameter {name!r}; {suggest(name, known)}.")


def inputs_hash(paths: Iterable[Path]) -> str:
    """SHA-256 over the names and bytes of all files in ``paths`` (folders recursively)."""
    digest = hashlib.sha256()
    for root in sorted(map(Path, paths)):
        if not root.exists():
            raise TwohopError(f"{root} is not there, so what depends on it cannot be told.")
        files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
        for file in files:
            if "__pycache__" in file.parts:
                continue
            digest.update(file.relative_to(root.parent).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def run_key(source: Path, environment: str, parameters: Mapping[str, Any] | None = None) -> str:
    """What determines a chapter's outputs: its source, its parameters, and ``environment``.

    ``environment`` is a hash of everything else: the library with its data, the versions.
    """
    everything = [
        inputs_hash([source]),
        environment,
        platform.python_version(),
        json.dumps(dict(parameters or {}), sort_keys=True, default=str),
    ]
    return hashlib.sha256("\0".join(everything).encode()).hexdigest()


def is_current(out: Path, key: str) -> bool:
    """Whether ``out`` holds a complete run with this key."""
    try:
        return json.loads(out.read_text(encoding="utf-8"))["metadata"]["twohop"]["key"] == key
    except (FileNotFoundError, KeyError, ValueError):
        return False


class _Progress:
    """Which cell is running, and a line now and then that says so."""

    def __init__(self, title: str, cells: int, say: Callable[[str], None]) -> None:
        self.title, self.cells, self.say = title, cells, say
        self.cell: Mapping[str, Any] | None = None
        self.started = self.last = time.monotonic()
        self.tenth = 0

    def starts(self, cell: Mapping[str, Any]) -> None:
        self.cell = cell

    def ends(self, index: int) -> None:
        now = time.monotonic()
        tenth = UPDATES * (index + 1) // self.cells
        if tenth <= self.tenth or tenth == UPDATES or now - self.last < SECONDS_BETWEEN:
            return
        self.tenth, self.last = tenth, now
        self.say(
            f"chapter {self.title}: cell {index + 1} of {self.cells}, {now - self.started:.0f} s"
        )

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Say now and then that a long cell still runs, for as long as the block does."""
        done = threading.Event()

        def beat() -> None:
            wait = STILL_RUNNING
            while not done.wait(wait):
                seconds = time.monotonic() - self.started
                self.say(f"chapter {self.title}: in {self.where()}, {seconds:.0f} s")
                wait = seconds

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def where(self) -> str:
        """``cell 12 ('first line')``: numbered as in the chapter's source."""
        if self.cell is None:
            return "its first cell"
        number = str(self.cell.get("id", "")).removeprefix("cell-")
        first = next((ln for ln in self.cell["source"].splitlines() if ln.strip()), "").strip()
        return f"cell {int(number) + 1 if number.isdigit() else '(parameters)'} ({first!r})"


class _Engine(NBClientEngine):
    """Papermill's own engine, telling a :class:`_Progress` which cell runs."""

    @classmethod
    def execute_managed_notebook(
        cls, nb_man: Any, kernel_name: str, *, progress: _Progress, **kwargs: Any
    ) -> Any:
        cell_start, cell_complete = nb_man.cell_start, nb_man.cell_complete

        def start(cell: Any, cell_index: int | None = None, **more: Any) -> None:
            progress.starts(cell)
            cell_start(cell, cell_index, **more)

        def complete(cell: Any, cell_index: int = 0, **more: Any) -> None:
            cell_complete(cell, cell_index, **more)
            progress.ends(cell_index)

        nb_man.cell_start, nb_man.cell_complete = start, complete
        return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)


papermill_engines.register("twohop", _Engine)


def execute(
    source: Path,
    out: Path,
    parameters: Mapping[str, Any] | None = None,
    *,
    environment: str,
    cell_timeout: float | None = None,
    say: Callable[[str], None] = print,
) -> bool:
    """Execute a chapter into the notebook ``out``, unless it already holds this very run.

    Args:
        environment: hash of all that determines the outputs besides source and parameters.
        cell_timeout: seconds that one cell may take; ``None`` for as long as it likes.
        say: told a bounded number of progress lines.

    Returns:
        Whether the chapter was executed.

    Raises:
        TwohopError: unknown parameter, or a cell failed; the message names chapter, cell and
            error, and the notebook up to there is kept beside ``out`` as ``*.failed.ipynb``.
    """
    parameters = dict(parameters or {})
    notebook = to_notebook(source)
    check_parameters(notebook, parameters, source.stem)
    without(notebook, *left_out(parameters))
    key = run_key(source, environment, parameters)
    if is_current(out, key):
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    partial, failed = out.with_suffix(".partial.ipynb"), out.with_suffix(".failed.ipynb")
    failed.unlink(missing_ok=True)
    progress = _Progress(source.stem, len(notebook.cells) + bool(parameters), say)
    started = time.perf_counter()
    try:
        with progress.beating():
            done = papermill.execute_notebook(
                notebook,
                partial,
                parameters,
                engine_name="twohop",
                kernel_name=KERNEL["name"],
                progress_bar=False,
                progress=progress,
                execution_timeout=cell_timeout,
                # Not papermill's own `cwd`, which moves the whole process, other chapters included.
                resources={"metadata": {"path": str(out.parent)}},
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
    except PapermillExecutionError as error:
        reason = f"{error.ename}: {error.evalue}"
    except CellTimeoutError:
        reason = f"it took longer than {cell_timeout:.0f} s"
    except DeadKernelError:
        reason = "the kernel died; perhaps there was not enough memory"
    else:
        done.metadata["twohop"] = {
            "key": key,
            "seconds": round(time.perf_counter() - started, 1),
            "parameters": parameters,
        }
        nbformat.write(done, partial)
        os.replace(partial, out)
        return True
    os.replace(partial, failed)
    raise TwohopError(
        f"Chapter {source.stem} failed in {progress.where()}: {reason}; "
        f"the notebook so far is {failed}."
    )

"""Recording what the chapters measure of the grafts, for pages that cannot."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from twohop_lib.chapter.published import RECORD_TO
from twohop_lib.errors import TwohopError, suggest
from twohop_lib.grafts import shipped
from twohop_lib.rerun.execute import defaults, execute, to_notebook
from twohop_lib.rerun.run import chapters_folder


def record(chapters: Sequence[str], out: Path, say: Callable[[str], None] = print) -> None:
    """Execute chapters (none given: all that show grafts) and write their frames into ``out``.

    Raises:
        TwohopError: a chapter shows no grafts, one of its grafts is not on this machine or cannot
            be had, or a cell fails.
    """
    folder = chapters_folder()
    every = {source.stem: defaults(to_notebook(source)) for source in sorted(folder.glob("*.py"))}
    known = {name: p for name, p in every.items() if p.get("grafts")}
    for name in chapters:
        if name not in known:
            raise TwohopError(f"No chapter {name!r} shows grafts; {suggest(name, known)}.")
    chosen = list(chapters) or list(known)
    for graft in dict.fromkeys(g for name in chosen for g in known[name]["grafts"]):
        shipped.path(graft)
    with _recording(out.resolve()), tempfile.TemporaryDirectory() as made:
        for name in chosen:
            notebook = Path(made) / f"{name}.ipynb"
            execute(folder / f"{name}.py", notebook, environment="record", say=say)
            say(f"chapter {name}: recorded")


@contextmanager
def _recording(to: Path) -> Iterator[None]:
    """Let kernels that are started meanwhile write their frames into a folder."""
    os.environ[RECORD_TO] = str(to)
    try:
        yield
    finally:
        del os.environ[RECORD_TO]

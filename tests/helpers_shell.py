"""Executing notebooks in the tests' own process: no kernel has to start and import everything.

What a kernel alone can show (that it dies, hangs, or is killed) is tested with real ones.
"""

from __future__ import annotations

import contextlib
from typing import Any

import nbformat
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from papermill.engines import NBClientEngine


def _outputs(caught: Any, result: Any) -> list[nbformat.NotebookNode]:
    streams = [("stdout", caught.stdout), ("stderr", caught.stderr)]
    found = [nbformat.v4.new_output("stream", name=n, text=text) for n, text in streams if text]
    for rich in caught.outputs:
        shown = {"data": rich.data, "metadata": rich.metadata or {}}
        found.append(nbformat.v4.new_output("display_data", **shown))
    error = result.error_before_exec or result.error_in_exec
    if error is not None:
        told = {"ename": type(error).__name__, "evalue": str(error), "traceback": []}
        found.append(nbformat.v4.new_output("error", **told))
    return found


def _execute(
    cls: type, nb_man: Any, kernel_name: str, *, resources: dict[str, Any], **_: Any
) -> None:
    nb_man.save = lambda **_: None  # papermill writes it at the end, too
    shell = InteractiveShell.instance()
    shell.reset(new_session=False)
    with contextlib.chdir(resources["metadata"]["path"]):
        for index, cell in enumerate(nb_man.nb.cells):
            nb_man.cell_start(cell, index)
            failed = False
            if cell.cell_type == "code" and cell.source:
                with capture_output() as caught:
                    result = shell.run_cell(cell.source)
                cell.outputs = _outputs(caught, result)
                failed = not result.success
            if failed:
                nb_man.cell_exception(cell, index)
                break
            nb_man.cell_complete(cell, index)


def use(monkeypatch: Any) -> None:
    """Let :func:`twohop_lib.rerun.execute.execute` run cells here, for the rest of a test."""
    monkeypatch.setattr(NBClientEngine, "execute_managed_notebook", classmethod(_execute))
